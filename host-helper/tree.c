/* Process trees by way of /proc. */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/grow.h"

struct proc {
	pid_t pid, ppid, sid;
	char state;
	uint64_t start;
	bool marked;
};

struct procs {
	struct proc *item;
	size_t n, cap;
};

static ssize_t read_small(const char *path, char *out, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, out, cap - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	if (n >= 0)
		out[n] = 0;
	return n;
}

/* Whoever has gone meanwhile, or is not ours to read, is passed over. After any other error nobody
 * knows what there is: it must not look like nothing. */
static int passed_over(ssize_t r)
{
	return r >= 0 || r == -ENOENT || r == -ESRCH || r == -EACCES || r == -EPERM ? 0 : (int)r;
}

/* 1; 0: passed over. */
static int read_stat(pid_t pid, struct proc *ret)
{
	char path[40], text[1024];
	unsigned long long start;
	int ppid, sid;
	char state;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	ssize_t n = read_small(path, text, sizeof text);
	if (n <= 0)
		return passed_over(n);
	const char *p = strrchr(text, ')'); /* the name before it may hold anything */
	if (!p || sscanf(p + 1,
			 " %c %d %*d %d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
			 "%*d %llu",
			 &state, &ppid, &sid, &start) != 4)
		return 0;
	*ret = (struct proc){.pid = pid, .ppid = ppid, .sid = sid, .state = state, .start = start};
	return 1;
}

uint64_t tree_start_time(pid_t pid)
{
	struct proc p;

	return read_stat(pid, &p) == 1 ? p.start : 0;
}

int tree_boot_id(char *out)
{
	char text[64];

	if (read_small("/proc/sys/kernel/random/boot_id", text, sizeof text) < 36)
		return -EIO;
	memcpy(out, text, 36);
	out[36] = 0;
	return 0;
}

static int add(struct procs *all, const struct proc *p)
{
	int r = grow(&all->item, all->n, &all->cap, 256, sizeof *all->item);

	if (r == 0)
		all->item[all->n++] = *p;
	return r;
}

/* A /proc that does not even hold us is none. */
static int read_all(struct procs *all)
{
	DIR *d = opendir("/proc");
	bool has_us = false;
	struct proc p;
	int r = 0;

	if (!d)
		return -errno;
	for (struct dirent *e; r >= 0 && (e = readdir(d));) {
		int pid = (int)strtol(e->d_name, NULL, 10);
		r = pid > 0 ? read_stat(pid, &p) : 0;
		if (r == 1)
			r = add(all, &p);
		has_us |= pid == getpid();
	}
	closedir(d);
	return r < 0 ? r : has_us ? 0 : -ENOENT;
}

static bool is_marked(const struct procs *all, pid_t pid)
{
	for (size_t i = 0; i < all->n; i++)
		if (all->item[i].pid == pid)
			return all->item[i].marked;
	return false;
}

/* Marks descendants of root and of what is marked, by passes over the list until nothing changes;
 * depth of a tree is small. */
static size_t mark_descendants(struct procs *all, pid_t root)
{
	size_t count = 0;
	bool changed = true;

	while (changed) {
		changed = false;
		for (size_t i = 0; i < all->n; i++) {
			struct proc *p = &all->item[i];
			if (p->marked || (p->ppid != root && !is_marked(all, p->ppid)))
				continue;
			p->marked = changed = true;
			count++;
		}
	}
	return count;
}

static size_t signal_marked(const struct procs *all, int sig)
{
	size_t alive = 0;

	for (size_t i = 0; i < all->n; i++)
		if (all->item[i].marked && all->item[i].state != 'Z') {
			alive++;
			(void)kill(all->item[i].pid, sig);
		}
	return alive;
}

/* ---- descendants, by the lists of children: quicker than whoever forks on and on ---- */

struct pids {
	pid_t *item;
	size_t n, cap;
};

/* One read(2) gives a page of the list at most. */
static int add_list(struct pids *out, const char *path)
{
	FILE *f = fopen(path, "re");
	int pid, r = f ? 0 : passed_over(-errno);

	while (f && r == 0 && fscanf(f, "%d", &pid) == 1) {
		r = grow(&out->item, out->n, &out->cap, 256, sizeof *out->item);
		if (r == 0)
			out->item[out->n++] = pid;
	}
	if (f && r == 0 && ferror(f))
		r = passed_over(-errno);
	if (f)
		fclose(f);
	return r;
}

