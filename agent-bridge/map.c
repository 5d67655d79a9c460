/* Chained hashing with a random seed, so that agent ids cannot be chosen to collide. */
#include "map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/ident.h"

static uint64_t seed(void)
{
	static uint64_t s;

	while (!s)
		s = ident_random_u64();
	return s;
}

/* Finalizer of MurmurHash3 (Austin Appleby, public domain). */
uint64_t map_hash_u64(uint64_t v)
{
	v ^= seed();
	v ^= v >> 33;
	v *= 0xff51afd7ed558ccdULL;
	v ^= v >> 33;
	v *= 0xc4ceb9fe1a85ec53ULL;
	return v ^ (v >> 33);
}

uint64_t map_hash_str(const char *s)
{
	uint64_t h = seed();

	for (; *s; s++)
		h = (h ^ (uint8_t)*s) * 0x100000001b3ULL; /* FNV-1a's prime */
	return map_hash_u64(h);
}

int map_grow(struct map *m)
{
	size_t n = m->buckets ? m->buckets * 2 : 64;
	struct map_link **bucket;

	if (m->count < m->buckets)
		return 0;
	bucket = calloc(n, sizeof(struct map_link *));
	if (!bucket)
		return -ENOMEM;
	for (size_t i = 0; i < m->buckets; i++) {
		struct map_link *next;

		for (struct map_link *l = m->bucket[i]; l; l = next) {
			next = l->next;
			l->next = bucket[l->hash & (n - 1)];
			bucket[l->hash & (n - 1)] = l;
		}
	}
	free((void *)m->bucket);
	m->bucket = bucket;
	m->buckets = n;
	return 0;
}

void map_put(struct map *m, struct map_link *l, uint64_t hash)
{
	struct map_link **at = &m->bucket[hash & (m->buckets - 1)];

	l->hash = hash;
	l->next = *at;
	*at = l;
	m->count++;
}

void map_remove(struct map *m, struct map_link *l)
{
	if (!m->buckets)
		return;
	for (struct map_link **at = &m->bucket[l->hash & (m->buckets - 1)]; *at; at = &(*at)->next)
		if (*at == l) {
			*at = l->next;
			m->count--;
			return;
		}
}

struct map_link *map_first(const struct map *m, uint64_t hash)
{
	struct map_link *l = m->buckets ? m->bucket[hash & (m->buckets - 1)] : NULL;

	while (l && l->hash != hash)
		l = l->next;
	return l;
}

struct map_link *map_next(const struct map_link *l)
{
	uint64_t hash = l->hash;

	for (l = l->next; l && l->hash != hash;)
		l = l->next;
	return (struct map_link *)(uintptr_t)l;
}

void map_fini(struct map *m)
{
	free((void *)m->bucket);
	memset(m, 0, sizeof(*m));
}
