/* The encoder: a frame's struct as JSON, in the order of the table. */
#include <assert.h>
#include <errno.h>

#include "base/clock.h"
#include "base/jsonw.h"
#include "wire/wire_table.h"

/* Writes the member; false when it is absent. */
typedef bool write_fn(struct jsonw *w, const char *name, const void *in);

static bool write_text(struct jsonw *w, const char *name, const void *in)
{
	const struct span *s = in;

	if (s->p)
		jsonw_strn(w, name, s->p, s->n);
	return s->p != NULL;
}

static bool write_raw(struct jsonw *w, const char *name, const void *in)
{
	const struct span *s = in;

	if (s->p)
		jsonw_raw(w, name, s->p, s->n);
	return s->p != NULL;
}

static bool write_time(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_time *t = in;
	char text[CLOCK_RFC3339_LEN + 1];

	if (!t->set)
		return false;
	clock_format_rfc3339(t->ms, text);
	jsonw_str(w, name, text);
	return true;
}

static bool write_int(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_int *v = in;

	if (v->set)
		jsonw_int(w, name, v->v);
	return v->set;
}

static bool write_uint(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_uint *v = in;

	if (v->set)
		jsonw_uint(w, name, v->v);
	return v->set;
}

static bool write_bool(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_bool *v = in;

	if (v->set)
		jsonw_bool(w, name, v->v);
	return v->set;
}

static bool write_status(struct jsonw *w, const char *name, const void *in)
{
	const char *word = wire_status_word(*(const enum wire_status *)in);

	jsonw_str(w, name, word);
	return word != NULL;
}

static bool write_truncated(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_truncated *t = in;

	if (!t->set)
		return false;
	jsonw_obj(w, name);
	jsonw_bool(w, "stdout", t->out);
	jsonw_bool(w, "stderr", t->err);
	jsonw_obj_end(w);
	return true;
}

static bool write_fault(struct jsonw *w, const char *name, const void *in)
{
	const struct wire_fault *e = in;

	if (!e->set)
		return false;
	jsonw_obj(w, name);
	(void)write_text(w, "code", &e->code);
	(void)write_text(w, "msg", &e->msg);
	jsonw_obj_end(w);
	return true;
}

static write_fn *const write_kind[WIRE_KINDS] = {
    [WIRE_KIND_AGENT_ID] = write_text, [WIRE_KIND_CORRELATION_ID] = write_text,
    [WIRE_KIND_UUID] = write_text,     [WIRE_KIND_STR] = write_text,
    [WIRE_KIND_WORD] = write_text,     [WIRE_KIND_TIME] = write_time,
    [WIRE_KIND_INT] = write_int,       [WIRE_KIND_UINT] = write_uint,
    [WIRE_KIND_BOOL] = write_bool,     [WIRE_KIND_OBJ] = write_raw,
    [WIRE_KIND_STRS] = write_raw,      [WIRE_KIND_STRMAP] = write_raw,
    [WIRE_KIND_STATUS] = write_status, [WIRE_KIND_TRUNCATED] = write_truncated,
    [WIRE_KIND_FAULT] = write_fault,
};

int wire_encode(const struct wire_frame *f, struct buf *out)
{
	const struct wire_frame_spec *spec = &wire_table_get()->frame[f->type];
	const char *body = (const char *)&f->hello; /* every member of the union starts there */
	struct jsonw w;
	bool whole = true;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	if (wire_has_type_member(spec))
		jsonw_str(&w, "type", spec->word);
	for (size_t i = 0; i < spec->fields; i++) {
		const struct wire_field *field = &spec->field[i];
		bool there = write_kind[field->kind](&w, field->name, body + field->offset);

		whole = whole && (there || field->need != WIRE_NEED_REQUIRED);
	}
	jsonw_obj_end(&w);
	assert(whole);
	return whole ? jsonw_finish(&w) : -EINVAL;
}
