/* The strict JSON scanner: what it takes, what it refuses, and that jansson agrees on all of it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "json_oracle.h"
#include "wire/json_core.h"

struct text_case {
	const char *json;
	size_t n;
};
#define T(literal)                           \
	{                                    \
		literal, sizeof(literal) - 1 \
	}

#define D16 "[[[[[[[[[[[[[[[["
#define E16 "]]]]]]]]]]]]]]]]"

static const struct text_case accepted[] = {
    T("{}"),
    T("[]"),
    T("[ ]"),
    T(" \t\r\n{ } \n"),
    T("[[]   ]"),
    T("[1]"),
    T("[1\n]"),
    T(" [1] "),
    T("null"),
    T("true"),
    T("false"),
    T("0"),
    T("-0"),
    T("-1"),
    T("\"\""),
    T("\"a\""),
    T("[null,true,false]"),
    T("[1,null,null,2]"),
    T("{\"a\":1}"),
    T("{\"\":0}"),
    T("{\"a\":{\"a\":1},\"b\":{\"a\":1}}"),
    T("[{\"a\":1},{\"a\":1}]"),
    T("{ \"min\" : -1.0e+28 , \"max\" : 1.0e+28 }"),
    T("[123e65]"),
    T("[0e+1]"),
    T("[0e1]"),
    T("[ 4]"),
    T("[-0.000000000000000000000000000001]"),
    T("[20e1]"),
    T("[-123]"),
    T("[1E22]"),
    T("[1E-2]"),
    T("[1E+2]"),
    T("[123e45]"),
    T("[123.456e78]"),
    T("[1e-2]"),
    T("[1e+2]"),
    T("[123.456789]"),
    T("[1e-400]"),
    T("[0e16383]"),
    T("[1e-16383]"),
    T("[-12.5e-16382]"),
    T("[0.0e400]"),
    T("[9223372036854775807]"),
    T("[-9223372036854775808]"),
    T("[1.7976931348623157e308]"),
    T("[1.7976931348623158e308]"),
    T("[0.00017976931348623157e312]"),
    T("[17976931348623157.9e292]"),
    T("[-1.7976931348623157E+308]"),
    T("[100e306]"),
    T("[\"\\u0060\\u012a\\u12AB\"]"),
    T("[\"\\uD801\\udc37\"]"),
    T("[\"\\ud83d\\ude39\\ud83d\\udc8d\"]"),
    T("[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"]"),
    T("[\"\\\\u0000\"]"),
    T("[\"a/*b*/c/*d//e\"]"),
    T("[\"\\\\a\"]"),
    T("[\"\\\\n\"]"),
    T("[\"\x7f\"]"),
    T("[\"\xc2\x80\"]"),
    T("[\"\xe0\xa0\x80\"]"),
    T("[\"\xed\x9f\xbf\"]"),
    T("[\"\xee\x80\x80\"]"),
    T("[\"\xef\xbf\xbf\"]"),
    T("[\"\xf0\x90\x80\x80\"]"),
    T("[\"\xf4\x8f\xbf\xbf\"]"),
    T("[\"\xf0\x9d\x84\x9e\"]"),
    T("[\"\\uDBFF\\uDFFE\"]"),
    T("[\"\\uFFFF\"]"),
    T("[\"\\u0001\"]"),
    T("{\"a\\u0062\":1,\"b\":2}"),
    T("[\"\xe2\x80\xa8\xe2\x80\xa9\"]"),
    T("[\"new\\u00A0line\"]"),
    T("[\"12345678\"]"),
    T("[\"1234567\\n\"]"),
    T("[\"123456789abcdef0123456789abcdef\"]"),
    T(D16 E16),
    T(D16 "1" E16),
    T(D16 "\"[[[\"" E16),
    T("{\"a\":[{\"b\":[{\"c\":[{\"d\":[{\"e\":[{\"f\":[{\"g\":[{\"h\":[]}]}]}]}]}]}]}]}"),
};

static const struct text_case refused[] = {
    T(""),
    T(" "),
    T("["),
    T("]"),
    T("{"),
    T("}"),
    T("[1,]"),
    T("[,1]"),
    T("[1,,2]"),
    T("[1 2]"),
    T("[1]x"),
    T("[1]]"),
    T("{}{}"),
    T("[],"),
    T("[1:2]"),
    T("{\"a\"}"),
    T("{\"a\":}"),
    T("{\"a\":1,}"),
    T("{,}"),
    T("{a:1}"),
    T("{'a':1}"),
    T("{1:1}"),
    T("{\"a\" 1}"),
    T("{\"a\"::1}"),
    T("{\"a\":1 \"b\":2}"),
    T("{\"a\":1]"),
    T("[1}"),
    T("{\"a\":1,\"a\":2}"),
    T("{\"a\":1,\"\\u0061\":2}"),
    T("{\"\":1,\"\":2}"),
    T("{\"\\ud83d\\ude39\":1,\"\xf0\x9f\x98\xb9\":2}"),
    T("{\"x\":[{\"a\":1,\"b\":2,\"a\":3}]}"),
    T("{\"/\":1,\"\\/\":2}"),
    T("[+1]"),
    T("[01]"),
    T("[-01]"),
    T("[-]"),
    T("[--1]"),
    T("[.1]"),
    T("[1.]"),
    T("[1.e1]"),
    T("[1e]"),
    T("[1e+]"),
    T("[1eE2]"),
    T("[0x1]"),
    T("[1_0]"),
    T("[Infinity]"),
    T("[NaN]"),
    T("[-NaN]"),
    T("[1e400]"),
    T("[-1e400]"),
    T("[1e309]"),
    T("[1.7976931348623159e308]"),
    T("[1e99999999999999999999]"),
    T("[0.00001e314]"),
    T("[1e-16384]"),
    T("[-1.5e-16383]"),
    T("[0e-99999]"),
    T("[0e16384]"),
    T("[0e999999999999]"),
    T("[0.0e999999999999]"),
    T("[1e-99999999999999999999]"),
    T("[9223372036854775808]"),
    T("[-9223372036854775809]"),
    T("[12345678901234567890123]"),
    T("[tru]"),
    T("[True]"),
    T("[truee]"),
    T("[nul]"),
    T("[nullx]"),
    T("[fals"),
    T("nul"),
    T("[\"a]"),
    T("[\"\\\"]"),
    T("[\"\\x\"]"),
    T("[\"\\u00A\"]"),
    T("[\"\\u00\"]"),
    T("[\"\\uqqqq\"]"),
    T("[\"\\u 123\"]"),
    T("[\"\\u0000\"]"),
    T("{\"\\u0000\":1}"),
    T("[\"\\ud800\"]"),
    T("[\"\\udc00\"]"),
    T("[\"\\ud800\\u0041\"]"),
    T("[\"\\ud800\\ud800\"]"),
    T("[\"\\ud800\\n\"]"),
    T("[\"\\ud800abc\"]"),
    T("[\"\\ud83d\\udc8"),
    T("[\"\\"),
    T("[\"\\u"),
    T("[\"a\0b\"]"),
    T("[\"a\nb\"]"),
    T("[\"a\tb\"]"),
    T("[\"\x1f\"]"),
    T("[1]\0"),
    T("\0"),
    T("[\x0c]"),
    T("[\xc2\xa0]"),
    T("\xef\xbb\xbf{}"),
    T("[\"\x80\"]"),
    T("[\"\xc0\x80\"]"),
    T("[\"\xc1\xbf\"]"),
    T("[\"\xe0\x9f\xbf\"]"),
    T("[\"\xed\xa0\x80\"]"),
    T("[\"\xed\xbf\xbf\"]"),
    T("[\"\xf0\x8f\xbf\xbf\"]"),
    T("[\"\xf4\x90\x80\x80\"]"),
    T("[\"\xf5\x80\x80\x80\"]"),
    T("[\"\xfe\"]"),
    T("[\"\xff\"]"),
    T("[\"\xc2\"]"),
    T("[\"\xe2\x80\"]"),
    T("[\"\xf0\x9d\x84\"]"),
    T("[\"\xe2\""),
    T("\"\xc2"),
    T("[// c\n1]"),
    T("[/**/1]"),
    T("[1]//"),
    T("{\"a\":\"b\"}#"),
    T("*"),
    T("a"),
    T("<.>"),
    T("[" D16 "]" E16),
    T(D16 "{}" E16),
    T("\""),
    T("\"a"),
    T("'a'"),
    T("{\"a\":/*c*/1}"),
    T("{\"a\":1}}"),
    T("[\"a\",\n4\n,1,"),
    T("{\"9\":0,\"99\":1,\"999\":2,\"9\":3}"),
};

