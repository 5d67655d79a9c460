/*
 * The decoder: the scanner tells it of every member of the frame as it passes; those whose name
 * the table knows are kept in one slot a name, and after the last byte the frame's fields are
 * picked from the slots. One pass over the bytes, no allocation unless a string has escapes.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "wire/json_core.h"
#include "wire/wire_table.h"

#define ARENA_KEEP_BYTES 65536

struct member {
	uint32_t frame; /* number of the frame it was seen in */
	enum json_type type;
	bool escaped;
	struct span raw;
};

struct wire_decoder {
	const struct wire_table *table;
	size_t max_bytes, frame_bytes;
	bool no_memory;	  /* for the frame being decoded */
	uint32_t frame;	  /* number of the frame being decoded, from 1 */
	struct buf arena; /* unescaped strings of the frame */
	struct member member[WIRE_NAMES_MAX];
};

int wire_decoder_new(size_t max_frame_bytes, struct wire_decoder **ret)
{
	struct wire_decoder *d = calloc(1, sizeof *d);

	if (!d)
		return -ENOMEM;
	d->table = wire_table_get();
	d->max_bytes = max_frame_bytes;
	buf_init(&d->arena, max_frame_bytes);
	*ret = d;
	return 0;
}

void wire_decoder_free(struct wire_decoder *d)
{
	if (!d)
		return;
	buf_fini(&d->arena);
	free(d);
}

/* ---- members ---- */

static int name_number(const struct wire_table *t, const struct json_key *key)
{
	for (uint32_t h = key->hash & 255; t->by_hash[h]; h = (h + 1) & 255) {
		int i = t->by_hash[h] - 1;

		if (key->escaped
			? json_raw_eq((struct span){key->p, key->n}, t->name[i], t->name_n[i])
			: key->n == t->name_n[i] && !memcmp(key->p, t->name[i], key->n))
			return i;
	}
	return -1;
}

static void on_member(void *arg, const struct json_key *key, const struct json_member *m,
		      bool value_escaped)
{
	struct wire_decoder *d = arg;
	int i = name_number(d->table, key);

	if (i >= 0)
		d->member[i] = (struct member){d->frame, m->type, value_escaped, m->raw};
}

static const struct member *seen(const struct wire_decoder *d, unsigned name)
{
	const struct member *m = &d->member[name];

	return m->frame == d->frame ? m : NULL;
}

/* The arena is made as large as the frame at the first use, so spans into it stay where they
 * are: unescaped text is never longer than its source. */
static int unescaped(struct wire_decoder *d, struct span raw, bool escaped, struct span *ret)
{
	size_t at = d->arena.len;
	char *room;
	int r;

	if (!escaped) {
		*ret = raw;
		return 0;
	}
	if (at == 0) {
		r = buf_reserve(&d->arena, d->frame_bytes, &room);
		if (r < 0) {
			d->no_memory = r == -ENOMEM;
			return r;
		}
	}
	r = json_unescape(raw, &d->arena);
	if (r < 0)
		return r;
	*ret = (struct span){d->arena.data + at, d->arena.len - at};
	return 0;
}

/* ---- one function a kind: NULL, or what would be right ---- */

/* Said together with the field's max. */
static const char too_long[] = "is too long", too_large[] = "is too large",
		  too_many[] = "has too many members";

typedef const char *parse_fn(struct wire_decoder *d, const struct wire_field *f,
			     const struct member *m, void *out);

static const char *parse_text(struct wire_decoder *d, const struct member *m, struct span *out)
{
	if (m->type != JSON_T_STR)
		return "must be a string";
	if (unescaped(d, m->raw, m->escaped, out) < 0)
		return "could not be read: no memory; send it again later";
	return NULL;
}

static const char *parse_str(struct wire_decoder *d, const struct wire_field *f,
			     const struct member *m, void *out)
{
	struct span *s = out;
	const char *fault = parse_text(d, m, s);

	if (!fault && f->max && s->n > f->max)
		fault = too_long;
	return fault;
}

static const char *parse_agent_id(struct wire_decoder *d, const struct wire_field *f,
				  const struct member *m, void *out)
{
	struct span *s = out;
	const char *fault = parse_text(d, m, s);

	(void)f;
	if (!fault && !ident_is_agent_id(s->p, s->n))
		fault = "must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
	return fault;
}

static const char *parse_correlation_id(struct wire_decoder *d, const struct wire_field *f,
					const struct member *m, void *out)
{
	struct span *s = out;
	const char *fault = parse_text(d, m, s);

	(void)f;
	if (!fault && !ident_is_correlation_id(s->p, s->n))
		fault = "must match ^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$";
	return fault;
}

