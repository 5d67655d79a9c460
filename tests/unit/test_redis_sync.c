/* The blocking client of lib/redis and stream entries, against a real redis-server; URLs. */
#include "redis_server.h"

#include <errno.h>
#include <poll.h>

#include "redis/streams.h"

static void test_nested_and_large_replies(void **state UNUSED)
{
	struct redis_sync *s;
	const struct redis_reply *r;
	size_t n = 3 << 20;
	char *big = malloc(n);
	struct span argv[3] = {SPAN("SET"), SPAN("big"), {big, n}};
	int error;

	memset(big, 'x', n);
	assert_ok(redis_sync_new(url, 5000, &s));
	assert_non_null(redis_sync_cmd(s, &error, 3, argv));
	r = redis_sync_cmdf(s, &error, "GET big");
	assert_int_equal(redis_str(r).n, n);
	assert_memory_equal(redis_str(r).p, big, n);
	r = redis_sync_cmdf(s, &error, "EVAL %b 0",
			    SPAN("return {1,{2,{3,'four',false}},{},'\\r\\n'}"));
	assert_int_equal(redis_len(r), 4);
	assert_int_equal(redis_int(redis_at(redis_at(redis_at(r, 1), 1), 0)), 3);
	assert_int_equal(redis_type(redis_at(redis_at(redis_at(r, 1), 1), 2)), REDIS_NIL);
	assert_int_equal(redis_len(redis_at(r, 2)), 0);
	assert_null(redis_at(r, 4));
	/* Both halves by themselves, several at once, and in steps that do not wait. */
	for (int i = 0; i < 2; i++)
		assert_ok(redis_sync_send(s, 2, (struct span[]){SPAN("GET"), SPAN("big")}));
	r = redis_sync_receive(s, &error);
	assert_int_equal(redis_str(r).n, n);
	int steps = 0, got;
	while ((got = redis_sync_take(s, &r)) != 1) {
		struct pollfd fd = {.fd = redis_sync_fd(s), .events = POLLIN};
		assert_true(got == 0 || got == -EAGAIN);
		steps += got == 0;
		if (got == -EAGAIN)
			assert_int_equal(poll(&fd, 1, 5000), 1);
	}
	assert_true(steps > 10);
	assert_int_equal(redis_str(r).n, n);
	redis_sync_set_reply_max(s, n / 2);
	assert_ok(redis_sync_send(s, 2, (struct span[]){SPAN("GET"), SPAN("big")}));
	while ((got = redis_sync_take(s, &r)) == 0 || got == -EAGAIN)
		(void)poll(NULL, 0, 1);
	assert_int_equal(got, -EMSGSIZE);
	assert_int_equal(redis_sync_take(s, &r), -ENOTCONN);
	/* A hundred thousand words of one letter: 0.7 MB, but ten times that in memory. */
	r = redis_sync_cmdf(s, &error, "EVAL %b 0",
			    SPAN("local t = {} for i = 1, 100000 do t[i] = 'x' end return t"));
	assert_null(r);
	assert_int_equal(error, -EMSGSIZE);
	redis_sync_set_reply_max(s, 0);
	r = redis_sync_cmdf(s, &error, "ECHO well");
	assert_true(span_eq(redis_str(r), "well"));
	redis_sync_free(s);
	free(big);
}

static void test_sync_reconnects_and_times_out(void **state UNUSED)
{
	struct redis_sync *s;
	int error;

	assert_ok(redis_sync_new(url, 300, &s));
	assert_non_null(redis_sync_cmdf(s, &error, "PING"));
	server_kill();
	assert_null(redis_sync_cmdf(s, &error, "PING"));
	assert_int_equal(error, -ENOTCONN);
	assert_null(redis_sync_cmdf(s, &error, "PING"));
	assert_true(error < 0);
	server_start(NULL);
	server_wait(url);
	assert_non_null(redis_sync_cmdf(s, &error, "PING"));
	assert_null(redis_sync_cmdf(s, &error, "BLPOP nothing 5"));
	assert_int_equal(error, -ETIMEDOUT);
	/* The late answer of the dropped connection is never taken for the next one's. */
	assert_string_equal(redis_str(redis_sync_cmdf(s, &error, "ECHO me")).p, "me");
	redis_sync_set_timeout(s, 3000);
	assert_int_equal(redis_type(redis_sync_cmdf(s, &error, "BLPOP nothing 1")), REDIS_NIL);
	assert_int_equal(error, 0);
	redis_sync_free(s);
}

