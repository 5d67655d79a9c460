/* What each frame of an agent makes happen, in which state, and what breaks the rules. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "bridge_metrics.h"
#include "fake_dispatch.h"
#include "fake_store.h"
#include "fake_transport.h"
#include "frames.h"
#include "unit.h"

#define HELLO "{\"type\":\"HELLO\",\"agent_id\":\"gw-1\",\"version\":\"1.2.0\",\"capabilities\":[]}"
#define TELEMETRY                                                                        \
	"{\"type\":\"TELEMETRY\",\"agent_id\":\"gw-1\",\"ts\":\"2026-11-20T11:00:00Z\"," \
	"\"metrics\":{\"cpu_pct\":1}}"
#define RESULT                                                                              \
	"{\"type\":\"RESULT\",\"agent_id\":\"gw-1\",\"correlation_id\":\"c-1\",\"status\":" \
	"\"success\"}"

struct fixture {
	struct bridge_settings settings;
	struct metrics *metrics;
	struct sessions sessions;
	struct frames *frames;
	struct session *s;
};

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));
	struct frames_config cfg;

	assert_non_null(x);
	fake_store = (struct fake_store){0};
	fake_dispatch = (struct fake_dispatch){0};
	fake_transport = (struct fake_transport){0};
	x->settings.max_frame_bytes = 262144;
	x->settings.max_in_flight = 4;
	assert_int_equal(metrics_new(bridge_metric_table, M_BRIDGE_METRICS, &x->metrics), 0);
	assert_int_equal(sessions_init(&x->sessions, 50, 1 << 20), 0);
	cfg = (struct frames_config){
	    .metrics = x->metrics,
	    .sessions = &x->sessions,
	    .settings = &x->settings,
	    .limits = {.send_msgs = 100, .send_bytes = 100000, .held_bytes = 100000}};
	assert_int_equal(frames_new(&cfg, &x->frames), 0);
	assert_int_equal(sessions_add(&x->sessions, "gw-1", "127.0.0.1", &x->s), 0);
	x->s->socket = x; /* any */
	x->s->epoch = 7;
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	sessions_fini(&x->sessions);
	frames_free(x->frames);
	metrics_free(x->metrics);
	free(x);
	return 0;
}

static void receive(struct fixture *x, const char *json)
{
	frames_receive(x->frames, x->s, json, strlen(json), 1000);
}

/* The next frame sent must hold this text. */
static void expect_sent(struct fixture *x, const char *text)
{
	struct session_frame *q = session_next(x->s);
	char frame[2000];

	assert_non_null(q);
	assert_true(q->n < sizeof(frame));
	memcpy(frame, q->bytes + SESSION_HEADROOM, q->n);
	frame[q->n] = '\0';
	free(q);
	if (!strstr(frame, text))
		fail_msg("%s is not in %s", text, frame);
}

static void greet(struct fixture *x)
{
	frames_greet(x->frames, x->s, 1000, clock_wall_ms());
	expect_sent(x, "{\"type\":\"HELLO_ACK\",\"agent_id\":\"gw-1\"");
}

static void make_ready(struct fixture *x)
{
	greet(x);
	receive(x, HELLO);
	expect_sent(x, "\"type\":\"WELCOME\"");
}

static void test_hello_makes_ready(void **state)
{
	struct fixture *x = *state;

	make_ready(x);
	assert_int_equal(x->s->state, SESSION_READY);
	assert_int_equal(fake_store.hellos, 1);
	assert_int_equal(fake_dispatch.ready, 1);
	assert_false(fake_dispatch.had_journal);
	receive(x, HELLO);
	expect_sent(x, "WELCOME");
	assert_int_equal(fake_dispatch.ready, 1); /* nothing new */
	receive(x,
		"{\"type\":\"HELLO\",\"agent_id\":\"gw-1\",\"version\":\"1\",\"capabilities\":[],"
		"\"journal_id\":\"j\"}");
	assert_int_equal(fake_dispatch.ready, 2);
	assert_true(fake_dispatch.had_journal);
}

static void release_again(void *arg)
{
	struct fixture *x = arg;

	frames_release(x->frames, x->s, 2000);
}

