/* The entries of one read of a stream command, as they stand in its reply. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "redis/streams.h"

struct intake_entry {
	unsigned stream; /* index into the intake's */
	struct stream_entry e;
	bool large; /* more than may be read: only its id is known */
};
struct entries {
	struct intake_entry *item;
	size_t n, cap;
	size_t bytes;
	uint64_t serial; /* of this filling; 0: none */
};

void entries_fini(struct entries *l);
void entries_clear(struct entries *l, uint64_t serial);
/* One that is too large to read; id must live as long as the list is used. -ENOMEM. */
int entries_take_large(struct entries *l, unsigned stream, struct span id) MUST_CHECK;
/* Appends an array of entries of one stream. One without a body was trimmed or deleted while
 * pending: it is acknowledged with the batch and counted in *lost, for that is data nobody stored.
 * -EBADMSG, -ENOMEM. */
int entries_take(struct entries *l, unsigned stream, const struct redis_reply *array,
		 uint64_t *lost) MUST_CHECK;
