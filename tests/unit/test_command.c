/* agent-bridge/command.c: times and limits of command entries; entries come from a real Redis
 * reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "redis/redis_internal.h"

static struct redis_reader *reader;

/* An entry as XRANGE would give it; NULL ends the fields. */
static struct stream_entry entry(const char *id, ...)
{
	struct stream_entry e;
	const struct redis_reply *r;
	static char text[301000], fields[300000];
	size_t n = 0, at = 0;
	va_list ap;

	fields[0] = '\0';
	va_start(ap, id);
	for (const char *s = va_arg(ap, const char *); s; s = va_arg(ap, const char *), n++)
		at += (size_t)snprintf(fields + at, sizeof(fields) - at, "$%zu\r\n%s\r\n",
				       strlen(s), s);
	va_end(ap);
	(void)snprintf(text, sizeof(text), "*2\r\n$%zu\r\n%s\r\n*%zu\r\n%s", strlen(id), id, n,
		       fields);
	assert_int_equal(redis_reader_feed(reader, text, strlen(text)), 0);
	assert_int_equal(redis_reader_next(reader, &r), 1);
	assert_int_equal(stream_entry_parse(r, &e), 0);
	return e;
}

#define ENTRY_MS 1700000000000LL
/* The last argument is NULL. */
#define ENTRY(...)                                                                             \
	entry("1700000000000-0", "correlation_id", "c-1", "agent_id", "a1", "command", "ECHO", \
	      __VA_ARGS__)

static const struct allowlist everyone;

static struct command parse(struct stream_entry e)
{
	struct command c;

	command_parse(&e, &everyone, &c);
	return c;
}

static int set_up(void **state)
{
	(void)state;
	return redis_reader_new(&reader);
}

static int tear_down(void **state)
{
	(void)state;
	redis_reader_free(reader);
	return 0;
}

static void test_defaults(void **state)
{
	struct command c = parse(ENTRY(NULL));

	(void)state;
	assert_int_equal(c.kind, COMMAND_RUN);
	assert_true(span_eq(c.params, "{}"));
	assert_int_equal(c.issued_at_ms, ENTRY_MS);
	assert_int_equal(c.expires_at_ms, ENTRY_MS + 60000);
	assert_string_equal(c.expires_at, "2023-11-14T22:14:20.000Z");
	assert_false(c.maybe_ran);
}

static void test_expires_at_wins_over_ttl(void **state)
{
	struct command c =
	    parse(ENTRY("ttl_s", "5", "expires_at", "2023-11-14T23:00:00+00:00", NULL));

	(void)state;
	assert_int_equal(c.kind, COMMAND_RUN);
	assert_string_equal(c.expires_at, "2023-11-14T23:00:00.000Z");
}

static void test_ttl_counts_from_issued_at_but_never_from_the_future(void **state)
{
	struct command c = parse(ENTRY("ttl_s", "100", "issued_at", "2023-11-14T22:13:00Z", NULL));

	(void)state;
	assert_int_equal(c.expires_at_ms, ENTRY_MS - 20000 + 100000);
	c = parse(ENTRY("ttl_s", "86400", "issued_at", "2023-11-14T22:14:00Z", NULL));
	assert_int_equal(c.kind, COMMAND_RUN); /* a clock 40 s ahead does not lose the command */
	assert_int_equal(c.expires_at_ms, ENTRY_MS + 86400000);
	assert_string_equal(c.issued_at, "2023-11-14T22:14:00.000Z");
}

static void test_twenty_four_hours_ahead_and_no_more(void **state)
{
	(void)state;
	assert_int_equal(parse(ENTRY("expires_at", "2023-11-15T22:13:20Z", NULL)).kind,
			 COMMAND_RUN);
	assert_string_equal(parse(ENTRY("expires_at", "2023-11-15T22:13:20.001Z", NULL)).code,
			    "expiry_too_far");
	assert_int_equal(parse(ENTRY("ttl_s", "86400", NULL)).kind, COMMAND_RUN);
	assert_string_equal(parse(ENTRY("ttl_s", "86401", NULL)).code, "bad_ttl");
	assert_string_equal(parse(ENTRY("ttl_s", "1.5", NULL)).code, "bad_ttl");
	assert_string_equal(parse(ENTRY("ttl_s", "-1", NULL)).code, "bad_ttl");
}

static void test_cancel_needs_only_ids(void **state)
{
	struct stream_entry e = entry("1700000000000-0", "op", "cancel", "correlation_id", "c-1",
				      "agent_id", "a1", NULL);
	struct command c = parse(e);

	(void)state;
	assert_int_equal(c.kind, COMMAND_CANCEL);
	assert_false(c.maybe_ran);
	c = parse(ENTRY("op", "cancel", "reason", "redis_lost", NULL));
	assert_int_equal(c.kind, COMMAND_CANCEL);
	assert_true(c.maybe_ran);
	assert_true(parse(ENTRY("requeued", "offered", NULL)).maybe_ran);
}

static void test_cancel_leaves_out_what_is_not_as_it_should_be(void **state)
{
	static char large[100000];
	struct command c;

	(void)state;
	memset(large, 'x', sizeof(large) - 1);
	c = parse(
	    ENTRY("op", "cancel", "requeued", "1", "params", large, "signature", large, NULL));
	assert_int_equal(c.kind, COMMAND_CANCEL);
	assert_true(c.maybe_ran && span_eq(c.params, "{}") && !c.signature.n);
	assert_true(span_eq(c.verb, "ECHO"));
	c = parse(entry("1700000000000-0", "correlation_id", "c-1", "agent_id", "a1", "command",
			large, "params", "{\"a\":1}", "signature", "s", "op", "cancel", NULL));
	assert_true(!c.verb.n && span_eq(c.params, "{\"a\":1}") && span_eq(c.signature, "s"));
}

