/* The rules of time for sockets, second by second. */
#include "bridge_metrics.h"
#include "fake_transport.h"
#include "heartbeat.h"
#include "loop/loop.h"
#include "unit.h"

struct fixture {
	struct sessions all;
	struct metrics *metrics;
	struct session *s;
};

static int setup(void **state)
{
	static struct fixture x;

	fake_transport = (struct fake_transport){0};
	assert_int_equal(sessions_init(&x.all, 5, 1000), 0);
	assert_int_equal(metrics_new(bridge_metric_table, M_BRIDGE_METRICS, &x.metrics), 0);
	assert_int_equal(sessions_add(&x.all, "gw-1", "127.0.0.1", &x.s), 0);
	x.s->socket = x.s; /* any */
	x.s->rx_at_ms = 1000;
	x.s->ping_due_ms = 1000 + HEARTBEAT_PING_MS;
	*state = &x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	sessions_fini(&x->all);
	metrics_free(x->metrics);
	return 0;
}

static void run(struct fixture *x, int64_t from_s, int64_t to_s)
{
	for (int64_t t = from_s; t <= to_s; t++)
		heartbeat_tick(&x->all, x->metrics, t * 1000);
}

static void test_pings_every_20_s(void **state)
{
	struct fixture *x = *state;

	run(x, 1, 20);
	assert_false(x->s->want_ping);
	run(x, 21, 21);
	assert_true(x->s->want_ping);
	x->s->want_ping = false;
	x->s->rx_at_ms = 21000;
	run(x, 22, 40);
	assert_false(x->s->want_ping);
	run(x, 41, 41);
	assert_true(x->s->want_ping);
}

static void test_silent_for_40_s_is_closed(void **state)
{
	struct fixture *x = *state;

	run(x, 1, 41);
	assert_true(session_is_open(x->s));
	run(x, 42, 42);
	assert_string_equal(x->s->close_reason, "heartbeat_missed");
	assert_int_equal(
	    (int)metric_value(metrics_get(x->metrics, M_heartbeats_missed, NULL, NULL)), 1);
}

static void test_half_a_frame_for_a_minute_is_closed(void **state)
{
	struct fixture *x = *state;

	x->s->partial_since_ms = 2000;
	for (int64_t t = 2; t <= 62; t++) {
		x->s->rx_at_ms = t * 1000; /* it trickles, and answers pings */
		run(x, t, t);
	}
	assert_true(session_is_open(x->s));
	x->s->rx_at_ms = 63000;
	run(x, 63, 63);
	assert_string_equal(x->s->close_reason, "slow_sender");
}

static void test_unread_output_for_a_minute_is_closed(void **state)
{
	struct fixture *x = *state;

	x->s->stuck_since_ms = 2000;
	for (int64_t t = 2; t <= 63; t++) {
		x->s->rx_at_ms = t * 1000;
		run(x, t, t);
	}
	assert_string_equal(x->s->close_reason, "slow_reader");
}

/* While we do not read, silence is ours; but not for ever. */
static void test_paused_is_not_silent(void **state)
{
	struct fixture *x = *state;

	x->s->pause = SESSION_PAUSE_PRESSURE;
	run(x, 1, 121);
	assert_true(session_is_open(x->s));
	run(x, 122, 122);
	assert_int_equal(x->s->close_code, SESSION_CLOSE_REDIS);
	assert_string_equal(x->s->close_reason, "redis_behind");
}

/* It was we who were stopped: the peers may have said what they had to. */
static void test_standing_still_counts_against_nobody(void **state)
{
	struct fixture *x = *state;

	x->s->partial_since_ms = x->s->stuck_since_ms = 11000;
	run(x, 1, 20);
	x->s->rx_at_ms = 100000; /* read before the first tick after it */
	run(x, 100, 100);
	assert_true(session_is_open(x->s));
	assert_false(x->s->want_ping);
	assert_int_equal(x->s->rx_at_ms, 100000);
	run(x, 101, 101);
	assert_true(x->s->want_ping);
	x->s->partial_since_ms = x->s->stuck_since_ms = 0;
	run(x, 102, 140);
	assert_true(session_is_open(x->s));
	run(x, 141, 141);
	assert_string_equal(x->s->close_reason, "heartbeat_missed");
}