/* A frame that is taken may be what tells the store that it has room, and all are asked again. */
static void test_room_told_while_a_held_frame_is_taken(void **state)
{
	struct fixture *x = *state;

	fake_store.answer = -ENOBUFS;
	receive(x, HELLO);
	receive(x, TELEMETRY);
	receive(x, TELEMETRY);
	assert_true(x->s->pause & SESSION_PAUSE_HELD);
	fake_store.answer = 0;
	fake_store.during = release_again;
	fake_store.during_arg = x;
	frames_greet(x->frames, x->s, 2000, 0);
	assert_int_equal(fake_store.hellos, 1);
	assert_int_equal(fake_store.telemetry, 2);
	assert_int_equal(x->sessions.held_bytes, 0);
	assert_false(x->s->pause & SESSION_PAUSE_HELD);
}

static void test_frames_before_claim_are_held(void **state)
{
	struct fixture *x = *state;

	receive(x, TELEMETRY);
	receive(x, HELLO);
	assert_int_equal(fake_store.telemetry, 0);
	assert_true(fake_transport.paused);
	greet(x);
	assert_int_equal(fake_store.telemetry, 1);
	assert_int_equal(fake_store.hellos, 1);
	assert_int_equal(x->s->state, SESSION_READY);
	assert_false(fake_transport.paused);
}

static void test_telemetry_before_hello_is_taken(void **state)
{
	struct fixture *x = *state;

	greet(x);
	receive(x, TELEMETRY);
	assert_int_equal(fake_store.telemetry, 1);
	assert_memory_equal(fake_store.frame, TELEMETRY, sizeof(TELEMETRY) - 1);
	assert_int_equal(x->s->ring.n, 1);
	assert_null(x->s->out.first);
}

static void test_result_before_hello_is_refused(void **state)
{
	struct fixture *x = *state;

	greet(x);
	receive(x, RESULT);
	expect_sent(x, "\"code\":\"hello_first\"");
	assert_int_equal(fake_dispatch.results, 0);
}

static void test_result_waits_while_redis_is_behind(void **state)
{
	struct fixture *x = *state;

	make_ready(x);
	fake_dispatch.answer = -ENOBUFS;
	receive(x, RESULT);
	receive(x, TELEMETRY); /* stays behind it */
	assert_true(fake_transport.paused);
	assert_int_equal(fake_store.telemetry, 0);
	frames_release(x->frames, x->s, 2000);
	assert_true(fake_transport.paused);
	fake_dispatch.answer = 0;
	frames_release(x->frames, x->s, 3000);
	assert_int_equal(fake_dispatch.results, 1);
	assert_int_equal(fake_store.telemetry, 1);
	assert_false(fake_transport.paused);
}

static void test_fates_of_a_result(void **state)
{
	struct fixture *x = *state;

	make_ready(x);
	frames_send_result_fate(x->frames, x->s, "c-1", DISPATCH_RESULT_STORED);
	expect_sent(x, "{\"type\":\"RESULT_ACK\",\"correlation_id\":\"c-1\"}");
	frames_send_result_fate(x->frames, x->s, "c-1", DISPATCH_RESULT_AGAIN);
	expect_sent(x, "RESULT_ACK");
	frames_send_result_fate(x->frames, x->s, "c-1", DISPATCH_RESULT_NOT_YOURS);
	expect_sent(x, "\"code\":\"not_yours\"");
	frames_send_result_fate(x->frames, x->s, "c-1", DISPATCH_RESULT_UNKNOWN);
	expect_sent(x, "RESULT_ACK");
	frames_send_result_fate(x->frames, x->s, "c-1", DISPATCH_RESULT_TOO_MANY);
	expect_sent(x, "\"code\":\"unknown_command\"");
}

static void test_answers(void **state)
{
	struct fixture *x = *state;

	greet(x);
	receive(x, "{\"type\":\"PING\",\"ts\":\"t1\"}");
	expect_sent(x, "{\"type\":\"PONG\",\"ts\":\"t1\"}");
	receive(x,
		"{\"type\":\"HEARTBEAT\",\"agent_id\":\"gw-1\",\"ts\":\"2026-11-20T11:00:00.5Z\"}");
	expect_sent(x, "\"echo\":\"2026-11-20T11:00:00.500Z\"");
	receive(x, "{\"type\":\"PONG\"}");
	assert_null(x->s->out.first);
}

