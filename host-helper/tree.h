/* Process trees: finding and ending every descendant of a run. Reads /proc. */
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

/* Sends sig to every descendant of `root` (not root itself); gives how many there were. Orphans
 * count because the supervisor is their subreaper. */
size_t tree_signal(pid_t root, int sig);
/* Stops all descendants first, so that none can fork away, then kills them. */
void tree_kill(pid_t root);

/*
 * After a supervisor died: kills what is left of its run, found by VIW_RUN_ID in its environment or
 * by being in the session `sid` whose leader started at sid_start (0, 0: environment only). True
 * when nothing is left.
 */
bool tree_kill_run(const char *run_id, pid_t sid, uint64_t sid_start);