static int64_t pings(const struct fixture *x)
{
	int64_t n = 0;

	for (const struct session *s = x->all.first; s; s = s->next)
		n += s->want_ping;
	return n;
}

static void add(struct fixture *x, int n)
{
	struct session *s;

	for (int i = 0; i < n; i++) {
		assert_int_equal(sessions_add(&x->all, "gw-2", "127.0.0.1", &s), 0);
		s->socket = s;
		s->rx_at_ms = 1000;
		s->ping_due_ms = 21000;
	}
}

static void test_many_are_looked_at_in_parts(void **state)
{
	struct fixture *x = *state;
	struct session *s;

	add(x, 2 * HEARTBEAT_PART);
	assert_int_equal(loop_part_ms(x->all.all, HEARTBEAT_PART, 1000), 333);
	heartbeat_tick(&x->all, x->metrics, 21000);
	assert_int_equal(pings(x), HEARTBEAT_PART);
	s = x->all.beats[x->all.at].s; /* the next one goes, and the first, which was seen */
	sessions_remove(&x->all, s);
	sessions_remove(&x->all, x->all.first);
	heartbeat_tick(&x->all, x->metrics, 21333);
	assert_int_equal(pings(x), 2 * HEARTBEAT_PART - 1);
	assert_int_equal(x->all.at, 0);
	heartbeat_tick(&x->all, x->metrics, 21666);
	assert_int_equal(pings(x), 2 * HEARTBEAT_PART - 1);
	while (x->all.first)
		sessions_remove(&x->all, x->all.first);
	heartbeat_tick(&x->all, x->metrics, 22000);
}

static struct session *any(const struct fixture *x, unsigned dice)
{
	return x->all.beats[dice % x->all.all].s;
}

static void test_who_comes_and_goes_costs_nobody_a_turn(void **state)
{
	struct fixture *x = *state;
	unsigned dice = 1;
	uint64_t before;

	for (int64_t t = 21000; t < 21200; t++) {
		add(x, 3 * HEARTBEAT_PART);
		before = x->all.last_sid;
		assert_int_equal(x->all.at, 0);
		while (heartbeat_tick(&x->all, x->metrics, t), x->all.at)
			for (int i = 0; i < 100; i++) {
				dice = dice * 1664525 + 1013904223;
				if ((dice >> 8) % 5 < 3)
					sessions_remove(&x->all, any(x, dice >> 11));
				else
					add(x, 1);
			}
		for (const struct session *s = x->all.first; s; s = s->next) {
			assert_ptr_equal(x->all.beats[s->beat].s, s);
			assert_true(s->want_ping || s->sid > before);
		}
		while (x->all.all > 1 + (size_t)t % 2)
			sessions_remove(&x->all, any(x, dice >> 9));
	}
}

static void test_who_keeps_coming_costs_nobody_a_turn(void **state)
{
	struct fixture *x = *state;

	for (int64_t t = 1; t <= 20; t++) {
		add(x, 1);
		run(x, t, t);
	}
	assert_false(x->s->want_ping);
	add(x, 1);
	run(x, 21, 21);
	assert_true(x->s->want_ping);
	for (int64_t t = 22; t <= 42; t++) {
		add(x, 1);
		run(x, t, t);
	}
	assert_string_equal(x->s->close_reason, "heartbeat_missed");
}

