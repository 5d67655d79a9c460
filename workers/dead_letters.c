#include "dead_letters.h"

#include <errno.h>

#include "base/utf8.h"

enum { STREAM, ENTRY_ID, REASON, PAYLOAD, FORMAT, MASKED, DETAIL };
#define COLUMN_TYPES "tttytbt"
#define PAYLOAD_MAX  ((size_t)16 << 20)

static const struct pg_stmt insert = {
    "dead_letters",
    "INSERT INTO dead_letters (stream, entry_id, reason, payload, format, masked, detail) "
    "SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], "
    "$6::boolean[], $7::text[]) ON CONFLICT (stream, entry_id) DO NOTHING"};

int dead_letters_init(struct dead_letters *d)
{
	buf_init(&d->payload, PAYLOAD_MAX);
	return columns_init(&d->c, COLUMN_TYPES);
}

void dead_letters_fini(struct dead_letters *d)
{
	columns_fini(&d->c);
	buf_fini(&d->payload);
}

void dead_letters_clear(struct dead_letters *d)
{
	columns_clear(&d->c);
	buf_clear(&d->payload);
	buf_trim(&d->payload, 1 << 16);
}

/* Words of ours are kept; anything else is cut to its valid start. */
static struct span text_or_cut(struct span s, size_t max)
{
	if (s.n > max)
		s.n = max;
	if (s.p)
		s.n = utf8_valid_prefix(s.p, s.n);
	for (size_t i = 0; s.p && i < s.n; i++)
		if (s.p[i] == '\0')
			s.n = i;
	return s;
}

static int append_bulk(struct buf *b, struct span s)
{
	int r = buf_appendf(b, "$%zu\r\n", s.n);

	if (r == 0 && s.n)
		r = buf_append(b, s.p, s.n);
	return r < 0 ? r : buf_append_str(b, "\r\n");
}

static int encode_fields(struct buf *b, const struct stream_entry *e, const char *mask_field,
			 struct span mask_value)
{
	size_t n = redis_len(e->fields);
	int r = buf_appendf(b, "*%zu\r\n", n);

	for (size_t i = 0; r == 0 && i < n; i++) {
		struct span s = redis_str(redis_at(e->fields, i));
		bool masked = mask_field && i % 2 == 1 &&
			      span_eq(redis_str(redis_at(e->fields, i - 1)), mask_field);
		r = append_bulk(b, masked ? mask_value : s);
	}
	return r;
}

int dead_letters_add_entry(struct dead_letters *d, const char *stream, const struct stream_entry *e,
			   const char *reason, const char *detail, const char *mask_field,
			   struct span mask_value)
{
	buf_clear(&d->payload);
	int r = encode_fields(&d->payload, e, mask_field, mask_value);
	if (r < 0)
		return r;
	columns_text(&d->c, STREAM, span_of(stream));
	columns_text(&d->c, ENTRY_ID, e->id);
	columns_text(&d->c, REASON, span_of(reason));
	columns_text(&d->c, PAYLOAD, (struct span){d->payload.data, d->payload.len});
	columns_text(&d->c, FORMAT, SPAN("fields"));
	columns_int(&d->c, MASKED, mask_field != NULL);
	columns_text(&d->c, DETAIL, text_or_cut(span_of(detail), 500));
	return d->c.err;
}

int dead_letters_add_raw(struct dead_letters *d, struct span stream, struct span entry_id,
			 struct span reason, struct span payload, bool masked, struct span detail)
{
	columns_text(&d->c, STREAM, text_or_cut(stream, 200));
	columns_text(&d->c, ENTRY_ID, text_or_cut(entry_id, 64));
	columns_text(&d->c, REASON, text_or_cut(reason, 200));
	columns_text(&d->c, PAYLOAD, payload.p ? payload : SPAN(""));
	columns_text(&d->c, FORMAT, SPAN("raw"));
	columns_int(&d->c, MASKED, masked);
	columns_text(&d->c, DETAIL, text_or_cut(detail, 500));
	return d->c.err;
}

enum pg_verdict dead_letters_flush(struct dead_letters *d, struct pg *p)
{
	return columns_exec(&d->c, p, &insert, NULL);
}
