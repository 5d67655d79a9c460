/*
 * How many attempts a minute one key (address, agent) may make. A key may burst its whole minute
 * at once and then gets them back evenly (GCRA: ITU-T I.371, virtual scheduling). Fixed memory:
 * when too many keys are in use, the one closest to being forgotten goes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct ratelimit;

/* keys: how many are remembered; 16 bytes each. */
int ratelimit_new(size_t keys, struct ratelimit **ret) MUST_CHECK;
void ratelimit_free(struct ratelimit *r);
/* Counts one attempt. 0: allowed; else seconds until the next one is (at least 1), not counted. */
int ratelimit_take(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
		   int64_t now_ms) MUST_CHECK;
/* The same for several at once, at most a minute's worth. */
int ratelimit_take_many(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
			int64_t many, int64_t now_ms) MUST_CHECK;
/* Whether so many would be allowed; counts nothing. */
bool ratelimit_allows(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
		      int64_t many, int64_t now_ms);