static const char *parse_uuid(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	struct span *s = out;
	const char *fault = parse_text(d, m, s);

	(void)f;
	if (!fault && !ident_is_uuid4(s->p, s->n))
		fault = "must be a UUID of version 4";
	return fault;
}

static bool is_word(struct span s, size_t max)
{
	if (s.n == 0 || s.n > max)
		return false;
	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];

		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
		      c == '-'))
			return false;
	}
	return true;
}

static const char *parse_word(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	struct span *s = out;
	const char *fault = parse_text(d, m, s);

	if (!fault && !is_word(*s, f->max))
		fault = "must be a short word of a-z, 0-9, _, . and -";
	return fault;
}

static const char *parse_time(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	struct wire_time *t = out;
	struct span s;
	const char *fault = parse_text(d, m, &s);

	(void)f;
	if (fault)
		return fault;
	if (clock_parse_rfc3339(s.p, s.n, &t->ms) < 0)
		return "must be a time as RFC 3339 has it, like 2026-11-20T11:09:00.123Z";
	t->set = true;
	return NULL;
}

static const char *parse_int(struct wire_decoder *d, const struct wire_field *f,
			     const struct member *m, void *out)
{
	struct wire_int *v = out;

	(void)d;
	(void)f;
	if (m->type != JSON_T_INT || json_int(m->raw, &v->v) < 0)
		return "must be an integer without fraction or exponent";
	v->set = true;
	return NULL;
}

static const char *parse_uint(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	struct wire_uint *v = out;
	int64_t value;

	(void)d;
	if (m->type != JSON_T_INT || json_int(m->raw, &value) < 0)
		return "must be an integer without fraction or exponent";
	if (value < 0)
		return "must not be negative";
	if (f->max && (uint64_t)value > f->max)
		return too_large;
	v->v = (uint64_t)value;
	v->set = true;
	return NULL;
}

static const char *parse_bool(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	struct wire_bool *v = out;

	(void)d;
	(void)f;
	if (m->type != JSON_T_BOOL)
		return "must be true or false";
	v->v = m->raw.p[0] == 't';
	v->set = true;
	return NULL;
}

static const char *parse_obj(struct wire_decoder *d, const struct wire_field *f,
			     const struct member *m, void *out)
{
	(void)d;
	if (m->type != JSON_T_OBJ)
		return "must be an object";
	if (f->max && m->raw.n > f->max)
		return too_large;
	*(struct span *)out = m->raw;
	return NULL;
}

/* False when a value is not a string. */
static bool count_strings(struct span container, size_t *ret_n)
{
	struct json_iter it;
	struct json_member m;

	*ret_n = 0;
	json_iter_init(&it, container);
	while (json_iter_next(&it, &m)) {
		if (m.type != JSON_T_STR)
			return false;
		++*ret_n;
	}
	return true;
}

static const char *parse_strs(struct wire_decoder *d, const struct wire_field *f,
			      const struct member *m, void *out)
{
	size_t n;

	(void)d;
	if (m->type != JSON_T_ARR || !count_strings(m->raw, &n))
		return "must be an array of strings";
	if (f->max && n > f->max)
		return too_many;
	*(struct span *)out = m->raw;
	return NULL;
}

static const char *parse_strmap(struct wire_decoder *d, const struct wire_field *f,
				const struct member *m, void *out)
{
	size_t n;

	(void)d;
	if (m->type != JSON_T_OBJ || !count_strings(m->raw, &n))
		return "must be an object of strings";
	if (f->max && n > f->max)
		return too_many;
	*(struct span *)out = m->raw;
	return NULL;
}

static const char *parse_status(struct wire_decoder *d, const struct wire_field *f,
				const struct member *m, void *out)
{
	struct span s;
	const char *fault = parse_text(d, m, &s), *word;

	(void)f;
	if (fault)
		return fault;
	for (int i = 0; (word = wire_status_word((enum wire_status)i)); i++) {
		if (span_eq(s, word)) {
			*(enum wire_status *)out = (enum wire_status)i;
			return NULL;
		}
	}
	return "must be success, error, expired, cancelled or unknown";
}

static const char *parse_truncated(struct wire_decoder *d, const struct wire_field *f,
				   const struct member *m, void *out)
{
	static const char *const fault = "must be an object with stdout and stderr true or false";
	struct wire_truncated *t = out;
	struct json_member part;

	(void)d;
	(void)f;
	if (m->type != JSON_T_OBJ)
		return fault;
	if (json_find(m->raw, "stdout", &part)) {
		if (part.type != JSON_T_BOOL)
			return fault;
		t->out = part.raw.p[0] == 't';
	}
	if (json_find(m->raw, "stderr", &part)) {
		if (part.type != JSON_T_BOOL)
			return fault;
		t->err = part.raw.p[0] == 't';
	}
	t->set = true;
	return NULL;
}

