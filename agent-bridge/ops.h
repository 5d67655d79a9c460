/*
 * Writes that must not be lost: a capped queue of Redis commands, each repeated until Redis has
 * answered for good. Order of first sending is kept, also over a reconnect.
 *
 * An op is WAITING (in `again` when it has been sent before, else in `fresh`) or FLYING.
 */
#pragma once

#include "redis/redis.h"
#include "scripts.h"

struct op;
struct op_list {
	struct op *first, *last;
};
struct ops {
	struct op_list fresh, again, flying;
	size_t count, bytes, max_bytes;
	struct redis *redis;
	void (*on_passing)(void *arg, enum redis_error_class c);
	void (*on_answer)(void *arg); /* an op was answered for good */
	void *arg;
	bool closed;
};

void ops_init(struct ops *q, size_t max_bytes);
/* done(arg, NULL) for each. */
void ops_fini(struct ops *q);
/* script SCRIPT_NONE: a plain command. Copies. -ENOBUFS, -ENOMEM. */
int ops_add(struct ops *q, enum script script, size_t argc, const struct span *argv, redis_cb done,
	    void *arg) MUST_CHECK;
/* Sends waiting ops while the connection takes them, at most `max`. */
void ops_pump(struct ops *q, size_t max);
