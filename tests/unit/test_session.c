/* The conversation with a bridge over 24 hours of every kind of bad backend, on a simulated clock:
 * uplink and timers are fakes chosen at link time, session.c and link.c are the real ones. */
#include "unit.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "agent_metrics.h"
#include "base/clock.h"
#include "base/log.h"
#include "loop/loop.h"
#include "session.h"
#include "uplink.h"

/* ---- simulated time and timers ---- */

static int64_t now_ms; /* since the test began */

struct loop_timer {
	loop_cb cb;
	void *arg;
	int64_t at_ms, every_ms; /* at -1: stopped */
	struct loop_timer *next;
};
static struct loop_timer *timers;

int loop_timer_new(struct loop *l, loop_cb cb, void *arg, struct loop_timer **ret)
{
	struct loop_timer *t = calloc(1, sizeof *t);

	(void)l;
	*t = (struct loop_timer){.cb = cb, .arg = arg, .at_ms = -1, .next = timers};
	timers = t;
	*ret = t;
	return 0;
}

void loop_timer_start(struct loop_timer *t, int64_t after_ms, int64_t every_ms)
{
	t->at_ms = now_ms + after_ms;
	t->every_ms = every_ms;
}

void loop_timer_stop(struct loop_timer *t)
{
	t->at_ms = -1;
}

bool loop_timer_active(const struct loop_timer *t)
{
	return t->at_ms >= 0;
}

void loop_timer_close(struct loop_timer *t)
{
	struct loop_timer **at;

	if (!t)
		return;
	for (at = &timers; *at != t; at = &(*at)->next)
		;
	*at = t->next;
	free(t);
}

static void set_time(int64_t ms)
{
	clock_test_shift(ms, ms);
	now_ms = ms;
}

/* ---- the fake uplink: what the backend does is a script ---- */

enum behaviour {
	GOOD,
	BLACK_HOLE,   /* uplink gives up after its limit */
	TLS_REFUSED,  /* at once */
	AUTH_REFUSED, /* HTTP 401 at once */
	NO_WELCOME,   /* upgraded, then silence */
	HALF_OPEN,    /* WELCOME, then silence for ever */
	REVOKED,      /* closes 4003 after the upgrade */
	SUPERSEDED,   /* closes 4000 */
	BEHAVIOURS
};
static const char *const behaviour_words[] = {"good",	      "black hole", "TLS refused",
					      "auth refused", "no welcome", "half-open",
					      "revoked",      "superseded"};

struct uplink {
	const struct uplink_ops *ops;
	void *arg;
	bool open;
	struct redial_end end;
	int64_t act_at_ms; /* -1: nothing to do */
	bool end_due;
	struct trust_peer peer;
};
static struct uplink *up;
static enum behaviour behaviour;
static unsigned dials, hellos, heartbeats, telemetry;
static uint64_t epoch;

int uplink_open(struct loop *l, const struct uplink_config *cfg, const struct uplink_ops *ops,
		void *arg, struct uplink **ret)
{
	(void)l, (void)cfg;
	up = calloc(1, sizeof *up);
	*up = (struct uplink){.ops = ops, .arg = arg, .act_at_ms = -1};
	*ret = up;
	return 0;
}

void uplink_close(struct uplink *u)
{
	free(u);
}

int uplink_set_trust(struct uplink *u, const struct trust *t)
{
	(void)u, (void)t;
	return 0;
}

int uplink_set_secret(struct uplink *u, const char *s)
{
	(void)u, (void)s;
	return 0;
}

const struct trust_peer *uplink_peer(const struct uplink *u)
{
	return &u->peer;
}

bool uplink_is_open(const struct uplink *u)
{
	return u->open;
}

int uplink_dial(struct uplink *u, const struct redial_backend *b)
{
	(void)b;
	dials++;
	u->end_due = false;
	u->act_at_ms = now_ms + (behaviour == BLACK_HOLE ? UPLINK_OPEN_MS : 20);
	return 0;
}

void uplink_hang_up(struct uplink *u, int code, enum redial_cause cause, const char *detail)
{
	(void)code;
	u->end = (struct redial_end){.cause = cause, .retry_after_ms = -1};
	(void)snprintf(u->end.detail, sizeof u->end.detail, "%s", detail);
	u->open = false;
	u->end_due = true;
	u->act_at_ms = now_ms;
}

static void text(const char *fmt, ...) PRINTF_LIKE(1, 2);
static void text(const char *fmt, ...)
{
	char t[1024];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(t, sizeof t, fmt, ap);
	va_end(ap);
	up->ops->on_text(up->arg, t, strlen(t));
}

