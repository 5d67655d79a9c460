#include "backlog.h"

#include <stdlib.h>

struct backlog_entry *backlog_entry_new(size_t room)
{
	struct backlog_entry *e = malloc(sizeof(*e) + room);

	if (e)
		*e = (struct backlog_entry){0};
	return e;
}

void backlog_drop_oldest(struct backlog *b)
{
	struct backlog_entry *e = b->first;

	b->first = e->next;
	if (!e->next)
		b->last = NULL;
	b->bytes -= sizeof(*e) + e->n;
	free(e);
}

uint64_t backlog_add(struct backlog *b, struct backlog_entry *e)
{
	struct backlog_entry *fit = realloc(e, sizeof(*e) + e->n);
	uint64_t dropped = 0;

	e = fit ? fit : e;
	if (b->last)
		b->last->next = e;
	else
		b->first = e;
	b->last = e;
	b->bytes += sizeof(*e) + e->n;
	for (; b->bytes > b->max_bytes && b->first != b->last; dropped++)
		backlog_drop_oldest(b);
	return dropped;
}