/* Half a frame waits as long as we do not read the rest. */
static void test_half_a_frame_does_not_age_while_it_is_not_read(void **state)
{
	struct fixture *x = *state;

	x->s->partial_since_ms = 2000;
	run(x, 1, 3);
	x->s->pause = SESSION_PAUSE_PRESSURE;
	x->s->pause_applied = true;
	heartbeat_unheard(x->s, 3000);
	run(x, 4, 100);
	x->s->pause = 0; /* the socket is read from the end of the turn on */
	run(x, 101, 101);
	assert_true(session_is_open(x->s));
	x->s->pause_applied = false;
	heartbeat_unheard(x->s, 101000);
	for (int64_t t = 102; t <= 161; t++) {
		x->s->rx_at_ms = t * 1000;
		run(x, t, t);
	}
	assert_true(session_is_open(x->s));
	run(x, 162, 162);
	assert_string_equal(x->s->close_reason, "slow_sender");
}

/* Whatever begins and ends in which second: who is looked at only when something may be due is
 * pinged and closed in the same second as who is looked at each time. */
static void play(struct session *s, int64_t now_ms, unsigned dice)
{
	if (dice % 16 < 3)
		s->rx_at_ms = now_ms;
	if (dice / 16 % 64 == 0)
		s->partial_since_ms = s->partial_since_ms ? 0 : now_ms;
	if (dice / 1024 % 64 == 0)
		s->stuck_since_ms = s->stuck_since_ms ? 0 : now_ms;
	if (dice / 65536 % 64 == 0) {
		s->pause ^= SESSION_PAUSE_PRESSURE;
		heartbeat_unheard(s, now_ms);
	}
}

static void test_who_is_not_due_need_not_be_looked_at(void **state)
{
	struct fixture *x = *state;
	unsigned dice = 1, closed = 0, pinged = 0;
	struct session *each;

	for (int round = 0; round < 400; round++) {
		add(x, 2);
		each = x->all.last;
		for (int64_t t = 2; t < 300 && session_is_open(each); t++) {
			struct session *due = each->prev;

			dice = dice * 1664525 + 1013904223;
			play(due, t * 1000, dice >> 8);
			play(each, t * 1000, dice >> 8);
			x->all.beats[each->beat].look_ms = 0;
			x->all.at = 0;
			x->all.ticked_ms = 0;
			heartbeat_tick(&x->all, x->metrics, t * 1000);
			assert_int_equal(due->want_ping, each->want_ping);
			assert_ptr_equal(due->close_reason, each->close_reason);
			assert_int_equal(due->close_code, each->close_code);
			pinged += each->want_ping;
			closed += !session_is_open(each);
			due->want_ping = each->want_ping = false;
		}
		sessions_remove(&x->all, each->prev);
		sessions_remove(&x->all, each);
	}
	assert_true(closed > 200 && pinged > 1000);
}

static void test_who_came_together_is_not_pinged_together(void **state)
{
	struct fixture *x = *state;
	int64_t in[20] = {0}, due;

	add(x, 1000);
	for (const struct session *s = x->all.first; s; s = s->next) {
		due = heartbeat_first_ping_ms(s) - s->rx_at_ms;
		assert_in_range(due, HEARTBEAT_PING_MS / 2, HEARTBEAT_PING_MS);
		in[(due - 1) / 1000]++;
	}
	for (int i = 10; i < 20; i++)
		assert_in_range(in[i], 80, 120);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    CASE(test_pings_every_20_s),
	    CASE(test_silent_for_40_s_is_closed),
	    CASE(test_half_a_frame_for_a_minute_is_closed),
	    CASE(test_unread_output_for_a_minute_is_closed),
	    CASE(test_paused_is_not_silent),
	    CASE(test_standing_still_counts_against_nobody),
	    CASE(test_many_are_looked_at_in_parts),
	    CASE(test_half_a_frame_does_not_age_while_it_is_not_read),
	    CASE(test_who_keeps_coming_costs_nobody_a_turn),
	    CASE(test_who_comes_and_goes_costs_nobody_a_turn),
	    CASE(test_who_is_not_due_need_not_be_looked_at),
	    CASE(test_who_came_together_is_not_pinged_together),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
