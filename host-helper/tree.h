/* Process trees: finding and ending every descendant of a run. Reads /proc; where it cannot be
 * looked into, for want of descriptors or of a /proc, that is an error and never "nothing left". */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/macros.h"

/* Start time in clock ticks since boot (proc(5), stat field 22), 0 when there is no such process.
 */
uint64_t tree_start_time(pid_t pid);
/* This boot's id, 36 characters and a NUL. */
int tree_boot_id(char *out) MUST_CHECK;

/* Sends sig to every descendant of `root` (not root itself) that it finds; gives how many there
 * were, or -errno. Orphans count because the supervisor is their subreaper. */
ssize_t tree_signal(pid_t root, int sig);
/* Stops all descendants first, so that none can fork away, then kills them. */
int tree_kill(pid_t root) MUST_CHECK;

/* What may be left of a run whose supervisor died. */
struct tree_remains {
	const char *run_id; /* VIW_RUN_ID in an environment */
	pid_t sid;	    /* its session, whose leader started at sid_start; 0: not known */
	uint64_t sid_start;
	const pid_t *root; /* processes that fell to the helper when their supervisor died */
	size_t roots;
	int journal_dir; /* >= 0: everything in the unit's control group below no live supervisor */
	pid_t helper;	 /* this helper: what is below it is no stray */
};
/* Kills it with all descendants. 0: nothing is left; -EBUSY: something does not go. */
int tree_kill_remains(const struct tree_remains *r) MUST_CHECK;

/* True when systemd started this very process as a service: then its control group holds nothing
 * but the helper, its supervisors and their runs. */
bool tree_owns_cgroup(void);
/* Calls each for every file of the folder that root holds locked by flock(2); also for a root who
 * has locked a file of the same inode number on another device. */
int tree_each_locked(int dir, void (*each)(void *arg, const char *name, pid_t holder),
		     void *arg) MUST_CHECK;
/* The children of this process, at most cap. */
ssize_t tree_children(pid_t *out, size_t cap) MUST_CHECK;
