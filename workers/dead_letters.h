/* Entries that cannot become rows: kept with the reason and their bytes, never dropped. */
#pragma once

#include "columns.h"
#include "redis/streams.h"

struct dead_letters {
	struct columns c;
	struct buf payload;
};

int dead_letters_init(struct dead_letters *d) MUST_CHECK;
void dead_letters_fini(struct dead_letters *d);
void dead_letters_clear(struct dead_letters *d);
/* The whole entry as RESP bulk strings, so that it can be put back as it was. The value of field
 * `mask_field` (NULL: none) is replaced by mask_value, after which it cannot. */
int dead_letters_add_entry(struct dead_letters *d, const char *stream, const struct stream_entry *e,
			   const char *reason, const char *detail, const char *mask_field,
			   struct span mask_value) MUST_CHECK;
/* Bytes somebody else refused. */
int dead_letters_add_raw(struct dead_letters *d, struct span stream, struct span entry_id,
			 struct span reason, struct span payload, bool masked,
			 struct span detail) MUST_CHECK;
enum pg_verdict dead_letters_flush(struct dead_letters *d, struct pg *p) MUST_CHECK;
