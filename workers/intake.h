/*
 * A worker's side of Redis: one consumer of one group on several streams.
 *
 * Connections: two that read by turns (a batch's entries live in its reader's last reply; under
 * load the other is asked for the next batch meanwhile, and read in little steps), one that
 * acknowledges, keeps alive and asks. After a start and after every trouble with Redis the
 * consumer's own pending entries (id 0) come first, then those a dead consumer left (XAUTOCLAIM),
 * then new ones. So an entry whose acknowledgement was lost is read again: what is made of it must
 * be idempotent.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "entries.h"

enum { INTAKE_STREAMS_MAX = 6, INTAKE_COUNT_MAX = 10000 };

struct intake;
struct intake_config {
	const char *redis_url, *group, *consumer;
	const char *stream[INTAKE_STREAMS_MAX]; /* full names; NULL ends them */
	size_t batch_max;			/* entries of one read and stream */
	int64_t join_ms; /* what comes this soon after an entry of the first stream is read with it;
			    0: not */
};
/* Valid until the next intake_read; one looked at ahead until the read after that. */
struct intake_batch {
	const struct intake_entry *item;
	size_t n;
	size_t bytes;
	uint64_t serial; /* the same entries read once: a batch looked at ahead keeps its own */
	bool full;	 /* more was waiting */
};

int intake_new(const struct intake_config *c, struct intake **ret) MUST_CHECK;
void intake_free(struct intake *in);
/* Waits at most block_ms for entries; 0 (n may be 0), or -errno when Redis is away or refuses:
 * intake_error says why, calling again tries again. */
int intake_read(struct intake *in, int64_t block_ms, struct intake_batch *ret) MUST_CHECK;
/* Under load the next batch is on its way while this one is written: takes some of it, without
 * waiting. 1: *ret is what a later intake_read will give, if no trouble comes between; 0: not all
 * is there, call again; -EAGAIN: when *ret_fd is readable; -ENOENT: none. */
int intake_look_ahead(struct intake *in, struct intake_batch *ret, int *ret_fd) MUST_CHECK;
/* After the commit. A failure is healed by reading the entries again. */
int intake_ack(struct intake *in, const struct intake_batch *b) MUST_CHECK;
/* Entries of a batch that takes long stay ours, and those looked at ahead. 1: asked Redis; 0: did
 * so less than a second ago.
 */
int intake_keep_alive(struct intake *in, const struct intake_batch *b) MUST_CHECK;
/* More than n entries were too much for the database: the next batches are smaller, and grow
 * slowly. */
void intake_limit(struct intake *in, size_t n);
const char *intake_error(const struct intake *in);
/* Entries that were trimmed or deleted before this group had stored them; per stream, then zeroed.
 */
uint64_t intake_take_lost(struct intake *in, unsigned stream);
/* The second connection, for chores; never blocked in a read. */
struct redis_sync *intake_control(struct intake *in);
/* How often the connection was made anew: a change asks for a look at what Redis lost. */
uint64_t intake_generation(const struct intake *in);
/* Drops consumers of the group that hold nothing and were idle longer. */
void intake_forget_idle_consumers(struct intake *in, int64_t idle_ms);
const char *intake_stream_name(const struct intake *in, unsigned stream);
size_t intake_streams(const struct intake *in);
const char *intake_group(const struct intake *in);