static void check(const struct text_case *c, bool good)
{
	/* A copy of exactly n bytes: the sanitizer sees any look behind the end. */
	char *copy = malloc(c->n ? c->n : 1);
	struct json_fault fault = {0};
	json_t *oracle;
	int r;

	assert_non_null(copy);
	memcpy(copy, c->json, c->n);
	r = json_validate(copy, c->n, 16, &fault);
	if ((r == 0) != good)
		fail_msg("%.*s: %s", (int)c->n, c->json, good ? fault.what : "was accepted");
	if (!good) {
		assert_int_equal(r, -EBADMSG);
		assert_non_null(fault.what);
		assert_true(fault.offset <= c->n);
	}
	oracle = oracle_load(copy, c->n, 16);
	if ((oracle != NULL) != good)
		fail_msg("jansson disagrees on %.*s", (int)c->n, c->json);
	json_decref(oracle);
	free(copy);
}

static void test_validate_accepts(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(accepted); i++)
		check(&accepted[i], true);
}

static void test_validate_refuses(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(refused); i++)
		check(&refused[i], false);
}

/* Every prefix of a good document is refused, unless it is a number or ends in space. */
static void test_validate_refuses_prefixes(void **state)
{
	static const char json[] =
	    "{\"type\":\"TELEMETRY\",\"a\":[1.5e3,-2,\"\\u00e9\xc3\xa9\"],\"b\":{\"c\":null}}";

	(void)state;
	assert_int_equal(json_validate(json, sizeof json - 1, 16, NULL), 0);
	for (size_t n = 0; n < sizeof json - 1; n++) {
		struct text_case c = {json, n};

		check(&c, false);
	}
}