int uplink_send(struct uplink *u, const char *json, size_t n)
{
	assert_true(u->open);
	if (memmem(json, n, "\"HELLO\"", 7)) {
		hellos++;
		if (behaviour != NO_WELCOME)
			text("{\"type\":\"WELCOME\",\"session_id\":\"s\",\"heartbeat_s\":20,"
			     "\"cmd_timeout_s\":30,\"max_in_flight\":4,"
			     "\"now\":\"2026-11-20T11:09:00.123Z\"}");
	} else if (memmem(json, n, "\"HEARTBEAT\"", 11)) {
		heartbeats++;
		if (behaviour == GOOD)
			text("{\"type\":\"HEARTBEAT\"}");
	} else if (memmem(json, n, "\"TELEMETRY\"", 11)) {
		telemetry++;
	}
	return 0;
}

static void backend_acts(void)
{
	struct redial_end e = {.retry_after_ms = -1};

	up->act_at_ms = -1;
	if (up->end_due) {
		up->end_due = false;
		e = up->end;
		up->ops->on_end(up->arg, &e);
		return;
	}
	switch (behaviour) {
	case BLACK_HOLE:
		e.cause = REDIAL_TIMEOUT;
		break;
	case TLS_REFUSED:
		e.cause = REDIAL_TLS;
		break;
	case AUTH_REFUSED:
		e.cause = REDIAL_HTTP;
		e.code = 401;
		break;
	case REVOKED:
	case SUPERSEDED:
		e.cause = REDIAL_CLOSE;
		e.code = behaviour == REVOKED ? 4003 : 4000;
		break;
	default:
		up->open = true;
		up->ops->on_open(up->arg);
		text("{\"type\":\"HELLO_ACK\",\"agent_id\":\"gw-1\",\"conn_id\":\"c\",\"epoch\":%"
		     "llu,"
		     "\"server_time\":\"2026-11-20T11:09:00.123Z\",\"supported\":[],\"heartbeat_"
		     "s\":20,"
		     "\"max_frame_bytes\":262144}",
		     (unsigned long long)++epoch);
		return;
	}
	up->ops->on_end(up->arg, &e);
}

/* ---- the world goes round ---- */

static struct session *s;
static struct metrics *metrics;
static struct agent_settings cfg = {.id = (char *)"gw-1",
				    .backend_url = (char *)"ws://127.0.0.1/",
				    .ring_frames = 120,
				    .telemetry_interval_s = 30};
static unsigned ready_count, end_count;
static uint64_t gap_frames;
static int64_t telemetry_at;

static void on_ready(void *arg, uint64_t max)
{
	(void)arg, (void)max;
	ready_count++;
}

static void on_end(void *arg)
{
	(void)arg;
	end_count++;
}

static void put_verbs(void *arg, struct jsonw *w)
{
	(void)arg;
	jsonw_str(w, NULL, "ECHO");
}

static void nothing(void *arg)
{
	(void)arg;
}

static void no_ack(void *arg, struct span id)
{
	(void)arg, (void)id;
}

static const struct session_ops ops = {.on_ready = on_ready,
				       .on_end = on_end,
				       .on_result_ack = no_ack,
				       .put_verbs = put_verbs,
				       .on_change = nothing};

static struct loop_timer *next_timer(void)
{
	struct loop_timer *t, *first = NULL;

	for (t = timers; t; t = t->next) {
		if (t->at_ms >= 0 && (!first || t->at_ms < first->at_ms))
			first = t;
	}
	return first;
}

/* Runs all that is due until the simulated time is over; telemetry every 30 s as the agent does. */
static void run_until(int64_t end_ms)
{
	for (;;) {
		struct loop_timer *t = next_timer();
		int64_t at = telemetry_at;

		if (t && t->at_ms < at)
			at = t->at_ms;
		if (up->act_at_ms >= 0 && up->act_at_ms < at)
			at = up->act_at_ms;
		if (at > end_ms)
			break;
		set_time(at);
		if (up->act_at_ms == at) {
			backend_acts();
		} else if (t && t->at_ms == at) {
			t->at_ms = t->every_ms ? at + t->every_ms : -1;
			t->cb(t->arg);
		} else {
			struct ring_gap g = session_take_gap(s);

			gap_frames += g.frames;
			session_telemetry(s, SPAN("{\"cpu_pct\":1}"));
			telemetry_at += 30000;
		}
	}
	set_time(end_ms);
}

