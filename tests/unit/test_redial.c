/* Which backend next and when: URLs, backoff, the table of ends. */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "redial.h"

static struct redial make(const char *csv)
{
	struct redial l;
	char why[256];

	assert_int_equal(redial_init(csv, &l, why, sizeof why), 0);
	return l;
}

static void refuse(const char *csv, const char *word)
{
	struct redial l;
	char why[256];

	assert_int_equal(redial_init(csv, &l, why, sizeof why), -EINVAL);
	if (!strstr(why, word))
		fail_msg("`%s` does not say `%s`", why, word);
}

static void test_redial_init_urls(void **state)
{
	struct redial l =
	    make("wss://bridge.example/agent/ws, wss://[::1]:8443 ,ws://127.0.0.1:8082/x");

	(void)state;
	assert_int_equal(l.n, 3);
	assert_true(l.backend[0].tls);
	assert_string_equal(l.backend[0].authority, "bridge.example");
	assert_int_equal(l.backend[0].port, 443);
	assert_string_equal(l.backend[1].host, "::1");
	assert_string_equal(l.backend[1].authority, "[::1]:8443");
	assert_string_equal(l.backend[1].path, "/agent/ws");
	assert_true(l.backend[1].host_is_ip);
	assert_false(l.backend[2].tls);
	assert_string_equal(l.backend[2].path, "/x");
	redial_fini(&l);
}

static void test_redial_init_refuses(void **state)
{
	(void)state;
	refuse("", "no backend");
	refuse("http://x/", "wss://");
	refuse("wss://", "wss://");
	refuse("wss://a b/", "wss://"); /* the blank ends the first: then `b/` */
	refuse("wss://host:0/", "port");
	refuse("wss://host:65536/", "port");
	refuse("wss://user@host/", "host");
	refuse("wss://[::g]/", "host");
	refuse("ws://bridge.example/agent/ws", "loopback");
	refuse("ws://10.0.0.1/", "loopback");
	refuse("wss://h/a|b", "path");
}

static struct redial_end end_of(enum redial_cause cause, int code)
{
	return (struct redial_end){.cause = cause, .code = code, .retry_after_ms = -1};
}

static int64_t pause_after(struct redial *l, struct redial_end e)
{
	l->current = 0;
	redial_ended(l, &e, -1, 1000);
	return l->backend[0].not_before_ms - 1000;
}

/* Contract 1.2: what the agent does after each close code. */
static void test_redial_ended_close_codes(void **state)
{
	static const struct {
		enum redial_cause cause;
		int code;
		int64_t min_ms, max_ms;
	} rows[] = {
	    {REDIAL_CLOSE, 1001, 0, 5000},	    {REDIAL_CLOSE, 1003, 500, 60000},
	    {REDIAL_CLOSE, 1008, 500, 60000},	    {REDIAL_CLOSE, 4013, 500, 60000},
	    {REDIAL_CLOSE, 4000, 54000, 60000},	    {REDIAL_CLOSE, 4001, 0, 500},
	    {REDIAL_CLOSE, 4003, 3600000, 3600000}, {REDIAL_HTTP, 403, 54000, 60000},
	    {REDIAL_HTTP, 401, 500, 60000},	    {REDIAL_PIN, 0, 54000, 60000},
	    {REDIAL_LOST, 0, 500, 60000},
	};
	size_t i, k;

	(void)state;
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		for (k = 0; k < 50; k++) {
			struct redial l = make("wss://a/");
			int64_t ms = pause_after(&l, end_of(rows[i].cause, rows[i].code));

			if (ms < rows[i].min_ms || ms > rows[i].max_ms)
				fail_msg("cause %d code %d: pause %lld", (int)rows[i].cause,
					 rows[i].code, (long long)ms);
			redial_fini(&l);
		}
	}
}

static void test_redial_ended_always_draining_backs_off(void **state)
{
	struct redial l = make("wss://a/");
	int64_t last = 0, slowest = 0;
	int k;

	(void)state;
	for (k = 0; k < 200; k++) {
		last = pause_after(&l, end_of(REDIAL_CLOSE, 1001));
		assert_true(k >= 10 || last <= 5000);
		slowest = last > slowest ? last : slowest;
	}
	assert_true(slowest > 30000 && slowest <= 60000);
	l.current = 0; /* a connection that lasted: all is forgotten */
	redial_ended(
	    &l, &(struct redial_end){.cause = REDIAL_CLOSE, .code = 1001, .retry_after_ms = -1},
	    120000, 1000);
	assert_true(l.backend[0].not_before_ms - 1000 <= 5000);
	redial_fini(&l);
}

static void test_redial_ended_honours_retry_after(void **state)
{
	struct redial_end e = end_of(REDIAL_HTTP, 503);
	int k;

	(void)state;
	e.retry_after_ms = 20000;
	for (k = 0; k < 50; k++) {
		struct redial l = make("wss://a/");
		int64_t ms = pause_after(&l, e);

		assert_true(ms >= 20000 && ms <= 60000);
		redial_fini(&l);
	}
}

