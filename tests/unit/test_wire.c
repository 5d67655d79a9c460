/* Every frame of the table: there and back, each required field missing, each limit crossed. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "wire/wire_table.h"

#define UUID "0b6e3a52-95a7-4f0e-8d6e-3d1c1f0a9b77"

/* A good value for every kind, as JSON, and one that breaks it. */
struct sample {
	const char *good, *bad[5];
};
static const struct sample samples[WIRE_KINDS] = {
    [WIRE_KIND_AGENT_ID] = {"\"gw-1\"", {"\"\"", "\".x\"", "\"a b\"", "7", "\"a\\u0001\""}},
    [WIRE_KIND_CORRELATION_ID] = {"\"c:1\"", {"\"\"", "\":x\"", "\"a/b\"", "{}", "null"}},
    [WIRE_KIND_UUID] = {"\"" UUID "\"", {"\"\"", "\"0b6e3a52\"", "1", "null", "[]"}},
    [WIRE_KIND_STR] = {"\"t\xc3\xa9xt \\\"q\\\"\\n\"", {"1", "null", "{}", "[]", "true"}},
    [WIRE_KIND_WORD] = {"\"ok\"", {"\"\"", "\"Ok\"", "\"a b\"", "1", "null"}},
    [WIRE_KIND_TIME] = {"\"2026-11-20T11:09:00.123Z\"",
			{"\"2026-11-20\"", "\"2026-11-20T11:09:00\"", "0", "\"\"", "null"}},
    [WIRE_KIND_INT] = {"-7", {"1.5", "1e2", "\"1\"", "null", "1.0"}},
    [WIRE_KIND_UINT] = {"1", {"-1", "1.5", "\"1\"", "null", "1e0"}},
    [WIRE_KIND_BOOL] = {"true", {"1", "\"true\"", "null", "[]", "0"}},
    [WIRE_KIND_OBJ] = {"{\"k\":[1,{\"x\":null}]}", {"[]", "1", "\"{}\"", "null", "true"}},
    [WIRE_KIND_STRS] = {"[\"a\",\"b\"]", {"[1]", "{}", "\"a\"", "[\"a\",null]", "null"}},
    [WIRE_KIND_STRMAP] = {"{\"a\":\"b\"}", {"{\"a\":1}", "[]", "\"a\"", "null", "{\"a\":{}}"}},
    [WIRE_KIND_STATUS] = {"\"error\"", {"\"ok\"", "\"\"", "1", "null", "\"Success\""}},
    [WIRE_KIND_TRUNCATED] = {"{\"stdout\":true,\"stderr\":false}",
			     {"{\"stdout\":1}", "[]", "true", "null", "{\"stderr\":\"x\"}"}},
    [WIRE_KIND_FAULT] = {"{\"code\":\"timeout\",\"msg\":\"too \\\"slow\\\"\"}",
			 {"{}", "{\"code\":1}", "{\"code\":\"A\"}", "\"timeout\"",
			  "{\"code\":\"x\",\"msg\":1}"}},
};

struct fixture {
	struct wire_decoder *d;
	struct buf json, out;
	struct wire_frame f;
	struct wire_refusal_info info;
};

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof *x);

	assert_non_null(x);
	assert_int_equal(wire_decoder_new(WIRE_MAX_FRAME_BYTES_DEFAULT, &x->d), 0);
	buf_init(&x->json, 1 << 20);
	buf_init(&x->out, 1 << 20);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	wire_decoder_free(x->d);
	buf_fini(&x->json);
	buf_fini(&x->out);
	free(x);
	return 0;
}

static const struct wire_frame_spec *spec_of(int t)
{
	return &wire_table_get()->frame[t];
}

static enum wire_direction sender_of(const struct wire_frame_spec *spec)
{
	return spec->direction == WIRE_BOTH ? WIRE_FROM_AGENT : spec->direction;
}

/* The frame with good values; field `odd` has `value` instead, or is left out when that is NULL. */
static void make(struct fixture *x, int t, int odd, const char *value)
{
	const struct wire_frame_spec *spec = spec_of(t);
	const char *comma = "";

	buf_clear(&x->json);
	assert_int_equal(buf_append_char(&x->json, '{'), 0);
	for (int i = 0; i < (int)spec->fields; i++) {
		const char *v = i == odd ? value : samples[spec->field[i].kind].good;

		if (!v)
			continue;
		assert_int_equal(
		    buf_appendf(&x->json, "%s\"%s\":%s", comma, spec->field[i].name, v), 0);
		comma = ",";
	}
	if (wire_has_type_member(spec))
		assert_int_equal(buf_appendf(&x->json, "%s\"type\":\"%s\"", comma, spec->word), 0);
	assert_int_equal(buf_append_char(&x->json, '}'), 0);
}