static void test_a_bad_agent_id_becomes_safe_text(void **state)
{
	static const char *const cases[][2] = {
	    {"a b\"c", "a_b_c"},
	    {"-x", "invalid"},
	    {"", "invalid"},
	    {"0123456789012345678901234567890123456789012345678901234567890123456789",
	     "0123456789012345678901234567890123456789012345678901234567890123"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct command c = parse(entry("1-1", "correlation_id", "c", "agent_id",
					       cases[i][0], "command", "ECHO", NULL));

		assert_int_equal(c.kind, COMMAND_REJECT);
		assert_string_equal(c.code, "bad_agent_id");
		assert_string_equal(c.agent, cases[i][1]);
	}
}

/* Field, fault and remedy; no quote and no backslash, since the words stand in a frame as they are.
 */
static void test_a_refusal_says_what_is_wrong_and_where(void **state)
{
	static char large[70000];
	static const char *const cases[][3] = {
	    {"params", "[1]", "not an object at byte 0"},
	    {"params", " null", "not an object at byte 1"},
	    {"params", "{message:1}", "a member needs a name in quotes at byte 1"},
	    {"params", "{\"a\":1,\"a\":2}", "a name that was there before at byte "},
	    {"params", "{\"a\":\"\\u0000\"}", ": u0000 is not allowed at byte 6"},
	    {"params", "{\"a\":\"\\ud800\"}", "a lone surrogate at byte 6"},
	    {"params", large,
	     "at most 64 KiB, nested at most 14 deep, with no name twice, no NUL and "
	     "in UTF-8: not over yet at byte 65536"},
	    {"agent_id", "a b",
	     "agent_id is missing or does not fit [A-Za-z0-9][A-Za-z0-9._-]{0,63}"},
	    {"expires_at", "2026-11-20T11:09:00", "with its zone, such as 2026-11-20T11:09:00Z"},
	    {"issued_at", "noon", "with its zone, such as 2026-11-20T11:09:00Z"},
	    {"op", "stop", "op must be run or cancel"},
	};

	(void)state;
	memset(large, 'x', sizeof(large) - 1);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		bool agent = !strcmp(cases[i][0], "agent_id");
		struct command c = parse(entry("1-1", "correlation_id", "c", "agent_id",
					       agent ? cases[i][1] : "a1", "command", "ECHO",
					       cases[i][0], cases[i][1], NULL));

		assert_int_equal(c.kind, COMMAND_REJECT);
		assert_non_null(strstr(c.reason, cases[i][2]));
		assert_memory_equal(c.reason, cases[i][0], strlen(cases[i][0]));
		assert_null(strpbrk(c.reason, "\"\\"));
		assert_true(strlen(c.reason) < sizeof(c.reason) - 1);
	}
}

static void test_no_id_is_dropped(void **state)
{
	(void)state;
	assert_int_equal(parse(entry("1-1", "agent_id", "a", NULL)).kind, COMMAND_DROP);
	assert_int_equal(parse(entry("1-1", "correlation_id", "a b", NULL)).kind, COMMAND_DROP);
}

static void test_allowlist(void **state)
{
	struct stream_entry e = ENTRY(NULL);
	struct allowlist allowed;
	struct command c;

	(void)state;
	assert_int_equal(allowlist_parse("b,a1,a0", &allowed), 0);
	command_parse(&e, &allowed, &c);
	assert_int_equal(c.kind, COMMAND_RUN);
	allowlist_fini(&allowed);
	assert_int_equal(allowlist_parse("b", &allowed), 0);
	command_parse(&e, &allowed, &c);
	assert_string_equal(c.code, "not_allowed");
	allowlist_fini(&allowed);
	assert_int_equal(allowlist_parse(NULL, &allowed), 0);
	assert_true(allowlist_has(&allowed, "anyone"));
	allowlist_fini(&allowed);
	assert_int_equal(allowlist_parse("", &allowed), 0);
	assert_true(allowlist_has(&allowed, "anyone"));
	allowlist_fini(&allowed);
}

static void test_digest_tells_content_apart(void **state)
{
	char a[65], b[65];

	(void)state;
	command_digest(SPAN("a"), SPAN("bc"), SPAN("{}"), a);
	command_digest(SPAN("ab"), SPAN("c"), SPAN("{}"), b);
	assert_string_not_equal(a, b);
	command_digest(SPAN("a"), SPAN("bc"), SPAN("{}"), b);
	assert_string_equal(a, b);
	assert_int_equal(strlen(a), 64);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	    CASE(test_defaults),
	    CASE(test_expires_at_wins_over_ttl),
	    CASE(test_ttl_counts_from_issued_at_but_never_from_the_future),
	    CASE(test_twenty_four_hours_ahead_and_no_more),
	    CASE(test_cancel_needs_only_ids),
	    CASE(test_cancel_leaves_out_what_is_not_as_it_should_be),
	    CASE(test_a_bad_agent_id_becomes_safe_text),
	    CASE(test_a_refusal_says_what_is_wrong_and_where),
	    CASE(test_no_id_is_dropped),
	    CASE(test_allowlist),
	    CASE(test_digest_tells_content_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
