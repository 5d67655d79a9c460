/* See ring.h. */
#include "ring.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int ring_init(struct ring *r, size_t max_frames, size_t max_bytes)
{
	assert(max_frames > 0);
	*r = (struct ring){.cap = max_frames, .max_bytes = max_bytes};
	r->item = calloc(max_frames, sizeof *r->item);
	return r->item ? 0 : -ENOMEM;
}

void ring_fini(struct ring *r)
{
	while (r->count > 0)
		ring_pop(r);
	free(r->item);
	*r = (struct ring){0};
}

static void merge_gap(struct ring_gap *into, const struct ring_gap *g)
{
	if (g->frames == 0)
		return;
	if (into->frames == 0 || g->first_seq < into->first_seq)
		into->first_seq = g->first_seq;
	if (g->last_seq > into->last_seq)
		into->last_seq = g->last_seq;
	into->frames += g->frames;
}

static void note_dropped(struct ring *r, uint64_t seq, const struct ring_gap *declares)
{
	if (declares)
		merge_gap(&r->gap, declares);
	merge_gap(&r->gap, &(struct ring_gap){.frames = 1, .first_seq = seq, .last_seq = seq});
}

int ring_push(struct ring *r, const char *text, size_t n, uint64_t seq,
	      const struct ring_gap *declares)
{
	struct ring_item *it;
	char *copy;
	int dropped = 0;

	copy = n <= r->max_bytes ? malloc(n ? n : 1) : NULL;
	if (!copy) {
		note_dropped(r, seq, declares);
		return n <= r->max_bytes ? -ENOMEM : 1;
	}
	memcpy(copy, text, n);
	while (r->count == r->cap || (r->count > 0 && r->bytes + n > r->max_bytes)) {
		note_dropped(r, ring_oldest(r)->seq, &ring_oldest(r)->declares);
		ring_pop(r);
		dropped++;
	}
	it = &r->item[(r->head + r->count++) % r->cap];
	*it = (struct ring_item){.text = copy, .n = n, .seq = seq};
	if (declares)
		it->declares = *declares;
	r->bytes += n;
	return dropped;
}

const struct ring_item *ring_oldest(const struct ring *r)
{
	return r->count ? &r->item[r->head] : NULL;
}

void ring_pop(struct ring *r)
{
	struct ring_item *it;

	assert(r->count > 0);
	it = &r->item[r->head];
	r->bytes -= it->n;
	free(it->text);
	*it = (struct ring_item){0};
	r->head = (r->head + 1) % r->cap;
	r->count--;
}

struct ring_gap ring_take_gap(struct ring *r)
{
	struct ring_gap g = r->gap;

	r->gap = (struct ring_gap){0};
	return g;
}
