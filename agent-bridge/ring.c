#include "ring.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"

#define WARM_BYTES 512 /* a frame of telemetry, mostly */

void rings_init(struct rings *all, size_t max_frames, size_t max_bytes)
{
	*all = (struct rings){.max_frames = max_frames, .max_bytes = max_bytes};
}

static size_t weight(const struct ring_frame *f)
{
	return sizeof(*f) + f->cap;
}

/* A ring's oldest frame is always the first of its own in age order, so this is exact. */
static struct ring_frame *take_oldest(struct rings *all, struct ring *r)
{
	struct ring_frame *f = r->oldest;

	r->oldest = f->next;
	if (!r->oldest)
		r->newest = NULL;
	r->n--;
	if (f->all_prev)
		f->all_prev->all_next = f->all_next;
	else
		all->oldest = f->all_next;
	if (f->all_next)
		f->all_next->all_prev = f->all_prev;
	else
		all->newest = f->all_prev;
	all->bytes -= weight(f);
	return f;
}

static void append(struct rings *all, struct ring *r, struct ring_frame *f)
{
	f->owner = r;
	f->next = NULL;
	if (r->newest)
		r->newest->next = f;
	else
		r->oldest = f;
	r->newest = f;
	r->n++;
	f->all_next = NULL;
	f->all_prev = all->newest;
	if (all->newest)
		all->newest->all_next = f;
	else
		all->oldest = f;
	all->newest = f;
	all->bytes += weight(f);
}

/* The ring's oldest frame's memory when it is due and fits well, else new memory. */
static struct ring_frame *frame_get(struct rings *all, struct ring *r, size_t n)
{
	struct ring_frame *f = NULL;

	if (r->n >= all->max_frames) {
		f = take_oldest(all, r);
		if (f->cap < n || f->cap > 2 * n + 64) {
			free(f);
			f = NULL;
		}
	}
	if (!f) {
		f = malloc(sizeof(*f) + n);
		if (f)
			f->cap = (uint32_t)n;
	}
	return f;
}

void ring_warm(const struct ring *r)
{
	if (!r->oldest)
		return;
	CPU_WARM(r->newest, sizeof(*r->newest));
	CPU_WARM(r->oldest, WARM_BYTES);
}

void ring_add(struct rings *all, struct ring *r, const char *bytes, size_t n)
{
	struct ring_frame *f;

	if (all->max_frames == 0 || sizeof(*f) + n > all->max_bytes || n > UINT32_MAX)
		return;
	f = frame_get(all, r, n);
	if (!f)
		return;
	memcpy(f->bytes, bytes, n);
	f->n = (uint32_t)n;
	append(all, r, f);
	while (all->oldest && all->bytes > all->max_bytes) {
		free(take_oldest(all, all->oldest->owner));
		all->evicted++;
	}
}

void ring_clear(struct rings *all, struct ring *r)
{
	while (r->oldest)
		free(take_oldest(all, r));
}

void ring_move(struct ring *from, struct ring *to)
{
	assert(!to->oldest);
	*to = *from;
	*from = (struct ring){0};
	for (struct ring_frame *f = to->oldest; f; f = f->next)
		f->owner = to;
}