static enum wire_refusal decode(struct fixture *x, int t)
{
	const struct wire_frame_spec *spec = spec_of(t);

	if (!wire_has_type_member(spec))
		return wire_decode_as(x->d, (enum wire_type)t, x->json.data, x->json.len, &x->f,
				      &x->info);
	return wire_decode(x->d, sender_of(spec), x->json.data, x->json.len, &x->f, &x->info);
}

static enum wire_refusal decode_text(struct fixture *x, enum wire_direction from, const char *json)
{
	return wire_decode(x->d, from, json, strlen(json), &x->f, &x->info);
}

/* Decode, encode: the same document as jansson sees it; decode that again. */
static void test_round_trip(void **state)
{
	struct fixture *x = *state;

	for (int t = 0; t < WIRE_TYPES; t++) {
		json_t *before, *after;

		make(x, t, -1, NULL);
		assert_int_equal(decode(x, t), WIRE_OK);
		assert_int_equal(x->f.type, t);
		buf_clear(&x->out);
		assert_int_equal(wire_encode(&x->f, &x->out), 0);
		before = json_loadb(x->json.data, x->json.len, JSON_REJECT_DUPLICATES, NULL);
		after = json_loadb(x->out.data, x->out.len, JSON_REJECT_DUPLICATES, NULL);
		assert_non_null(before);
		assert_non_null(after);
		if (!json_equal(before, after))
			fail_msg("%s became %s", x->json.data, x->out.data);
		json_decref(before);
		json_decref(after);
		buf_clear(&x->json);
		assert_int_equal(buf_append(&x->json, x->out.data, x->out.len), 0);
		assert_int_equal(decode(x, t), WIRE_OK);
	}
}

static void test_each_field_missing(void **state)
{
	struct fixture *x = *state;

	for (int t = 0; t < WIRE_TYPES; t++) {
		const struct wire_frame_spec *spec = spec_of(t);

		for (int i = 0; i < (int)spec->fields; i++) {
			const struct wire_field *f = &spec->field[i];
			enum wire_refusal r;

			make(x, t, i, NULL);
			r = decode(x, t);
			if (!wire_field_required(f, sender_of(spec))) {
				assert_int_equal(r, WIRE_OK);
				continue;
			}
			assert_int_equal(r, WIRE_MISSING_FIELD);
			assert_string_equal(x->info.field, f->name);
			assert_non_null(strstr(x->info.msg, f->name));
			assert_non_null(strstr(x->info.msg, spec->word));
		}
	}
}

static void test_each_field_wrong(void **state)
{
	struct fixture *x = *state;

	for (int t = 0; t < WIRE_TYPES; t++) {
		const struct wire_frame_spec *spec = spec_of(t);

		for (int i = 0; i < (int)spec->fields; i++) {
			const struct sample *s = &samples[spec->field[i].kind];

			for (size_t k = 0; k < ARRAY_LEN(s->bad); k++) {
				make(x, t, i, s->bad[k]);
				if (decode(x, t) != WIRE_BAD_FIELD)
					fail_msg("accepted %s", x->json.data);
				assert_string_equal(x->info.field, spec->field[i].name);
				assert_non_null(strstr(x->info.msg, spec->field[i].name));
				assert_int_equal(x->info.type, t);
			}
		}
	}
}

/* A value of exactly `size` units of the field's max. */
static char *sized(const struct wire_field *f, size_t size)
{
	char *v = malloc(size * 12 + 16);
	size_t at = 0;

	assert_non_null(v);
	if (f->kind == WIRE_KIND_UINT) {
		(void)sprintf(v, "%zu", size);
		return v;
	}
	v[at++] = f->kind == WIRE_KIND_STRS ? '[' : f->kind == WIRE_KIND_STRMAP ? '{' : '"';
	for (size_t i = 0; i < size; i++) {
		const char *comma = i ? "," : "";

		if (f->kind == WIRE_KIND_STRS)
			at += (size_t)sprintf(v + at, "%s\"v\"", comma);
		else if (f->kind == WIRE_KIND_STRMAP)
			at += (size_t)sprintf(v + at, "%s\"%zu\":\"\"", comma, i);
		else /* escapes count as what they stand for */
			at += (size_t)sprintf(v + at, "%s", i % 2 ? "\\u0061" : "a");
	}
	v[at++] = f->kind == WIRE_KIND_STRS ? ']' : f->kind == WIRE_KIND_STRMAP ? '}' : '"';
	v[at] = '\0';
	return v;
}

