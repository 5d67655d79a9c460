#include "entries.h"

#include <errno.h>
#include <stdlib.h>

#include "base/grow.h"

void entries_fini(struct entries *l)
{
	free(l->item);
	*l = (struct entries){0};
}

void entries_clear(struct entries *l, uint64_t serial)
{
	l->n = l->bytes = 0;
	l->serial = serial;
}

static size_t entry_bytes(const struct stream_entry *e)
{
	size_t bytes = e->id.n;

	for (size_t i = 0; i < redis_len(e->fields); i++)
		bytes += redis_str(redis_at(e->fields, i)).n;
	return bytes;
}

static int entries_push(struct entries *l, const struct intake_entry *x)
{
	if (grow(&l->item, l->n, &l->cap, 256, sizeof *l->item) < 0)
		return -ENOMEM;
	l->item[l->n++] = *x;
	return 0;
}

int entries_take(struct entries *l, unsigned stream, const struct redis_reply *array,
		 uint64_t *lost)
{
	for (size_t i = 0; i < redis_len(array); i++) {
		struct intake_entry x = {.stream = stream};
		if (stream_entry_parse(redis_at(array, i), &x.e) < 0)
			return -EBADMSG;
		if (!x.e.fields)
			(*lost)++;
		else
			l->bytes += entry_bytes(&x.e);
		int r = entries_push(l, &x);
		if (r < 0)
			return r;
	}
	return 0;
}

int entries_take_large(struct entries *l, unsigned stream, struct span id)
{
	const struct intake_entry x = {.stream = stream, .e.id = id, .large = true};

	return entries_push(l, &x);
}
