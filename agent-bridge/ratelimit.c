#include "ratelimit.h"

#include <errno.h>
#include <stdlib.h>

#include "base/ident.h"

#define WAYS	  4
#define MINUTE_US (60 * INT64_C(1000000))

struct slot {
	uint64_t tag;	/* hash of the key; 0: empty */
	int64_t tat_us; /* theoretical arrival time: when the key is quite fresh again */
};

struct ratelimit {
	uint64_t seed;
	size_t sets; /* a power of two */
	struct slot slot[];
};

int ratelimit_new(size_t keys, struct ratelimit **ret)
{
	struct ratelimit *r;
	size_t sets = 1;

	while (sets * WAYS < keys)
		sets *= 2;
	r = calloc(1, sizeof(*r) + sets * WAYS * sizeof(r->slot[0]));
	if (!r)
		return -ENOMEM;
	r->seed = ident_random_u64();
	r->sets = sets;
	*ret = r;
	return 0;
}

void ratelimit_free(struct ratelimit *r)
{
	free(r);
}

/* FNV-1a over a secret seed, then murmur3's finaliser: peers cannot aim at one set. */
static uint64_t hash(uint64_t seed, const unsigned char *p, size_t n)
{
	uint64_t h = seed ^ UINT64_C(14695981039346656037);

	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * UINT64_C(1099511628211);
	h ^= h >> 33;
	h *= UINT64_C(0xff51afd7ed558ccd);
	h ^= h >> 33;
	h *= UINT64_C(0xc4ceb9fe1a85ec53);
	h ^= h >> 33;
	return h ? h : 1;
}

static struct slot *slot_of(struct ratelimit *r, uint64_t tag)
{
	struct slot *set = &r->slot[(tag & (r->sets - 1)) * WAYS], *oldest = set;

	for (size_t i = 0; i < WAYS; i++) {
		if (set[i].tag == tag)
			return &set[i];
		if (set[i].tat_us < oldest->tat_us)
			oldest = &set[i];
	}
	*oldest = (struct slot){.tag = tag};
	return oldest;
}

/* The tat_us after so many more; *ret_over_us > 0: too late by that. */
static int64_t after(const struct slot *s, int64_t per_minute, int64_t many, int64_t now_ms,
		     int64_t *ret_over_us)
{
	int64_t now_us = now_ms * 1000, from_us = s->tat_us > now_us ? s->tat_us : now_us;
	int64_t tat_us = from_us + MINUTE_US / per_minute * (many < per_minute ? many : per_minute);

	*ret_over_us = tat_us - MINUTE_US - now_us;
	return tat_us;
}

int ratelimit_take_many(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
			int64_t many, int64_t now_ms)
{
	struct slot *s = slot_of(r, hash(r->seed, key, n));
	int64_t over_us, tat_us = after(s, per_minute, many, now_ms, &over_us);

	if (over_us > 0)
		return (int)((over_us + 999999) / 1000000);
	s->tat_us = tat_us;
	return 0;
}

int ratelimit_take(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
		   int64_t now_ms)
{
	return ratelimit_take_many(r, key, n, per_minute, 1, now_ms);
}

bool ratelimit_allows(struct ratelimit *r, const void *key, size_t n, int64_t per_minute,
		      int64_t many, int64_t now_ms)
{
	int64_t over_us;

	(void)after(slot_of(r, hash(r->seed, key, n)), per_minute, many, now_ms, &over_us);
	return over_us <= 0;
}