static void begin(enum behaviour b)
{
	behaviour = b;
	dials = hellos = heartbeats = telemetry = 0;
	ready_count = end_count = 0;
	gap_frames = 0;
	telemetry_at = 0;
	set_time(0);
	log_setup(true, LOG_LEVEL_ERROR);
	assert_ok(metrics_new(agent_metric_table, agent_metric_count, &metrics));
	assert_ok(session_open(NULL, metrics, &cfg, NULL, &ops, NULL, &s));
	session_start(s);
}

static void end(void)
{
	session_close(s);
	metrics_free(metrics);
	assert_null(timers);
	set_time(0);
}

/* mallinfo knows nothing under the sanitizer, which counts itself. */
extern size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t heap_bytes(void)
{
	if (__sanitizer_get_current_allocated_bytes)
		return __sanitizer_get_current_allocated_bytes();
	return mallinfo2().uordblks;
}

#define HOUR INT64_C(3600000)

/* Contract: every kind of dead backend for 24 hours leaves memory flat, and recovery is quick. */
static void one_day(enum behaviour b, unsigned least_dials, unsigned most_dials)
{
	struct session_view v;
	size_t before, after;

	begin(b);
	run_until(2 * HOUR); /* ring full, all series there */
	before = heap_bytes();
	run_until(26 * HOUR);
	after = heap_bytes();
	printf("%-13s %6u dials, heap %zu to %zu bytes, %llu frames dropped\n", behaviour_words[b],
	       dials, before, after, (unsigned long long)gap_frames);
	if (after > before + 4096)
		fail_msg("%s: heap grew by %zu bytes", behaviour_words[b], after - before);
	assert_in_range(dials, least_dials, most_dials);
	session_view(s, &v);
	if (b != HALF_OPEN)
		assert_int_equal(v.ring_frames, 120);
	behaviour = GOOD;
	run_until(26 * HOUR + (b == REVOKED ? HOUR + 60000 : 3 * 60000));
	assert_true(session_is_ready(s));
	session_view(s, &v);
	assert_int_equal(v.ring_frames, 0);
	end();
}

static void test_session_day_of_black_hole(void **state)
{
	(void)state;
	one_day(BLACK_HOLE, 26 * 40, 26 * 200);
}

static void test_session_day_of_tls_refused(void **state)
{
	(void)state;
	one_day(TLS_REFUSED, 26 * 40, 26 * 400);
}

static void test_session_day_of_auth_refused(void **state)
{
	(void)state;
	one_day(AUTH_REFUSED, 26 * 40, 26 * 400);
}

static void test_session_day_of_no_welcome(void **state)
{
	(void)state;
	one_day(NO_WELCOME, 26 * 40, 26 * 200);
}

static void test_session_day_of_half_open(void **state)
{
	(void)state;
	one_day(HALF_OPEN, 26 * 20, 26 * 70);
}

static void test_session_day_of_revoked(void **state)
{
	(void)state;
	one_day(REVOKED, 26, 28);
}

static void test_session_day_of_superseded(void **state)
{
	(void)state;
	one_day(SUPERSEDED, 26 * 58, 26 * 70);
}

static void test_session_gives_up_after_60_s_of_silence(void **state)
{
	struct session_view v;

	(void)state;
	begin(HALF_OPEN);
	run_until(59000);
	assert_true(session_is_ready(s));
	assert_int_equal(heartbeats, 2);
	run_until(66000);
	assert_int_equal(end_count, 1);
	session_view(s, &v);
	assert_string_equal(redial_cause_word(v.last_end.cause), "silent");
	end();
}

static void test_session_stays_while_heartbeats_are_answered(void **state)
{
	(void)state;
	begin(GOOD);
	run_until(24 * HOUR);
	assert_int_equal(dials, 1);
	assert_int_equal(ready_count, 1);
	assert_in_range(heartbeats, 4000, 4330);
	assert_int_equal(telemetry, 24 * 120 + 1);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_session_day_of_black_hole),
	    cmocka_unit_test(test_session_day_of_tls_refused),
	    cmocka_unit_test(test_session_day_of_auth_refused),
	    cmocka_unit_test(test_session_day_of_no_welcome),
	    cmocka_unit_test(test_session_day_of_half_open),
	    cmocka_unit_test(test_session_day_of_revoked),
	    cmocka_unit_test(test_session_day_of_superseded),
	    cmocka_unit_test(test_session_gives_up_after_60_s_of_silence),
	    cmocka_unit_test(test_session_stays_while_heartbeats_are_answered),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