static void test_validate_names_the_byte(void **state)
{
	struct json_fault fault;

	(void)state;
	assert_int_equal(json_validate("[1,2,x]", 7, 16, &fault), -EBADMSG);
	assert_int_equal(fault.offset, 5);
	assert_int_equal(json_validate("{\"ab\":1,\"ab\":2}", 15, 16, &fault), -EBADMSG);
	assert_int_equal(fault.offset, 9);
	assert_non_null(strstr(fault.what, "before"));
}

static void test_validate_depth(void **state)
{
	char deep[200];

	(void)state;
	memset(deep, '[', 100);
	memset(deep + 100, ']', 100);
	assert_int_equal(json_validate(deep + 99, 2, 1, NULL), 0);
	assert_int_equal(json_validate(deep + 98, 4, 1, NULL), -EBADMSG);
	assert_int_equal(json_validate("1", 1, 0, NULL), 0);
	assert_int_equal(json_validate("[]", 2, 0, NULL), -EBADMSG);
	assert_int_equal(json_validate(deep + 36, 128, 1000, NULL), 0);
	assert_int_equal(json_validate(deep + 35, 130, 1000, NULL), -EBADMSG);
}

/* ---- many names ---- */

static char *object_of(size_t names, size_t repeat, size_t *ret_n)
{
	char *json = malloc(names * 32 + 32);
	size_t at = 0;

	assert_non_null(json);
	json[at++] = '{';
	for (size_t i = 0; i < names; i++)
		at += (size_t)sprintf(json + at, "%s\"k%zu\":{\"k\":0}", i ? "," : "",
				      i + 1 == names && repeat != SIZE_MAX ? repeat : i);
	json[at++] = '}';
	*ret_n = at;
	return json;
}

