/* Stream entries as the contract names them; used by bridge (router) and workers. */
#pragma once

#include "redis/redis.h"

struct stream_entry {
	struct span id;
	const struct redis_reply *fields; /* flat array field, value, …; NULL: deleted or trimmed */
};
/* One entry of an XRANGE/XREADGROUP/XCLAIM answer; -EBADMSG. */
int stream_entry_parse(const struct redis_reply *r, struct stream_entry *ret) MUST_CHECK;
/* Absent: p NULL. */
struct span stream_field(const struct stream_entry *e, const char *name);
/* XREADGROUP for one stream: its entries array, or NULL when none. */
const struct redis_reply *stream_read_entries(const struct redis_reply *r);
/* Milliseconds part of an entry id, INT64_MAX at most. -EINVAL. */
int stream_id_ms(struct span id, int64_t *ret_ms) MUST_CHECK;
/* When an entry was added: what its id says, or now when that is more than a day ahead. Whoever
 * adds entries may choose their ids, and Redis counts on from the highest. -EINVAL. */
int stream_entry_ms(struct span id, int64_t *ret_wall_ms) MUST_CHECK;
