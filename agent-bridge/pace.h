/*
 * How far apart the loop's turns are: frames that come thick wait for each other, so that a turn
 * finds several and the rest of it is shared; few are taken at once. Pure: the caller has the loop.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACE_FOR_MS	80
#define PACE_READ_BYTES 1024 /* what is read from a socket at once */

struct pace { /* all zero at first */
	int64_t window;
	unsigned frames;     /* received in the window */
	unsigned us;	     /* by the window before */
	unsigned hurried_us; /* the same for a loop that hurries */
	const void *socket;  /* that was read last, how much, and when */
	size_t read;
	int64_t read_ms;
};

/* A frame came: turns are to be this many microseconds apart for the next PACE_FOR_MS; 0: as they
 * are. */
unsigned pace_on_frame(struct pace *p, int64_t now_ms);
/* A whole frame or a part of one came from a socket (only compared). true: there is more in it, so
 * that nothing is gained by waiting. */
bool pace_on_read(struct pace *p, const void *socket, size_t n, int64_t now_ms);