static void test_each_limit(void **state)
{
	struct fixture *x = *state;
	size_t limits = 0;

	for (int t = 0; t < WIRE_TYPES; t++) {
		const struct wire_frame_spec *spec = spec_of(t);

		for (int i = 0; i < (int)spec->fields; i++) {
			const struct wire_field *f = &spec->field[i];
			char *v;

			if (!f->max)
				continue;
			limits++;
			v = sized(f, f->max);
			make(x, t, i, v);
			assert_int_equal(decode(x, t), WIRE_OK);
			free(v);
			v = sized(f, (size_t)f->max + 1);
			make(x, t, i, v);
			assert_int_equal(decode(x, t), WIRE_BAD_FIELD);
			assert_string_equal(x->info.field, f->name);
			free(v);
		}
	}
	assert_in_range(limits, 20, 200);
}

static void test_identifier_limits(void **state)
{
	struct fixture *x = *state;
	char json[400], id[140];

	memset(id, 'a', sizeof id);
	for (size_t n = 1; n <= 130; n++) {
		(void)snprintf(
		    json, sizeof json,
		    "{\"type\":\"COMMAND_ACK\",\"agent_id\":\"%.*s\",\"correlation_id\":\"%.*s\"}",
		    n > 64 ? 64 : (int)n, id, (int)n, id);
		assert_int_equal(decode_text(x, WIRE_FROM_AGENT, json),
				 n <= 128 ? WIRE_OK : WIRE_BAD_FIELD);
	}
	(void)snprintf(json, sizeof json, "{\"type\":\"HEARTBEAT\",\"agent_id\":\"%.65s\"}", id);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, json), WIRE_BAD_FIELD);
}

static void test_values(void **state)
{
	struct fixture *x = *state;
	const struct wire_result *r = &x->f.result;

	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT,
			" { "
			"\"error\":{\"msg\":\"a\\tb\",\"x\":0,\"code\":\"time\\u006fut\"},"
			"\"unknown\":[{\"type\":\"PING\"}],"
			"\"type\":\"RE\\u0053ULT\",\"agent_id\":\"g\\u0077-1\","
			"\"correlation\\u005fid\":\"c\",\"rc\":-3,"
			"\"status\":\"err\\u006fr\",\"stdout\":\"\",\"started_at\":\"2026-11-20T12:"
			"09:00.5+01:00\","
			"\"truncated\":{\"stderr\":true},\"duration_ms\":9223372036854775807} \n"),
	    WIRE_OK);
	assert_int_equal(x->f.type, WIRE_RESULT);
	assert_true(span_eq(r->agent_id, "gw-1"));
	assert_true(span_eq(r->correlation_id, "c"));
	assert_int_equal(r->status, WIRE_STATUS_ERROR);
	assert_true(r->rc.set && r->rc.v == -3);
	assert_true(r->stdout.p && r->stdout.n == 0);
	assert_null(r->stderr.p);
	assert_true(r->started_at.set && r->started_at.ms == INT64_C(1795172940500));
	assert_false(r->finished_at.set);
	assert_true(r->truncated.set && r->truncated.err && !r->truncated.out);
	assert_true(r->error.set && span_eq(r->error.code, "timeout") &&
		    span_eq(r->error.msg, "a\tb"));
	assert_true(r->duration_ms.v == INT64_MAX);
}

/* Spans of many escaped strings stay valid together. */
static void test_escapes_everywhere(void **state)
{
	struct fixture *x = *state;

	make(x, WIRE_HELLO, -1, NULL);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT,
				     "{\"type\":\"HELLO\",\"agent_id\":\"\\u0061\",\"version\":"
				     "\"\\u0062\",\"capabilities\":[],"
				     "\"hostname\":\"\\u0063\",\"site\":\"\\u0064\\u0000\"}"),
			 WIRE_BAD_JSON);
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT,
			"{\"type\":\"HELLO\",\"agent_id\":\"\\u0061\",\"version\":\"\\u0062\","
			"\"capabilities\":[],"
			"\"hostname\":\"\\u0063\",\"site\":\"\\u0064\\ud83d\\ude39\"}"),
	    WIRE_OK);
	assert_true(span_eq(x->f.hello.agent_id, "a") && span_eq(x->f.hello.version, "b"));
	assert_true(span_eq(x->f.hello.hostname, "c") &&
		    span_eq(x->f.hello.site, "d\xf0\x9f\x98\xb9"));
}