/* Each thread has a list of its own. We ourselves cannot be gone. */
static int add_children(struct pids *out, pid_t pid)
{
	char path[64];
	int r = 0;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	if (!d)
		return pid == getpid() ? -errno : passed_over(-errno);
	for (struct dirent *e; r == 0 && (e = readdir(d));) {
		long tid = strtol(e->d_name, NULL, 10);
		snprintf(path, sizeof path, "/proc/%d/task/%ld/children", (int)pid, tid);
		r = tid > 0 ? add_list(out, path) : 0;
	}
	closedir(d);
	return r;
}

/* For kernels without CONFIG_PROC_CHILDREN. */
static ssize_t signal_by_search(pid_t root, int sig)
{
	struct procs all = {0};
	int r = read_all(&all);

	mark_descendants(&all, root);
	size_t n = signal_marked(&all, sig);
	free(all.item);
	return r < 0 ? r : (ssize_t)n;
}

ssize_t tree_signal(pid_t root, int sig)
{
	struct pids below = {0};

	if (access("/proc/thread-self/children", R_OK) < 0)
		return signal_by_search(root, sig);
	int r = add_children(&below, root);
	for (size_t i = 0; i < below.n; i++) {
		int below_it = add_children(&below, below.item[i]);
		r = r < 0 ? r : below_it;
		(void)kill(below.item[i], sig);
	}
	size_t n = below.n;
	free(below.item);
	return r < 0 ? r : (ssize_t)n;
}

int tree_kill(pid_t root)
{
	ssize_t before = 0;

	for (int pass = 0; pass < 64; pass++) {
		ssize_t n = tree_signal(root, SIGSTOP);
		if (n == before)
			break;
		before = n;
	}
	ssize_t n = tree_signal(root, SIGKILL);
	return n < 0 ? (int)n : 0;
}

/* 1, 0, -errno. */
static int has_run_id(pid_t pid, const char *run_id)
{
	char path[40], *text = malloc(262144), want[64];

	snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
	int n = snprintf(want, sizeof want, "VIW_RUN_ID=%s", run_id);
	ssize_t got = text ? read_small(path, text, 262144) : -ENOMEM;
	int r = got > 0 ? memmem(text, (size_t)got, want, (size_t)n) != NULL : passed_over(got);
	free(text);
	return r;
}

static bool in_session(const struct procs *all, const struct proc *p, pid_t sid, uint64_t sid_start)
{
	if (sid <= 1 || p->sid != sid || p->start < sid_start)
		return false;
	for (size_t i = 0; i < all->n; i++)
		if (all->item[i].pid == sid)
			return all->item[i].start == sid_start; /* else the number was used again */
	return true;
}

static bool is_root(const struct tree_remains *r, pid_t pid)
{
	for (size_t i = 0; i < r->roots; i++)
		if (r->root[i] == pid)
			return true;
	return false;
}

/* ---- locks ---- */

struct lock {
	pid_t holder;
	unsigned long long inode;
};

static int by_inode(const void *a, const void *b)
{
	const struct lock *x = a, *y = b;

	return x->inode < y->inode ? -1 : x->inode > y->inode;
}

/* Exclusive flock(2)s of this machine, as /proc/locks tells, sorted. */
static int read_locks(struct lock **ret, size_t *ret_n)
{
	FILE *f = fopen("/proc/locks", "re");
	struct lock *all = NULL, l;
	size_t n = 0, cap = 0;
	char line[256];
	int pid, r = f ? 0 : -errno;

	while (r == 0 && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%*d: FLOCK %*s WRITE %d %*x:%*x:%llu", &pid, &l.inode) != 2)
			continue;
		r = grow(&all, n, &cap, 64, sizeof *all);
		l.holder = pid;
		if (r == 0)
			all[n++] = l;
	}
	if (r == 0 && ferror(f))
		r = -EIO;
	if (f)
		fclose(f);
	if (n)
		qsort(all, n, sizeof *all, by_inode);
	*ret = all;
	*ret_n = n;
	return r;
}

/* Supervisors are root's; the number of a journal file can be had on another device by anybody.
 * Not by who owns its folder in /proc: that is root for all that cannot be dumped. */