static void test_validate_many_names(void **state)
{
	static const size_t sizes[] = {2,  23,	24,  25,  26,  63,   64,   65,
				       66, 128, 255, 256, 257, 1000, 20000};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		size_t n;
		char *json = object_of(sizes[i], SIZE_MAX, &n);

		assert_int_equal(json_validate(json, n, 16, NULL), 0);
		free(json);
		for (size_t repeat = 0; repeat + 1 < sizes[i]; repeat += 1 + sizes[i] / 7) {
			json = object_of(sizes[i], repeat, &n);
			assert_int_equal(json_validate(json, n, 16, NULL), -EBADMSG);
			free(json);
		}
	}
}

/* Outer names survive what inner objects do with the table and the key stack. */
static void test_validate_nested_names(void **state)
{
	size_t n, at = 0;
	char *inner = object_of(300, SIZE_MAX, &n), *json = malloc(16 * (n + 64));

	(void)state;
	assert_non_null(json);
	at += (size_t)sprintf(json, "{\"first\":1");
	for (int i = 0; i < 14; i++)
		at += (size_t)sprintf(json + at, ",\"n%d\":%.*s", i, (int)n, inner);
	(void)sprintf(json + at, ",\"last\":1}");
	assert_int_equal(json_validate(json, strlen(json), 16, NULL), 0);
	(void)sprintf(json + at, ",\"first\":1}");
	assert_int_equal(json_validate(json, strlen(json), 16, NULL), -EBADMSG);
	(void)sprintf(json + at, ",\"n7\":1}");
	assert_int_equal(json_validate(json, strlen(json), 16, NULL), -EBADMSG);
	free(inner);
	free(json);
}

/* ---- strings, numbers, walking ---- */

static void test_unescape(void **state)
{
	static const char raw[] = "a\\u00e9\\ud83d\\ude39\\n\\/\\\"\xc3\xa9z";
	struct buf out;

	(void)state;
	buf_init(&out, 64);
	assert_int_equal(json_unescape((struct span){raw, sizeof raw - 1}, &out), 0);
	assert_string_equal(out.data, "a\xc3\xa9\xf0\x9f\x98\xb9\n/\"\xc3\xa9z");
	buf_fini(&out);
	buf_init(&out, 3);
	assert_int_equal(json_unescape(SPAN("abcd"), &out), -ENOBUFS);
	buf_fini(&out);
}

/* One name written plainly and with escapes has one hash, whatever its length. */
static void test_key_hash_ignores_escapes(void **state)
{
	char plain[40], escaped[300];

	(void)state;
	for (size_t n = 0; n < sizeof plain; n++) {
		for (size_t i = 0; i < n; i++) {
			plain[i] = (char)('a' + i % 26);
			(void)sprintf(escaped + 6 * i, "\\u%04x", plain[i]);
		}
		assert_int_equal(json_key_hash(plain, n, false),
				 json_key_hash(escaped, 6 * n, true));
		assert_true(json_raw_eq((struct span){n ? escaped : "", 6 * n}, plain, n));
	}
}