static void test_redial_retry_after_in_both_forms(void **state)
{
	static const char nov6[] = "Sun, 06 Nov 1994 08:49:37 GMT";
	static const struct {
		const char *text, *date;
		int64_t ms;
	} cases[] = {
	    {"0", NULL, 0},
	    {"120", NULL, 120000},
	    {"3600", NULL, 3600000},
	    {"3601", NULL, 3600000},
	    {"99999999999999999999999999", NULL, 3600000},
	    {"000000", NULL, 3600000}, /* nobody writes that */
	    {"", NULL, -1},
	    {"-1", NULL, -1},
	    {"+5", NULL, -1},
	    {" 5", NULL, -1},
	    {"5 s", NULL, -1},
	    {"1.5", NULL, -1},
	    {"soon", NULL, -1},
	    /* the clock here says 08:49:30 */
	    {nov6, NULL, 7000},
	    {"Sunday, 06-Nov-94 08:49:37 GMT", NULL, 7000},
	    {"Sun Nov  6 08:49:37 1994", NULL, 7000},
	    {"Sun, 06 Nov 1994 08:49:29 GMT", NULL, 0},
	    {"Fri, 31 Dec 9999 23:59:59 GMT", NULL, 3600000},
	    {"Sun, 06 Nov 1994 08:49:37", NULL, -1},
	    {"Sun, 06 Nov 1994 08:49:37 GMT+1", NULL, -1},
	    {"Sun, 06 Nov 1994 08:61:37 GMT", NULL, -1},
	    {"1994-11-06T08:49:37Z", NULL, -1},
	    /* who answers has another clock than we */
	    {nov6, "Sun, 06 Nov 1994 08:48:37 GMT", 60000},
	    {nov6, "Sun, 06 Nov 1994 08:49:38 GMT", 0},
	    {nov6, "nonsense", 7000},
	    {"9", "Sun, 06 Nov 1994 08:48:37 GMT", 9000},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++)
		assert_int_equal(redial_retry_after_ms(cases[i].text, cases[i].date, 784111770000),
				 cases[i].ms);
}

static void test_redial_next_uses_the_first_healthy_one(void **state)
{
	struct redial l = make("wss://a/,wss://b/,wss://c/");
	struct redial_end e = end_of(REDIAL_CONNECT, 0);
	struct redial_next n;

	(void)state;
	n = redial_next(&l, 0);
	assert_int_equal(n.backend, 0);
	assert_int_equal(n.wait_ms, 0);
	redial_ended(&l, &e, -1, 0);
	n = redial_next(&l, 0);
	assert_int_equal(n.backend, 1);
	assert_int_equal(n.wait_ms, 0);
	l.current = 1;
	redial_ended(&l, &e, -1, 0);
	l.current = 2;
	redial_ended(&l, &e, -1, 0);
	n = redial_next(&l, 0);
	assert_true(n.wait_ms >= 500 && n.wait_ms <= 60000);
	n = redial_next(&l, 60000); /* all are over: back to the first */
	assert_int_equal(n.backend, 0);
	redial_fini(&l);
}

/* Superseded and revoked are about this agent: another backend would not help. */
static void test_redial_ended_agent_wide(void **state)
{
	struct redial l = make("wss://a/,wss://b/");
	struct redial_end e = end_of(REDIAL_CLOSE, 4000);

	(void)state;
	redial_ended(&l, &e, -1, 0);
	assert_true(redial_next(&l, 0).wait_ms >= 54000);
	e = end_of(REDIAL_CLOSE, 4003);
	redial_ended(&l, &e, -1, 0);
	assert_int_equal(redial_next(&l, 0).wait_ms, 3600000);
	redial_fini(&l);
}

static void test_redial_ended_backoff_grows_and_is_forgotten(void **state)
{
	struct redial_end e = end_of(REDIAL_LOST, 0);
	int64_t longest = 0;
	int k;

	(void)state;
	for (k = 0; k < 20; k++) {
		struct redial l = make("wss://a/");
		int64_t ms = 0;
		int i;

		for (i = 0; i < 30; i++)
			ms = pause_after(&l, e);
		if (ms > longest)
			longest = ms;
		/* connected for less than a quiet minute: not forgotten; for longer: fresh */
		redial_ended(&l, &e, REDIAL_QUIET_MS, 0);
		assert_true(l.backend[0].not_before_ms <= 3 * REDIAL_BASE_MS);
		redial_fini(&l);
	}
	assert_true(longest > 10000);
}

/* 24 hours of a dead backend: dials stay few, nothing grows. */
static void test_redial_day_of_failures(void **state)
{
	struct redial l = make("wss://a/,wss://b/");
	struct redial_end e = end_of(REDIAL_TIMEOUT, 0);
	int64_t now = 0;
	unsigned dials = 0;

	(void)state;
	while (now < 86400000) {
		struct redial_next n = redial_next(&l, now);

		now += n.wait_ms + 15000; /* each try runs into its timeout */
		l.current = n.backend;
		redial_ended(&l, &e, -1, now);
		dials++;
	}
	assert_true(dials > 86400 / 80 && dials < 86400 / 10);
	redial_fini(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_redial_init_urls),
	    cmocka_unit_test(test_redial_init_refuses),
	    cmocka_unit_test(test_redial_ended_close_codes),
	    cmocka_unit_test(test_redial_ended_always_draining_backs_off),
	    cmocka_unit_test(test_redial_ended_honours_retry_after),
	    cmocka_unit_test(test_redial_retry_after_in_both_forms),
	    cmocka_unit_test(test_redial_next_uses_the_first_healthy_one),
	    cmocka_unit_test(test_redial_ended_agent_wide),
	    cmocka_unit_test(test_redial_ended_backoff_grows_and_is_forgotten),
	    cmocka_unit_test(test_redial_day_of_failures),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