static bool is_of_another_user(pid_t pid)
{
	char path[40], text[4096];

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	return read_small(path, text, sizeof text) > 0 && !strstr(text, "\nUid:\t0\t");
}

int tree_each_locked(int dir, void (*each)(void *arg, const char *name, pid_t holder), void *arg)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	int r = d ? 0 : -errno;
	struct lock *all = NULL;
	size_t n = 0;

	if (r == 0)
		r = read_locks(&all, &n);
	for (struct dirent *e; r == 0 && d && n && (e = readdir(d));) {
		const struct lock want = {.inode = e->d_ino};
		const struct lock *l = bsearch(&want, all, n, sizeof *all, by_inode);
		while (l && l > all && l[-1].inode == e->d_ino)
			l--;
		for (; l && l < all + n && l->inode == e->d_ino; l++)
			if (!is_of_another_user(l->holder))
				each(arg, e->d_name, l->holder);
	}
	if (d)
		closedir(d);
	free(all);
	return r;
}

/* ---- strays: in our control group, below no live supervisor ---- */

bool tree_owns_cgroup(void)
{
	const char *pid = getenv("SYSTEMD_EXEC_PID");
	char text[4096];

	return pid && strtol(pid, NULL, 10) == getpid() &&
	       read_small("/proc/self/cgroup", text, sizeof text) > 0 &&
	       strstr(text, ".service\n") != NULL;
}

/* 1, 0, -errno. */
static int in_cgroup(pid_t pid, const char *own)
{
	char path[40], text[4096];

	snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
	ssize_t n = read_small(path, text, sizeof text);
	return n > 0 ? strcmp(text, own) == 0 : passed_over(n);
}

/* Marks a live supervisor: it holds a journal file's lock. */
static void mark_supervisor(void *arg, const char *name UNUSED, pid_t holder)
{
	struct procs *all = arg;

	for (size_t i = 0; i < all->n; i++)
		all->item[i].marked |= all->item[i].pid == holder;
}

/* Afterwards the strays are marked, and nothing else. */
static int mark_strays(struct procs *all, const struct tree_remains *r)
{
	char own[4096];
	int err = tree_each_locked(r->journal_dir, mark_supervisor, all);

	if (err < 0)
		return err;
	mark_descendants(all, r->helper);
	ssize_t n = read_small("/proc/self/cgroup", own, sizeof own);
	for (size_t i = 0; n > 0 && i < all->n; i++) {
		struct proc *p = &all->item[i];
		int in = p->marked || p->pid == r->helper ? 0 : in_cgroup(p->pid, own);
		if (in < 0)
			return in;
		p->marked = in;
	}
	return n < 0 ? (int)n : 0;
}

static int mark_remains(struct procs *all, const struct tree_remains *r)
{
	bool by_id = r->run_id && strlen(r->run_id) == 32;
	int err = r->journal_dir >= 0 ? mark_strays(all, r) : 0;

	for (size_t i = 0; err == 0 && i < all->n; i++) {
		struct proc *p = &all->item[i];
		int has_id = by_id && !p->marked ? has_run_id(p->pid, r->run_id) : 0;
		if (has_id < 0)
			err = has_id;
		p->marked |=
		    has_id == 1 || is_root(r, p->pid) || in_session(all, p, r->sid, r->sid_start);
		p->marked &= p->pid != getpid() && p->pid != r->helper;
	}
	return err;
}

int tree_kill_remains(const struct tree_remains *r)
{
	for (int pass = 0; pass < 50; pass++) {
		struct procs all = {0};
		size_t n = 0;
		int err = read_all(&all);
		if (err == 0)
			err = mark_remains(&all, r);
		if (err == 0) {
			mark_descendants(&all, -1);
			n = signal_marked(&all, pass < 3 ? SIGSTOP : SIGKILL);
		}
		free(all.item);
		if (err < 0 || n == 0)
			return err;
		if (pass >= 3)
			usleep(2000); /* SIGKILL is on its way */
	}
	return -EBUSY;
}

ssize_t tree_children(pid_t *out, size_t cap)
{
	struct pids all = {0};
	int r = add_children(&all, getpid());

	size_t n = all.n < cap ? all.n : cap;
	if (n)
		memcpy(out, all.item, n * sizeof *out);
	free(all.item);
	return r < 0 ? r : (ssize_t)n;
}
