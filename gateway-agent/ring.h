/* TELEMETRY frames kept while there is no connection: a bounded queue of texts that drops its
 * oldest when full and remembers what was dropped, so that the gap can be declared. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct ring_gap {
	uint64_t frames, first_seq, last_seq; /* frames 0: no gap */
};
struct ring_item {
	char *text;
	size_t n;
	uint64_t seq;
	struct ring_gap declares; /* the gap told in this frame: lost with it, so counted again */
};
struct ring {
	struct ring_item *item;
	size_t cap, head, count;
	size_t bytes, max_bytes;
	struct ring_gap gap;
};

int ring_init(struct ring *r, size_t max_frames, size_t max_bytes) MUST_CHECK;
void ring_fini(struct ring *r);
/* Copies. Drops the oldest until it fits; a frame larger than max_bytes is dropped itself. declares
 * may be NULL. Returns how many frames were dropped, or -ENOMEM (then this frame is lost: counted).
 */
int ring_push(struct ring *r, const char *text, size_t n, uint64_t seq,
	      const struct ring_gap *declares) MUST_CHECK;
/* The oldest, or NULL. Valid until ring_pop or ring_push. */
const struct ring_item *ring_oldest(const struct ring *r);
void ring_pop(struct ring *r);
/* What was dropped since the last call. */
struct ring_gap ring_take_gap(struct ring *r);