static void test_duplicates(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\",\"type\":\"PING\"}"),
			 WIRE_BAD_JSON);
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\",\"\\u0074ype\":\"PONG\"}"),
	    WIRE_BAD_JSON);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\",\"x\":1,\"x\":1}"),
			 WIRE_BAD_JSON);
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\",\"x\":{\"y\":1,\"y\":1}}"),
	    WIRE_BAD_JSON);
	assert_non_null(strstr(x->info.msg, "before"));
	assert_non_null(strstr(x->info.msg, "at byte"));
}

static void test_type(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{}"), WIRE_MISSING_FIELD);
	assert_string_equal(x->info.field, "type");
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":1}"), WIRE_BAD_FIELD);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"hello\"}"), WIRE_BAD_TYPE);
	assert_non_null(strstr(x->info.msg, "TELEMETRY"));
	assert_null(strstr(x->info.msg, "WELCOME"));
	assert_int_equal(x->info.type, WIRE_TYPES);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"HELPER_REQUEST\"}"),
			 WIRE_BAD_TYPE);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"\"}"), WIRE_BAD_TYPE);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "[]"), WIRE_BAD_JSON);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "\"PING\""), WIRE_BAD_JSON);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, ""), WIRE_BAD_JSON);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"x\":{\"type\":\"PING\"}}"),
			 WIRE_MISSING_FIELD);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\"}"), WIRE_OK);
}

static void test_direction(void **state)
{
	struct fixture *x = *state;

	for (int t = 0; t < WIRE_TYPES; t++) {
		const struct wire_frame_spec *spec = spec_of(t);
		enum wire_direction other =
		    spec->direction == WIRE_FROM_AGENT ? WIRE_FROM_BRIDGE : WIRE_FROM_AGENT;

		if (!wire_has_type_member(spec))
			continue;
		make(x, t, -1, NULL);
		assert_int_equal(
		    wire_decode(x->d, other, x->json.data, x->json.len, &x->f, &x->info),
		    spec->direction == WIRE_BOTH ? WIRE_OK : WIRE_WRONG_WAY);
	}
}

static void test_heartbeat_needs_agent_id_from_agent_only(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"HEARTBEAT\"}"),
			 WIRE_MISSING_FIELD);
	assert_string_equal(x->info.field, "agent_id");
	assert_int_equal(decode_text(x, WIRE_FROM_BRIDGE, "{\"type\":\"HEARTBEAT\"}"), WIRE_OK);
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"HEARTBEAT\",\"agent_id\":\"a\"}"),
	    WIRE_OK);
}

static void test_refusal_carries_correlation_id(void **state)
{
	struct fixture *x = *state;

	assert_int_equal(decode_text(x, WIRE_FROM_AGENT,
				     "{\"type\":\"RESULT\",\"agent_id\":\"a\",\"status\":\"x\","
				     "\"correlation_id\":\"c\\u0031\"}"),
			 WIRE_BAD_FIELD);
	assert_true(span_eq(x->info.correlation_id, "c1"));
	assert_string_equal(wire_refusal_code(x->info.code), "bad_field");
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"X\",\"correlation_id\":\"c2\"}"),
	    WIRE_BAD_TYPE);
	assert_true(span_eq(x->info.correlation_id, "c2"));
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"correlation_id\":\"c d\"}"),
			 WIRE_MISSING_FIELD);
	assert_null(x->info.correlation_id.p);
	assert_int_equal(decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"PING\"}"), WIRE_OK);
	assert_null(x->info.correlation_id.p);
	/* Nothing of an earlier frame shows through. */
	assert_int_equal(
	    decode_text(x, WIRE_FROM_AGENT, "{\"type\":\"COMMAND_ACK\",\"agent_id\":\"a\"}"),
	    WIRE_MISSING_FIELD);
	assert_null(x->info.correlation_id.p);
}

