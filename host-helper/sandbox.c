/* seccomp filters and capability sets. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A deny list, not an allow list: a filter is inherited, and the scripts below are whole programs.
 */
static const struct {
	int number;
	const char *why; /* README.md repeats it; a test compares */
} denied[] = {
#define DENY(call, why)             \
	{                           \
		SCMP_SYS(call), why \
	}
    DENY(kexec_load, "replaces the running kernel"),
    DENY(kexec_file_load, "replaces the running kernel"),
    DENY(init_module, "loads kernel code"),
    DENY(finit_module, "loads kernel code"),
    DENY(delete_module, "unloads kernel code"),
    DENY(bpf, "kernel programs; no verb needs them"),
    DENY(perf_event_open, "kernel attack surface, sees other processes"),
    DENY(userfaultfd, "used to win kernel races"),
    DENY(io_uring_setup, "would pass the network filter by, large attack surface"),
    DENY(io_uring_enter, "as io_uring_setup"),
    DENY(io_uring_register, "as io_uring_setup"),
#ifndef __SANITIZE_ADDRESS__ /* the leak checker of test builds traces itself */
    DENY(ptrace, "reads and changes other processes"),
#endif
    DENY(process_vm_readv, "reads other processes"),
    DENY(process_vm_writev, "changes other processes"),
    DENY(pidfd_getfd, "takes descriptors of other processes"),
    DENY(kcmp, "compares other processes' kernel objects"),
    DENY(add_key, "kernel keyrings are shared beyond the sandbox"),
    DENY(request_key, "as add_key"),
    DENY(keyctl, "as add_key"),
    DENY(open_by_handle_at, "opens files around folder permissions"),
    DENY(mount, "changes what paths mean"),
    DENY(umount2, "as mount"),
    DENY(pivot_root, "as mount"),
    DENY(unshare, "namespaces hide processes and change what paths mean"),
    DENY(setns, "as unshare"),
    DENY(move_mount, "as mount"),
    DENY(open_tree, "as mount"),
    DENY(fsopen, "as mount"),
    DENY(fsmount, "as mount"),
    DENY(fsconfig, "as mount"),
    DENY(fspick, "as mount"),
    DENY(mount_setattr, "as mount"),
    DENY(swapon, "memory to disk"),
    DENY(swapoff, "as swapon"),
    DENY(reboot, "stops the host"),
    DENY(settimeofday, "moves the clock that expiry is judged by"),
    DENY(clock_settime, "as settimeofday"),
    DENY(clock_adjtime, "as settimeofday"),
    DENY(adjtimex, "as settimeofday"),
    DENY(acct, "process accounting"),
    DENY(quotactl, "disk quotas"),
    DENY(quotactl_fd, "disk quotas"),
    DENY(iopl, "hardware ports"),
    DENY(ioperm, "hardware ports"),
    DENY(lookup_dcookie, "profiling leftovers"),
    DENY(nfsservctl, "removed from the kernel"),
    DENY(syslog, "the kernel's log and its addresses"),
    DENY(vhangup, "hangs up terminals"),
#undef DENY
};

/* clone(2) with any CLONE_NEW* is as unshare; clone3(2) hides its flags from a filter, and
 * everybody falls back to clone when there is none. */
static int deny_namespaces(scmp_filter_ctx ctx)
{
	static const unsigned flags[] = {CLONE_NEWNS,	CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
					 CLONE_NEWUSER, CLONE_NEWPID,	 CLONE_NEWNET};
	int r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	for (size_t i = 0; r == 0 && i < ARRAY_LEN(flags); i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1,
				     SCMP_A0_64(SCMP_CMP_MASKED_EQ, flags[i], flags[i]));
	return r;
}

int sandbox_enter(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	if (!ctx)
		return -ENOMEM;
	int r = 0;
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(denied); i++)
		if (denied[i].number >= 0) /* below 0: not on this machine */
			r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), denied[i].number, 0);
	if (r == 0)
		r = deny_namespaces(ctx);
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r;
}