static void test_streams(void **state UNUSED)
{
	struct redis_sync *s;
	const struct redis_reply *r;
	struct stream_entry e;
	int64_t ms;
	int error;

	assert_ok(redis_sync_new(url, 1000, &s));
	(void)redis_sync_cmdf(s, &error, "XGROUP CREATE st g 0 MKSTREAM");
	r = redis_sync_cmdf(s, &error, "XREADGROUP GROUP g c STREAMS st >");
	assert_null(stream_read_entries(r));
	(void)redis_sync_cmdf(s, &error, "XADD st 1700000000123-4 agent_id a1 frame %b",
			      SPAN("{\"x y\":1}"));
	r = redis_sync_cmdf(s, &error, "XREADGROUP GROUP g c STREAMS st >");
	r = stream_read_entries(r);
	assert_int_equal(redis_len(r), 1);
	assert_ok(stream_entry_parse(redis_at(r, 0), &e));
	assert_true(span_eq(stream_field(&e, "frame"), "{\"x y\":1}"));
	assert_null(stream_field(&e, "fram").p);
	assert_ok(stream_id_ms(e.id, &ms));
	assert_int_equal(ms, 1700000000123);
	(void)redis_sync_cmdf(s, &error, "XTRIM st MAXLEN 0");
	r = stream_read_entries(redis_sync_cmdf(s, &error, "XREADGROUP GROUP g c STREAMS st 0"));
	assert_ok(stream_entry_parse(redis_at(r, 0), &e));
	assert_null(e.fields);
	assert_null(stream_field(&e, "frame").p);
	assert_int_equal(stream_id_ms(SPAN("12"), &ms), -EINVAL);
	assert_int_equal(stream_id_ms(SPAN("-1"), &ms), -EINVAL);
	assert_int_equal(stream_id_ms(SPAN("99999999999999999999-1"), &ms), -EINVAL);
	assert_int_equal(stream_id_ms(SPAN("12-x"), &ms), -EINVAL);
	assert_ok(stream_id_ms(SPAN("18446744073709551615-1"), &ms));
	assert_true(ms == INT64_MAX);
	assert_ok(stream_entry_ms(SPAN("1700000000123-0"), &ms));
	assert_int_equal(ms, 1700000000123);
	assert_ok(stream_entry_ms(SPAN("18446744073709551615-1"), &ms));
	assert_in_range(ms, 1700000000123, 253402300799999);
	redis_sync_free(s);
}

/* ---- URLs: no server ---- */

static void test_urls(void **state UNUSED)
{
	static const char *const good[] = {
	    "redis://127.0.0.1:6379/0", "redis://h",	    "redis://h/",
	    "redis://:p@h:1/3",		"redis://u:p%40@h", "redis://[::1]:6379/1",
	    "unix:///run/r.sock",	"unix:///r?db=2",   "unix://:p@/run/r.sock",
	};
	static const char *const bad[] = {
	    "",
	    "http://h",
	    "redis://",
	    "redis://h:0",
	    "redis://h:99999",
	    "redis://h/x",
	    "redis://u@h",
	    "redis://[::1",
	    "rediss://h",
	    "unix://rel",
	    "unix:///r?x=1",
	    "redis://h:6379x",
	    "redis://:%zz@h",
	    "redis://:a%@h",
	    "redis://h/1/2",
	    "unix:///r?db=",
	};
	char msg[200];

	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		assert_ok(redis_url_check(good[i], msg, sizeof(msg)));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		msg[0] = '\0';
		assert_int_equal(redis_url_check(bad[i], msg, sizeof(msg)), -EINVAL);
		assert_true(msg[0]);
	}
	assert_int_equal(redis_url_check("redis://u:swordfish@h:x", msg, sizeof(msg)), -EINVAL);
	assert_null(strstr(msg, "swordfish"));
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, server_set_up, server_tear_down)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_urls),
	    CASE(test_nested_and_large_replies),
	    CASE(test_sync_reconnects_and_times_out),
	    CASE(test_streams),
	};

	return cmocka_run_group_tests(tests, group_set_up, group_tear_down);
}
