#include "arena.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 64 << 10 };

struct arena_block {
	struct arena_block *older;
	size_t used, size;
	alignas(max_align_t) char bytes[];
};

const char no_memory[] = "no_memory";

void arena_init(struct arena *a)
{
	*a = (struct arena){0};
}

static void arena_free_until(struct arena *a, const struct arena_block *keep)
{
	while (a->block != keep) {
		struct arena_block *older = a->block->older;
		free(a->block);
		a->block = older;
	}
}

void arena_clear(struct arena *a)
{
	struct arena_block *first = a->block;

	while (first && first->older)
		first = first->older;
	if (first && first->size > BLOCK_BYTES)
		first = NULL;
	arena_free_until(a, first);
	if (a->block)
		a->block->used = 0;
	a->err = 0;
}

void arena_fini(struct arena *a)
{
	arena_free_until(a, NULL);
}

void *arena_alloc(struct arena *a, size_t n)
{
	n = (n + alignof(max_align_t) - 1) & ~(alignof(max_align_t) - 1);
	if (!a->block || a->block->size - a->block->used < n) {
		size_t size = n > BLOCK_BYTES ? n : BLOCK_BYTES;
		struct arena_block *b = malloc(sizeof *b + size);
		if (!b) {
			a->err = -ENOMEM;
			return NULL;
		}
		*b = (struct arena_block){.older = a->block, .size = size};
		a->block = b;
	}
	void *at = a->block->bytes + a->block->used;
	a->block->used += n;
	return at;
}

struct span arena_copy(struct arena *a, struct span s)
{
	if (!s.p)
		return s;
	char *at = arena_alloc(a, s.n + 1);
	if (!at)
		return (struct span){0};
	if (s.n)
		memcpy(at, s.p, s.n);
	at[s.n] = '\0';
	return (struct span){at, s.n};
}
