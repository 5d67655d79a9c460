/* Documents from the table: docs/protocol.md, the JSON Schema, the fuzz dictionary. */
#include <string.h>

#include "base/jsonw.h"
#include "wire/wire_table.h"

struct kind_doc {
	const char *type, *max_unit;	 /* for the Markdown table */
	const char *json_type, *pattern; /* for the schema */
};
static const struct kind_doc kind_doc[WIRE_KINDS] = {
    [WIRE_KIND_AGENT_ID] = {"agent id", NULL, "string", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    [WIRE_KIND_CORRELATION_ID] = {"correlation id", NULL, "string",
				  "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"},
    [WIRE_KIND_UUID] = {"UUIDv4", NULL, "string",
			"^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-4[0-9A-Fa-f]{3}-[89ABab][0-9A-Fa-f]{3}-"
			"[0-9A-Fa-f]{12}$"},
    [WIRE_KIND_STR] = {"string", "bytes", "string", NULL},
    [WIRE_KIND_WORD] = {"word", "bytes", "string", "^[a-z0-9_.-]+$"},
    [WIRE_KIND_TIME] = {"time (RFC 3339)", NULL, "string", NULL},
    [WIRE_KIND_INT] = {"integer", "", "integer", NULL},
    [WIRE_KIND_UINT] = {"integer, not negative", "", "integer", NULL},
    [WIRE_KIND_BOOL] = {"true or false", NULL, "boolean", NULL},
    [WIRE_KIND_OBJ] = {"object", "bytes", "object", NULL},
    [WIRE_KIND_STRS] = {"array of strings", "items", "array", NULL},
    [WIRE_KIND_STRMAP] = {"object of strings", "members", "object", NULL},
    [WIRE_KIND_STATUS] = {"`success`, `error`, `expired`, `cancelled` or `unknown`", NULL, "string",
			  NULL},
    [WIRE_KIND_TRUNCATED] = {"{stdout, stderr}: true or false", NULL, "object", NULL},
    [WIRE_KIND_FAULT] = {"{code, msg}", NULL, "object", NULL},
};

/* ---- Markdown ---- */

struct section {
	enum wire_direction direction;
	const char *title;
};
static const struct section sections[] = {
    {WIRE_FROM_AGENT, "Agent to bridge"},
    {WIRE_FROM_BRIDGE, "Bridge to agent"},
    {WIRE_BOTH, "Both ways"},
    {WIRE_TO_HELPER, "Agent to helper"},
    {WIRE_FROM_HELPER, "Helper to agent"},
};

static int markdown_field(const struct wire_field *f, struct buf *out)
{
	static const char *const need[] = {
	    [WIRE_NEED_OPTIONAL] = "",
	    [WIRE_NEED_REQUIRED] = "yes",
	    [WIRE_NEED_AGENT_MUST] = "from the agent",
	};
	const struct kind_doc *k = &kind_doc[f->kind];
	int r = buf_appendf(out, "| `%s` | %s | %s | ", f->name, k->type, need[f->need]);

	if (r == 0 && f->max)
		r = buf_appendf(out, "%u %s", f->max, k->max_unit ? k->max_unit : "");
	if (r == 0)
		r = buf_appendf(out, " | %s |\n", f->doc);
	return r;
}

static int markdown_frame(const struct wire_frame_spec *spec, struct buf *out)
{
	int r = buf_appendf(out, "### %s\n\n%s\n\n", spec->word, spec->doc);

	if (r == 0)
		r = buf_append_str(out, "| field | type | required | at most | meaning |\n"
					"|---|---|---|---|---|\n");
	for (size_t i = 0; i < spec->fields && r == 0; i++)
		r = markdown_field(&spec->field[i], out);
	return r == 0 ? buf_append_char(out, '\n') : r;
}

static int markdown_section(const struct section *s, struct buf *out)
{
	int r = buf_appendf(out, "## %s\n\n", s->title);

	for (int t = 0; t < WIRE_TYPES && r == 0; t++) {
		const struct wire_frame_spec *spec = &wire_table_get()->frame[t];

		if (spec->direction == s->direction)
			r = markdown_frame(spec, out);
	}
	return r;
}

int wire_markdown(struct buf *out)
{
	int r = buf_appendf(
	    out,
	    "<!-- Generated from lib/wire/frames.def by viw-wire-docs markdown; do not edit. -->\n"
	    "# Protocol\n\n"
	    "Every message is one JSON object (RFC 8259) in UTF-8: nesting at most %d, no\n"
	    "duplicate names, no NUL, integers within 64 bits, numbers within a double. Unknown\n"
	    "members are ignored. Absent members are left out, never null. Text is measured\n"
	    "without its escapes. Frames between agent and bridge carry `type`, the word of the\n"
	    "heading; messages of the helper do not. An empty \"at most\" leaves the bound to the\n"
	    "size of the frame.\n\n",
	    WIRE_MAX_DEPTH);

	for (size_t i = 0; i < ARRAY_LEN(sections) && r == 0; i++)
		r = markdown_section(&sections[i], out);
	if (r == 0)
		r = buf_append_str(
		    out,
		    "## Refusals\n\n| code | meaning |\n|---|---|\n"
		    "| `bad_json` | not JSON, or over a limit of it |\n"
		    "| `unknown_type` | no such frame |\n"
		    "| `wrong_direction` | a frame of the other side |\n"
		    "| `missing_field` | a required member is not there |\n"
		    "| `bad_field` | wrong type, range, length or pattern |\n"
		    "| `hello_first` | needs HELLO and WELCOME before it |\n"
		    "| `not_yours` | a RESULT for a command of another agent |\n"
		    "| `unknown_command` | a RESULT for an id nobody knows, too often |\n"
		    "| `too_many` | AUDIT, or HELLO again, of one agent: over 128 or 512 KiB a "
		    "minute |\n"
		    "\n"
		    "A RESULT for an id nobody knows is acknowledged and becomes a dead "
		    "letter, one of\n"
		    "another agent's command a dead letter alone; of one agent at most 128 a "
		    "minute do,\n"
		    "then the former is refused too. The bridge counts refused frames in\n"
		    "`viw_frames_refused_total{code}`; the tenth of a connection within a "
		    "minute closes\n"
		    "it with 1008.\n");
	return r;
}

/* ---- JSON Schema ---- */

static void schema_text(struct jsonw *w, const struct wire_field *f)
{
	static const char *const status[] = {"success", "error", "expired", "cancelled", "unknown"};

	jsonw_str(w, "pattern", kind_doc[f->kind].pattern);
	if (f->max)
		jsonw_uint(w, "maxLength", f->max);
	if (f->kind == WIRE_KIND_TIME)
		jsonw_str(w, "format", "date-time");
	if (f->kind != WIRE_KIND_STATUS)
		return;
	jsonw_arr(w, "enum");
	for (size_t i = 0; i < ARRAY_LEN(status); i++)
		jsonw_str(w, NULL, status[i]);
	jsonw_arr_end(w);
}

static void schema_member(struct jsonw *w, const char *name, const char *type)
{
	jsonw_obj(w, name);
	jsonw_str(w, "type", type);
	jsonw_obj_end(w);
}

static void schema_object(struct jsonw *w, const struct wire_field *f)
{
	if (f->kind == WIRE_KIND_STRMAP) {
		jsonw_uint(w, "maxProperties", f->max);
		schema_member(w, "additionalProperties", "string");
	}
	if (f->kind != WIRE_KIND_TRUNCATED && f->kind != WIRE_KIND_FAULT)
		return;
	jsonw_obj(w, "properties");
	if (f->kind == WIRE_KIND_TRUNCATED) {
		schema_member(w, "stdout", "boolean");
		schema_member(w, "stderr", "boolean");
	} else {
		schema_member(w, "code", "string");
		schema_member(w, "msg", "string");
	}
	jsonw_obj_end(w);
	if (f->kind == WIRE_KIND_FAULT) {
		jsonw_arr(w, "required");
		jsonw_str(w, NULL, "code");
		jsonw_arr_end(w);
	}
}

static void schema_field(struct jsonw *w, const struct wire_field *f)
{
	const char *type = kind_doc[f->kind].json_type;

	jsonw_obj(w, f->name);
	jsonw_str(w, "type", type);
	jsonw_str(w, "description", f->doc);
	if (!strcmp(type, "string"))
		schema_text(w, f);
	if (!strcmp(type, "object"))
		schema_object(w, f);
	if (f->kind == WIRE_KIND_UINT)
		jsonw_uint(w, "minimum", 0);
	if (f->kind == WIRE_KIND_UINT && f->max)
		jsonw_uint(w, "maximum", f->max);
	if (f->kind == WIRE_KIND_STRS) {
		schema_member(w, "items", "string");
		jsonw_uint(w, "maxItems", f->max);
	}
	jsonw_obj_end(w);
}

static void schema_frame(struct jsonw *w, const struct wire_frame_spec *spec)
{
	jsonw_obj(w, spec->word);
	jsonw_str(w, "description", spec->doc);
	jsonw_str(w, "type", "object");
	jsonw_obj(w, "properties");
	if (wire_has_type_member(spec)) {
		jsonw_obj(w, "type");
		jsonw_str(w, "const", spec->word);
		jsonw_obj_end(w);
	}
	for (size_t i = 0; i < spec->fields; i++)
		schema_field(w, &spec->field[i]);
	jsonw_obj_end(w);
	jsonw_arr(w, "required");
	if (wire_has_type_member(spec))
		jsonw_str(w, NULL, "type");
	for (size_t i = 0; i < spec->fields; i++) {
		if (spec->field[i].need == WIRE_NEED_REQUIRED)
			jsonw_str(w, NULL, spec->field[i].name);
	}
	jsonw_arr_end(w);
	jsonw_obj_end(w);
}

int wire_json_schema(struct buf *out)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "$schema", "https://json-schema.org/draft/2020-12/schema");
	jsonw_str(&w, "title", "Messages between agent, bridge and helper");
	jsonw_obj(&w, "$defs");
	for (int t = 0; t < WIRE_TYPES; t++)
		schema_frame(&w, &wire_table_get()->frame[t]);
	jsonw_obj_end(&w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

/* ---- fuzz dictionary (libFuzzer's format) ---- */

static const char *const extra_words[] = {
    "success",
    "error",
    "expired",
    "cancelled",
    "unknown",
    "ok",
    "run",
    "query",
    "void",
    "hello",
    "code",
    "msg",
    "stdout",
    "1e",
    "e400",
    "\\\\u0000",
    "\\\\ud800",
    "\\\\udc00",
    "true",
    "false",
    "null",
    "[[",
    "{\\\"",
    "\\\":",
    "2026-11-20T11:09:00.123Z",
    "-0",
    "9223372036854775807",
    "9223372036854775808",
    "1.7976931348623157e308",
    "1.7976931348623159e308",
    "\\xc0\\x80",
    "\\xed\\xa0\\x80",
    "\\xf4\\x90\\x80\\x80",
};

int wire_fuzz_dictionary(struct buf *out)
{
	const struct wire_table *t = wire_table_get();
	int r = 0;

	for (unsigned i = 0; i < t->names && r == 0; i++)
		r = buf_appendf(out, "\"\\\"%s\\\":\"\n", t->name[i]);
	for (int i = 0; i < WIRE_TYPES && r == 0; i++) {
		if (wire_has_type_member(&t->frame[i]))
			r = buf_appendf(out, "\"\\\"type\\\":\\\"%s\\\"\"\n", t->frame[i].word);
	}
	for (size_t i = 0; i < ARRAY_LEN(extra_words) && r == 0; i++)
		r = buf_appendf(out, "\"%s\"\n", extra_words[i]);
	return r;
}
