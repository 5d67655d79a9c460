/*
 * Places where a process may be made to die, for tests/chaos. Compiled only with the CMake option
 * VIW_CRASH_POINTS (preset chaos), never shipped; otherwise all of this is nothing.
 *
 *   CRASH_POINT("bridge.route.before_ack");
 *
 * Environment of such a build:
 *   VIW_CRASH_POINT  "name" or "name:n": SIGKILL to itself at the n-th passing of that point
 *   VIW_CRASH_ARM    the same at run time: a file of 128 bytes, shared: int64 passings to go (host
 *                    order, 0: not armed), then the name; who takes it from 1 to 0 dies
 *   VIW_CRASH_LOG    a file that exists; "pass <name> <pid>" is appended at the first passing of
 * every point, "crash <name> <pid>" before dying VIW_CRASH_OFF    words, comma-separated: promises
 * kept no more, so that the chaos harness can prove that it notices: CRASH_OFF("journal")
 *   VIW_CLOCK_FILE   a file of 8 bytes (int64, host order) that is added, in ms, to the wall clock;
 *                    shared, so it can jump while the process runs
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef VIW_CRASH_POINTS
void crash_point(const char *name);
bool crash_off(const char *word);
int64_t crash_clock_shift_ms(void);
#define CRASH_POINT(name) crash_point(name)
#define CRASH_OFF(word)	  crash_off(word)
#else
#define CRASH_POINT(name) ((void)0)
#define CRASH_OFF(word)	  false
#endif
