/*
 * How far apart the loop's turns are: frames that come thick wait for each other, so that a turn
 * finds several and the rest of it is shared; few are taken at once, and everything comes sooner
 * for a while after a command left for its agent. Pure: the caller has the loop.
 */
#pragma once

#include <stdint.h>

#define PACE_FOR_MS 32

struct pace { /* all zero at first */
	int64_t window, until_ms, brisk_until_ms;
	unsigned frames; /* received in the window */
	unsigned us;	 /* by the window before */
};

/* A frame came, a command leaves: turns are to be this many microseconds apart for the next
 * PACE_FOR_MS; 0: as they are. */
unsigned pace_on_frame(struct pace *p, int64_t now_ms);
unsigned pace_on_command(struct pace *p, int64_t now_ms);
