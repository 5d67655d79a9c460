/* Hash maps with the link inside the element: by number or by text. Owns nothing but its buckets.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct map_link {
	struct map_link *next;
	uint64_t hash;
};
struct map {
	struct map_link **bucket;
	size_t buckets, count;
};

uint64_t map_hash_u64(uint64_t v);
uint64_t map_hash_str(const char *s);

/* Room for one more; call before map_put. -ENOMEM. */
int map_grow(struct map *m) MUST_CHECK;
void map_put(struct map *m, struct map_link *l, uint64_t hash);
void map_remove(struct map *m, struct map_link *l);
/* The first link with this hash, or NULL; map_next: the following one. Compare keys yourself. */
struct map_link *map_first(const struct map *m, uint64_t hash);
struct map_link *map_next(const struct map_link *l);
void map_fini(struct map *m);