static void test_wrong_agent_id_closes(void **state)
{
	struct fixture *x = *state;

	greet(x);
	receive(x, "{\"type\":\"TELEMETRY\",\"agent_id\":\"gw-2\",\"ts\":\"2026-11-20T11:00:00Z\","
		   "\"metrics\":{}}");
	assert_int_equal(x->s->close_code, SESSION_CLOSE_POLICY);
	expect_sent(x, "wrong_agent_id");
	receive(x, TELEMETRY); /* closing: ignored */
	assert_int_equal(fake_store.telemetry, 0);
}

static void test_bad_utf8_closes_1007(void **state)
{
	struct fixture *x = *state;

	greet(x);
	receive(x, "{\"type\":\"PING\",\"ts\":\"\xff\"}");
	assert_int_equal(x->s->close_code, SESSION_CLOSE_UTF8);
}

static void test_tenth_bad_frame_closes_1008(void **state)
{
	static const char *const bad[] = {"{",
					  "[]",
					  "{}",
					  "{\"type\":\"NOPE\"}",
					  "{\"type\":\"WELCOME\"}",
					  "{\"type\":\"HELLO\"}",
					  "nul",
					  "{\"type\":1}",
					  "1"};
	struct fixture *x = *state;

	greet(x);
	for (size_t i = 0; i < 9; i++) {
		receive(x, bad[i % ARRAY_LEN(bad)]);
		expect_sent(x, "{\"type\":\"ERROR\",\"code\":\"");
		assert_int_equal(x->s->state, SESSION_GREETED);
	}
	receive(x, "{");
	assert_int_equal(x->s->close_code, SESSION_CLOSE_POLICY);
	assert_string_equal(x->s->close_reason, "too_many_bad_frames");
}

static void test_old_version_is_closed(void **state)
{
	struct fixture *x = *state;

	x->settings.min_agent_version = (char *)(uintptr_t) "1.10";
	greet(x);
	receive(x, HELLO);
	expect_sent(x, "agent_too_old");
	assert_int_equal(x->s->close_code, SESSION_CLOSE_POLICY);
	assert_int_equal(fake_store.hellos, 0);
}

static void test_commands_only_when_ready(void **state)
{
	struct dispatch_command c = {.correlation_id = "c-9",
				     .agent_id = "gw-1",
				     .verb = "ECHO",
				     .args = SPAN("{\"message\":\"hi\"}"),
				     .expires_at_ms = 1763637060000,
				     .ttl_remaining_ms = 60000};
	struct fixture *x = *state;

	greet(x);
	assert_int_equal(frames_send_command(x->frames, x->s, &c), -ENOENT);
	assert_int_equal(frames_send_cancel(x->frames, x->s, "c-9", "expired"), -ENOENT);
	receive(x, HELLO);
	expect_sent(x, "WELCOME");
	assert_int_equal(frames_send_command(x->frames, x->s, &c), 0);
	expect_sent(x, "\"verb\":\"ECHO\",\"args\":{\"message\":\"hi\"}");
	assert_int_equal(frames_send_cancel(x->frames, x->s, "c-9", "expired"), 0);
	expect_sent(x, "{\"type\":\"CANCEL\",\"correlation_id\":\"c-9\",\"reason\":\"expired\"}");
	for (int i = 0; i < 60 && frames_send_command(x->frames, x->s, &c) == 0; i++)
		;
	assert_int_equal(frames_send_command(x->frames, x->s, &c), -EAGAIN); /* and not closed */
	assert_true(session_is_open(x->s));
	assert_true(x->s->starved);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    CASE(test_hello_makes_ready),
	    CASE(test_room_told_while_a_held_frame_is_taken),
	    CASE(test_frames_before_claim_are_held),
	    CASE(test_telemetry_before_hello_is_taken),
	    CASE(test_result_before_hello_is_refused),
	    CASE(test_result_waits_while_redis_is_behind),
	    CASE(test_fates_of_a_result),
	    CASE(test_answers),
	    CASE(test_wrong_agent_id_closes),
	    CASE(test_bad_utf8_closes_1007),
	    CASE(test_tenth_bad_frame_closes_1008),
	    CASE(test_old_version_is_closed),
	    CASE(test_commands_only_when_ready),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