static const char *parse_part(struct wire_decoder *d, struct span object, const char *key,
			      struct span *out)
{
	struct json_member part;

	if (!json_find(object, key, &part))
		return NULL;
	return part.type == JSON_T_STR &&
		       unescaped(d, part.raw, memchr(part.raw.p, '\\', part.raw.n), out) == 0
		   ? NULL
		   : "must be an object with code and msg as strings";
}

static const char *parse_fault(struct wire_decoder *d, const struct wire_field *f,
			       const struct member *m, void *out)
{
	struct wire_fault *e = out;
	const char *fault;

	(void)f;
	if (m->type != JSON_T_OBJ)
		return "must be an object with code and msg";
	fault = parse_part(d, m->raw, "code", &e->code);
	if (!fault)
		fault = parse_part(d, m->raw, "msg", &e->msg);
	if (!fault && !is_word(e->code, WIRE_FAULT_CODE_MAX))
		fault = "needs a code: a short word of a-z, 0-9, _, . and -";
	e->set = !fault;
	return fault;
}

static parse_fn *const parse_kind[WIRE_KINDS] = {
    [WIRE_KIND_AGENT_ID] = parse_agent_id, [WIRE_KIND_CORRELATION_ID] = parse_correlation_id,
    [WIRE_KIND_UUID] = parse_uuid,	   [WIRE_KIND_STR] = parse_str,
    [WIRE_KIND_WORD] = parse_word,	   [WIRE_KIND_TIME] = parse_time,
    [WIRE_KIND_INT] = parse_int,	   [WIRE_KIND_UINT] = parse_uint,
    [WIRE_KIND_BOOL] = parse_bool,	   [WIRE_KIND_OBJ] = parse_obj,
    [WIRE_KIND_STRS] = parse_strs,	   [WIRE_KIND_STRMAP] = parse_strmap,
    [WIRE_KIND_STATUS] = parse_status,	   [WIRE_KIND_TRUNCATED] = parse_truncated,
    [WIRE_KIND_FAULT] = parse_fault,
};

/* ---- frames ---- */

static enum wire_refusal refuse(struct wire_decoder *d, struct wire_refusal_info *info,
				enum wire_refusal code, const char *field)
{
	const struct wire_table *t = d->table;
	const struct member *m = NULL;
	struct span id;

	info->code = code;
	info->field = field;
	info->no_memory = d->no_memory;
	for (unsigned i = 0; i < t->names && !m && code != WIRE_BAD_JSON; i++) {
		if (!strcmp(t->name[i], "correlation_id"))
			m = seen(d, i);
	}
	if (m && !parse_text(d, m, &id) && ident_is_correlation_id(id.p, id.n))
		info->correlation_id = id;
	return code;
}

static enum wire_refusal bad_json(struct wire_decoder *d, struct wire_refusal_info *info,
				  const struct json_fault *fault)
{
	(void)snprintf(info->msg, sizeof info->msg, "not acceptable JSON: %s, at byte %zu",
		       fault->what, fault->offset);
	return refuse(d, info, WIRE_BAD_JSON, NULL);
}

static void info_reset(struct wire_refusal_info *info)
{
	info->code = WIRE_OK;
	info->field = NULL;
	info->msg[0] = '\0';
	info->correlation_id = (struct span){NULL, 0};
	info->type = WIRE_TYPES;
	info->no_memory = false;
}

static enum wire_refusal scan(struct wire_decoder *d, const char *json, size_t n,
			      struct wire_refusal_info *info)
{
	const struct json_sink sink = {.on_member = on_member, .arg = d};
	struct json_fault fault;

	info_reset(info);
	buf_clear(&d->arena);
	buf_trim(&d->arena, ARENA_KEEP_BYTES);
	d->frame_bytes = n;
	d->no_memory = false;
	if (++d->frame == 0) { /* numbers wrapped: forget what the old ones marked */
		memset(d->member, 0, sizeof d->member);
		d->frame = 1;
	}
	if (n > d->max_bytes) {
		(void)snprintf(info->msg, sizeof info->msg,
			       "the frame has %zu bytes; send at most %zu", n, d->max_bytes);
		return refuse(d, info, WIRE_BAD_JSON, NULL);
	}
	int r = json_scan(json, n, WIRE_MAX_DEPTH, &sink, &fault);
	if (r < 0) {
		d->no_memory = r == -ENOMEM;
		return bad_json(d, info, &fault);
	}
	return WIRE_OK;
}