static void test_int(void **state)
{
	int64_t v;

	(void)state;
	assert_int_equal(json_int(SPAN("-9223372036854775808"), &v), 0);
	assert_true(v == INT64_MIN);
	assert_int_equal(json_int(SPAN("9223372036854775807"), &v), 0);
	assert_true(v == INT64_MAX);
	assert_int_equal(json_int(SPAN("-0"), &v), 0);
	assert_int_equal(v, 0);
	assert_int_equal(json_int(SPAN("9223372036854775808"), &v), -ERANGE);
	assert_int_equal(json_int(SPAN("-9223372036854775809"), &v), -ERANGE);
	assert_int_equal(json_int(SPAN("1.0"), &v), -EINVAL);
	assert_int_equal(json_int(SPAN("1e2"), &v), -EINVAL);
	assert_int_equal(json_int(SPAN("-"), &v), -EINVAL);
	assert_int_equal(json_int(SPAN(""), &v), -EINVAL);
}

static void test_num(void **state)
{
	(void)state;
	assert_true(json_num(SPAN("12.5")) == 12.5);
	assert_true(json_num(SPAN("-1e-3")) == -1e-3);
	assert_true(
	    json_num(
		SPAN("0.1000000000000000000000000000000000000000000000000000000000000000000000")) ==
	    0.1);
}

static void test_iter(void **state)
{
	static const char json[] = " { \"a\" : 1 , \"b\\\"c\":[1,{\"x\":\"]}\"}],\"s\":\"q\\\\\" "
				   ",\"t\":true,\"n\":null,\"r\":-1.5} ";
	static const enum json_type types[] = {JSON_T_INT,  JSON_T_ARR,	 JSON_T_STR,
					       JSON_T_BOOL, JSON_T_NULL, JSON_T_REAL};
	static const char *const raws[] = {"1",	  "[1,{\"x\":\"]}\"}]", "q\\\\", "true", "null",
					   "-1.5"};
	struct json_iter it;
	struct json_member m;
	size_t i = 0;

	(void)state;
	assert_int_equal(json_validate(json, sizeof json - 1, 16, NULL), 0);
	json_iter_init(&it, (struct span){json, sizeof json - 1});
	for (; json_iter_next(&it, &m); i++) {
		assert_in_range(i, 0, ARRAY_LEN(types) - 1);
		assert_int_equal(m.type, types[i]);
		assert_true(span_eq(m.raw, raws[i]));
	}
	assert_int_equal(i, ARRAY_LEN(types));
	assert_true(json_find((struct span){json, sizeof json - 1}, "b\"c", &m));
	assert_int_equal(m.type, JSON_T_ARR);
	assert_false(json_find((struct span){json, sizeof json - 1}, "x", &m));
	json_iter_init(&it, SPAN("[]"));
	assert_false(json_iter_next(&it, &m));
	json_iter_init(&it, SPAN("[ 1 , \"a\" ]"));
	assert_true(json_iter_next(&it, &m) && m.type == JSON_T_INT && !m.key.p);
	assert_true(json_iter_next(&it, &m) && span_eq(m.raw, "a"));
	assert_false(json_iter_next(&it, &m));
}

static void test_span(void **state)
{
	char small[4], *copy;

	(void)state;
	assert_int_equal(span_copy(SPAN("abc"), small, sizeof small), 0);
	assert_string_equal(small, "abc");
	assert_int_equal(span_copy(SPAN("abcd"), small, sizeof small), -ENOBUFS);
	assert_int_equal(span_copy(span_of(NULL), small, sizeof small), 0);
	assert_string_equal(small, "");
	assert_null(span_dup(span_of(NULL)));
	copy = span_dup(SPAN("xy"));
	assert_string_equal(copy, "xy");
	free(copy);
	assert_false(span_eq(span_of(NULL), ""));
	assert_true(span_eq(SPAN(""), ""));
}

/* ---- against jansson, on documents made and then damaged at random ---- */

static uint64_t random_state = 0x20261120;

static uint32_t random_below(uint32_t bound)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 11) % bound;
}

