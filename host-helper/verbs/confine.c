#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int allow(int ruleset, const char *path)
{
	struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE};
	int r = 0;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return errno == ENOENT || errno == EACCES ? 0 : -errno;
	if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		r = -errno;
	close(rule.parent_fd);
	return r;
}

int confine_reads(const char *const *paths)
{
	/* What libsystemd reads beside journals: who it is, random numbers, libraries it loads when
	 * it meets what they compressed. */
	static const char *const always[] = {
	    "/etc/machine-id", "/etc/ld.so.cache", "/usr", "/lib", "/lib64",
	    "/proc",	       "/dev/urandom",	   NULL};
	struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE};

	int set = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
	if (set < 0)
		return errno == ENOSYS || errno == EOPNOTSUPP ? 0 : -errno;
	int r = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
	for (const char *const *p = always; r == 0 && *p; p++)
		r = allow(set, *p);
	for (; r == 0 && *paths; paths++)
		r = allow(set, *paths);
	if (r == 0 && syscall(SYS_landlock_restrict_self, set, 0) < 0)
		r = -errno;
	close(set);
	return r;
}