static void test_size(void **state)
{
	struct fixture *x = *state;
	size_t room = WIRE_MAX_FRAME_BYTES_DEFAULT;
	char *pad = malloc(room + 1);

	assert_non_null(pad);
	memset(pad, 'x', room);
	pad[room] = '\0';
	for (size_t over = 0; over < 2; over++) {
		size_t base;

		buf_clear(&x->json);
		assert_int_equal(buf_append_str(&x->json, "{\"type\":\"PING\",\"p\":\""), 0);
		base = x->json.len;
		assert_int_equal(
		    buf_append(&x->json, pad, WIRE_MAX_FRAME_BYTES_DEFAULT - base - 2 - 2 + over),
		    0);
		assert_int_equal(buf_append_str(&x->json, "\\n\"}"), -0);
		assert_int_equal(decode(x, WIRE_PING), over ? WIRE_BAD_JSON : WIRE_OK);
	}
	assert_non_null(strstr(x->info.msg, "262144"));
	free(pad);
}

static void test_encode_leaves_out_what_is_absent(void **state)
{
	struct fixture *x = *state;
	struct wire_frame f = {.type = WIRE_HELPER_REPLY, .helper_reply = {.status = SPAN("ok")}};

	assert_int_equal(wire_encode(&f, &x->out), 0);
	assert_string_equal(x->out.data, "{\"status\":\"ok\"}");
	f = (struct wire_frame){.type = WIRE_RESULT_ACK,
				.result_ack = {.correlation_id = SPAN("c\"")}};
	buf_clear(&x->out);
	assert_int_equal(wire_encode(&f, &x->out), 0);
	assert_string_equal(x->out.data, "{\"type\":\"RESULT_ACK\",\"correlation_id\":\"c\\\"\"}");
}

static void test_encode_cap(void **state)
{
	struct wire_frame f = {.type = WIRE_RESULT_ACK,
			       .result_ack = {.correlation_id = SPAN("c")}};
	struct buf tiny;

	(void)state;
	buf_init(&tiny, 10);
	assert_int_equal(wire_encode(&f, &tiny), -ENOBUFS);
	buf_fini(&tiny);
}

static void test_words(void **state)
{
	(void)state;
	assert_string_equal(wire_type_word(WIRE_HELLO_ACK), "HELLO_ACK");
	assert_string_equal(wire_type_word(WIRE_TYPES), "unknown");
	assert_string_equal(wire_status_word(WIRE_STATUS_CANCELLED), "cancelled");
	assert_string_equal(wire_refusal_code(WIRE_BAD_JSON), "bad_json");
	assert_string_equal(wire_refusal_code(WIRE_BAD_TYPE), "unknown_type");
	assert_string_equal(wire_refusal_code(WIRE_WRONG_WAY), "wrong_direction");
	assert_string_equal(wire_refusal_code(WIRE_MISSING_FIELD), "missing_field");
}

static void test_documents(void **state)
{
	struct fixture *x = *state;
	json_t *schema, *defs;

	assert_int_equal(wire_markdown(&x->out), 0);
	assert_non_null(strstr(x->out.data, "### TELEMETRY"));
	assert_int_equal(buf_append_char(&x->json, ' '), 0);
	buf_clear(&x->json);
	assert_int_equal(wire_json_schema(&x->json), 0);
	schema = json_loadb(x->json.data, x->json.len, JSON_REJECT_DUPLICATES, NULL);
	assert_non_null(schema);
	defs = json_object_get(schema, "$defs");
	assert_int_equal(json_object_size(defs), WIRE_TYPES);
	assert_non_null(json_object_get(
	    json_object_get(json_object_get(defs, "RESULT"), "properties"), "stdout"));
	json_decref(schema);
	buf_clear(&x->out);
	assert_int_equal(wire_fuzz_dictionary(&x->out), 0);
	assert_non_null(strstr(x->out.data, "\"\\\"correlation_id\\\":\""));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(test_round_trip),
	    TEST(test_each_field_missing),
	    TEST(test_each_field_wrong),
	    TEST(test_each_limit),
	    TEST(test_identifier_limits),
	    TEST(test_values),
	    TEST(test_escapes_everywhere),
	    TEST(test_duplicates),
	    TEST(test_type),
	    TEST(test_direction),
	    TEST(test_heartbeat_needs_agent_id_from_agent_only),
	    TEST(test_refusal_carries_correlation_id),
	    TEST(test_size),
	    TEST(test_encode_leaves_out_what_is_absent),
	    TEST(test_encode_cap),
	    TEST(test_words),
	    TEST(test_documents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