static enum wire_refusal bad_field(struct wire_decoder *d, struct wire_refusal_info *info,
				   const struct wire_frame_spec *spec, const struct wire_field *f,
				   const char *fault)
{
	bool over_max = fault == too_long || fault == too_large || fault == too_many;
	int at = snprintf(info->msg, sizeof info->msg, "%s of %s %s", f->name, spec->word, fault);

	if (over_max && at > 0 && (size_t)at < sizeof info->msg)
		(void)snprintf(info->msg + at, sizeof info->msg - (size_t)at, ": at most %u",
			       f->max);
	return refuse(d, info, WIRE_BAD_FIELD, f->name);
}

static enum wire_refusal decode_fields(struct wire_decoder *d, enum wire_direction from,
				       enum wire_type t, struct wire_frame *ret,
				       struct wire_refusal_info *info)
{
	const struct wire_frame_spec *spec = &d->table->frame[t];
	char *body = (char *)&ret->hello; /* every member of the union starts there */

	memset(body, 0, spec->size);
	ret->type = info->type = t;
	for (size_t i = 0; i < spec->fields; i++) {
		const struct wire_field *f = &spec->field[i];
		const struct member *m = seen(d, d->table->name_of[t][i]);
		const char *fault;

		if (!m) {
			if (!wire_field_required(f, from))
				continue;
			(void)snprintf(info->msg, sizeof info->msg, "%s needs %s: %s", spec->word,
				       f->name, f->doc);
			return refuse(d, info, WIRE_MISSING_FIELD, f->name);
		}
		fault = parse_kind[f->kind](d, f, m, body + f->offset);
		if (fault)
			return bad_field(d, info, spec, f, fault);
	}
	return WIRE_OK;
}

/* "HELLO, TELEMETRY, …" for the peer that sent something else. */
static enum wire_refusal unknown_type(struct wire_decoder *d, enum wire_direction from,
				      struct wire_refusal_info *info)
{
	int at = snprintf(info->msg, sizeof info->msg, "unknown type; it is one of");

	for (int t = 0; t < WIRE_TYPES && at > 0 && (size_t)at < sizeof info->msg; t++) {
		if (wire_may_send(&d->table->frame[t], from))
			at += snprintf(info->msg + at, sizeof info->msg - (size_t)at, " %s",
				       d->table->frame[t].word);
	}
	return refuse(d, info, WIRE_BAD_TYPE, "type");
}

static enum wire_type type_of(const struct wire_table *table, struct span word)
{
	for (int t = 0; t < WIRE_TYPES; t++) {
		if (span_eq(word, table->frame[t].word) && wire_has_type_member(&table->frame[t]))
			return (enum wire_type)t;
	}
	return WIRE_TYPES;
}

enum wire_refusal wire_decode(struct wire_decoder *d, enum wire_direction from, const char *json,
			      size_t n, struct wire_frame *ret, struct wire_refusal_info *info)
{
	enum wire_refusal r = scan(d, json, n, info);
	const struct member *m;
	struct span word;
	enum wire_type t;

	if (r != WIRE_OK)
		return r;
	m = seen(d, WIRE_NAME_TYPE);
	if (!m) {
		(void)snprintf(info->msg, sizeof info->msg, "a frame needs type: its kind");
		return refuse(d, info, WIRE_MISSING_FIELD, "type");
	}
	if (parse_text(d, m, &word)) {
		(void)snprintf(info->msg, sizeof info->msg, "type must be a string");
		return refuse(d, info, WIRE_BAD_FIELD, "type");
	}
	t = type_of(d->table, word);
	if (t == WIRE_TYPES)
		return unknown_type(d, from, info);
	if (!wire_may_send(&d->table->frame[t], from)) {
		info->type = t;
		(void)snprintf(info->msg, sizeof info->msg, "%s is sent by the other side only",
			       d->table->frame[t].word);
		return refuse(d, info, WIRE_WRONG_WAY, "type");
	}
	return decode_fields(d, from, t, ret, info);
}

enum wire_refusal wire_decode_as(struct wire_decoder *d, enum wire_type t, const char *json,
				 size_t n, struct wire_frame *ret, struct wire_refusal_info *info)
{
	enum wire_refusal r = scan(d, json, n, info);

	if (r != WIRE_OK)
		return r;
	return decode_fields(d, d->table->frame[t].direction, t, ret, info);
}
