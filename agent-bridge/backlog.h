/* Entries that wait to be sent, oldest first; over its bound the oldest are forgotten. Pure. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct backlog_entry {
	struct backlog_entry *next;
	size_t n; /* of bytes */
	char bytes[];
};

struct backlog { /* empty when zero */
	struct backlog_entry *first, *last;
	size_t bytes, max_bytes; /* with the entries' own */
};

/* With room for so many bytes; n is the caller's to set. NULL: no memory. */
struct backlog_entry *backlog_entry_new(size_t room);
/* Takes e, without the room it did not need. Returns how many older ones went; e itself stays. */
uint64_t backlog_add(struct backlog *b, struct backlog_entry *e);
/* There must be one. */
void backlog_drop_oldest(struct backlog *b);