static const char *const atoms[] = {
    "0",
    "-0",
    "1",
    "-12",
    "3.25",
    "1e5",
    "1E-7",
    "9223372036854775807",
    "9223372036854775808",
    "1.7976931348623157e308",
    "1.7976931348623159e308",
    "2e308",
    "0.0000001e315",
    "1e400",
    "1e-16383",
    "1e-16384",
    "00",
    "1.",
    "\"\"",
    "\"a\"",
    "\"\\u0041\"",
    "\"\\ud83d\\ude39\"",
    "\"\\ud83d\"",
    "\"\\u0000\"",
    "\"\xc3\xa9\"",
    "\"\xed\xa0\x80\"",
    "\"0123456789abcdef\\n\"",
    "true",
    "false",
    "null",
    "{}",
    "[]",
    "nul",
};
static const char *const names[] = {
    "\"a\"", "\"b\"",		"\"c\"",	   "\"d\"",	   "\"\\u0061\"",
    "\"\"",  "\"long-name-1\"", "\"long-name-2\"", "\"\xc3\xa9\"", "\"\\u00e9\""};

static size_t make_document(char *out, size_t cap)
{
	char closers[20];
	size_t at = 0, depth = 0;

	while (at + 64 < cap) {
		bool object = depth && closers[depth - 1] == '}';

		if (object)
			at +=
			    (size_t)sprintf(out + at, "%s:", names[random_below(ARRAY_LEN(names))]);
		if (depth < 18 && random_below(3) == 0) {
			bool o = random_below(2);

			out[at++] = o ? '{' : '[';
			closers[depth++] = o ? '}' : ']';
			continue;
		}
		at += (size_t)sprintf(out + at, "%s", atoms[random_below(ARRAY_LEN(atoms))]);
		while (depth && random_below(3) == 0)
			out[at++] = closers[--depth];
		if (!depth)
			return at;
		out[at++] = ',';
	}
	return at;
}

static void damage(char *json, size_t *n)
{
	static const char bytes[] = "{}[]\",:\\u0123456789.eE+-tfn \t\n\x80\xc3\xe2\xff";
	size_t i = random_below((uint32_t)*n);

	switch (random_below(4)) {
	case 0:
		json[i] = bytes[random_below(sizeof bytes)]; /* its NUL too */
		break;
	case 1:
		json[i] = (char)(json[i] ^ 1 << random_below(8));
		break;
	case 2:
		memmove(json + i, json + i + 1, *n - i - 1);
		--*n;
		break;
	default:
		*n = i;
	}
}

static void test_validate_as_jansson(void **state)
{
	static char json[4096];
	size_t good = 0, rounds = 60000;

	(void)state;
	for (size_t round = 0; round < rounds; round++) {
		size_t n = make_document(json, random_below(2) ? 200 : 900);
		struct json_fault fault = {0};
		json_t *oracle;
		int r;

		if (random_below(3) == 0 && n)
			damage(json, &n);
		r = json_validate(json, n, 16, &fault);
		oracle = oracle_load(json, n, 16);
		if ((r == 0) != (oracle != NULL))
			fail_msg("%.*s: here %s", (int)n, json, r ? fault.what : "accepted");
		good += r == 0;
		json_decref(oracle);
	}
	/* Both sides of the fence were visited. */
	assert_in_range(good, rounds / 50, rounds - rounds / 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_validate_accepts),
	    cmocka_unit_test(test_validate_refuses),
	    cmocka_unit_test(test_validate_refuses_prefixes),
	    cmocka_unit_test(test_validate_names_the_byte),
	    cmocka_unit_test(test_validate_depth),
	    cmocka_unit_test(test_validate_many_names),
	    cmocka_unit_test(test_validate_nested_names),
	    cmocka_unit_test(test_unescape),
	    cmocka_unit_test(test_key_hash_ignores_escapes),
	    cmocka_unit_test(test_int),
	    cmocka_unit_test(test_num),
	    cmocka_unit_test(test_iter),
	    cmocka_unit_test(test_span),
	    cmocka_unit_test(test_validate_as_jansson),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
