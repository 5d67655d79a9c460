/* Memory of one batch: bytes copied out of a decoder's scratch, all given back at once. */
#pragma once

#include <stddef.h>

#include "wire/json_scan.h"

/* What a stage function says where memory was missing: that makes no dead letter. */
extern const char no_memory[];

struct arena_block;
struct arena {
	struct arena_block *block; /* newest first */
	int err;		   /* sticky -ENOMEM */
};
void arena_init(struct arena *a);
/* Keeps one block for the next batch. */
void arena_clear(struct arena *a);
void arena_fini(struct arena *a);
/* NULL without memory. Aligned for anything. */
void *arena_alloc(struct arena *a, size_t n);
/* Absent stays absent. */
struct span arena_copy(struct arena *a, struct span s);