int sandbox_deny_network(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);
	if (!ctx)
		return -ENOMEM;
	const struct scmp_arg_cmp not_unix = {
	    .arg = 0, .op = SCMP_CMP_NE, .datum_a = AF_UNIX, .datum_b = 0};
	int r = seccomp_rule_add_array(ctx, SCMP_ACT_ERRNO(EAFNOSUPPORT), SCMP_SYS(socket), 1,
				       &not_unix);
	if (r == 0)
		r = seccomp_load(ctx);
	seccomp_release(ctx);
	return r;
}

/* ---- writable paths: landlock(7); glibc has no calls for it ---- */

/* What Landlock knows as changing files; later versions know more, and what a version does not
 * know must not be asked for. */
#define WRITES_V1                                                        \
	(LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR | \
	 LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR | \
	 LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |     \
	 LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |   \
	 LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM)
#define REFER_V2    (UINT64_C(1) << 13)
#define TRUNCATE_V3 (UINT64_C(1) << 14)

static long landlock_version(void)
{
	return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

bool sandbox_can_limit_writes(void)
{
	return landlock_version() > 0;
}

static int allow_below(int ruleset, const char *path, uint64_t writes)
{
	struct landlock_path_beneath_attr rule = {.allowed_access = writes};
	struct stat st;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return errno == ENOENT ? 0 : -errno;
	int r = fstat(rule.parent_fd, &st) < 0 ? -errno : 0;
	if (r == 0 && !S_ISDIR(st.st_mode))
		rule.allowed_access &= LANDLOCK_ACCESS_FS_WRITE_FILE | TRUNCATE_V3;
	if (r == 0 &&
	    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		r = -errno;
	close(rule.parent_fd);
	return r;
}

int sandbox_limit_writes(char *const *paths)
{
	static const char *const always[] = {"/tmp", "/var/tmp", "/dev/null", "/dev/zero",
					     "/dev/full"};
	long version = landlock_version();
	struct landlock_ruleset_attr attr = {.handled_access_fs = WRITES_V1};

	if (version < 1)
		return errno == ENOSYS || errno == EOPNOTSUPP ? -EOPNOTSUPP : -errno;
	attr.handled_access_fs |= version >= 2 ? REFER_V2 : 0;
	attr.handled_access_fs |= version >= 3 ? TRUNCATE_V3 : 0;
	int set = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
	if (set < 0)
		return -errno;
	int r = 0;
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(always); i++)
		r = allow_below(set, always[i], attr.handled_access_fs);
	for (; r == 0 && *paths; paths++)
		r = allow_below(set, *paths, attr.handled_access_fs);
	if (r == 0 && syscall(SYS_landlock_restrict_self, set, 0) < 0)
		r = -errno;
	close(set);
	return r;
}

/* ---- capabilities ---- */

static const char *const capability_names[] = {
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
};

int sandbox_capability(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(capability_names); i++)
		if (strcmp(name, capability_names[i]) == 0)
			return (int)i;
	return -1;
}

/* Permitted is all that an execve under NoNewPrivileges may leave to root; who is not root keeps
 * what is ambient. The bounding set is cut as well where we may. */
int sandbox_keep_capabilities(char *const *names)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	bool ambient = getuid() != 0;
	uint64_t keep = 0;

	for (; *names; names++) {
		int cap = sandbox_capability(*names);
		if (cap < 0)
			return -EINVAL;
		keep |= UINT64_C(1) << cap;
	}
	if (syscall(SYS_capget, &head, data) < 0)
		return -errno;
	for (int cap = 0; cap < 64; cap++)
		if (!(keep >> cap & 1))
			(void)prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	for (int half = 0; half < 2; half++) {
		uint32_t mask = (uint32_t)(keep >> (32 * half));
		data[half].permitted &= mask;
		data[half].effective = data[half].permitted;
		data[half].inheritable &= mask;
		if (ambient)
			data[half].inheritable = data[half].permitted;
	}
	if (syscall(SYS_capset, &head, data) < 0)
		return -errno;
	for (int cap = 0; ambient && cap < 64; cap++)
		if (data[cap / 32].permitted >> (cap % 32) & 1 &&
		    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
			return -errno;
	return 0;
}
