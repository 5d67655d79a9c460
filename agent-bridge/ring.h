/*
 * The last telemetry frames of each agent, in memory. One budget in bytes for the whole process:
 * over it the oldest frame of all goes, whoever's it is. A ring is embedded in its session.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct ring_frame {
	struct ring_frame *next;		/* newer, same ring */
	struct ring_frame *all_prev, *all_next; /* by age, all rings */
	struct ring *owner;
	uint32_t n, cap;
	char bytes[];
};

struct ring {
	struct ring_frame *oldest, *newest;
	size_t n;
};

struct rings {
	struct ring_frame *oldest, *newest;
	size_t max_frames, max_bytes; /* per ring; in all, with overhead */
	size_t bytes;
	uint64_t evicted; /* frames that went because of max_bytes */
};

void rings_init(struct rings *all, size_t max_frames, size_t max_bytes);
/* Keeps a copy, or not when there is no memory or no room at all. */
void ring_add(struct rings *all, struct ring *r, const char *bytes, size_t n);
/* Before a frame is looked at: the memory that ring_add will write comes into the cache meanwhile.
 */
void ring_warm(const struct ring *r);
void ring_clear(struct rings *all, struct ring *r);
/* Everything of `from` becomes `to`'s, which must be empty. */
void ring_move(struct ring *from, struct ring *to);
