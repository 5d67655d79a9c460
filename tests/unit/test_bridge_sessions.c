/* Sessions by sid and agent, pages, rings and their budget, queues, violations */
#include <stdio.h>
#include <stdlib.h>

#include "fake_transport.h"
#include "sessions.h"
#include "unit.h"

static const struct session_limits limits = {.send_msgs = 4, .send_bytes = 1000, .held_bytes = 100};

static struct session *add(struct sessions *all, const char *agent)
{
	struct session *s = NULL;

	assert_int_equal(sessions_add(all, agent, "127.0.0.1", &s), 0);
	s->socket = s; /* any */
	return s;
}

static void test_find_after_growth_and_removal(void **state)
{
	struct sessions all;
	uint64_t sid[1000];
	char id[32];

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	for (int i = 0; i < 1000; i++) {
		snprintf(id, sizeof(id), "agent-%d", i);
		sid[i] = add(&all, id)->sid;
		assert_null(sessions_claim(&all, sessions_find(&all, sid[i])));
	}
	for (int i = 0; i < 1000; i += 2)
		sessions_remove(&all, sessions_find(&all, sid[i]));
	assert_int_equal(all.all, 500);
	for (int i = 0; i < 1000; i++) {
		snprintf(id, sizeof(id), "agent-%d", i);
		assert_int_equal(sessions_find(&all, sid[i]) != NULL, i % 2);
		assert_int_equal(sessions_by_agent(&all, id) != NULL, i % 2);
	}
	sessions_fini(&all);
}

static void test_claim_hands_ring_over(void **state)
{
	struct sessions all;
	struct session *old, *new;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	old = add(&all, "a");
	new = add(&all, "a");
	assert_null(sessions_claim(&all, old));
	ring_add(&all.rings, &old->ring, "{}", 2);
	ring_add(&all.results, &old->result, "{1}", 3);
	assert_ptr_equal(sessions_claim(&all, new), old);
	assert_ptr_equal(sessions_by_agent(&all, "a"), new);
	assert_int_equal(new->ring.n, 1);
	assert_int_equal(new->result.n, 1);
	sessions_remove(&all, old);
	assert_ptr_equal(sessions_by_agent(&all, "a"), new);
	sessions_remove(&all, new);
	assert_null(sessions_by_agent(&all, "a"));
	assert_int_equal(all.rings.bytes, 0);
	assert_int_equal(all.results.bytes, 0);
	sessions_fini(&all);
}

/* Thousands of agents with large results cost no more than a budget. */
static void test_last_results_have_a_budget(void **state)
{
	static const char text[100000];
	struct sessions all;
	struct session *first = NULL, *last = NULL;
	size_t kept = 0;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	for (int i = 0; i < 1000; i++) {
		char id[16];

		(void)snprintf(id, sizeof(id), "a%d", i);
		last = add(&all, id);
		first = first ? first : last;
		ring_add(&all.results, &last->result, text, sizeof(text));
		ring_add(&all.results, &last->result, text, sizeof(text)); /* the last one alone */
		assert_int_equal(last->result.n, 1);
		assert_true(all.results.bytes <= (size_t)64 << 20);
	}
	for (struct session *s = all.first; s; s = s->next)
		kept += s->result.n;
	assert_true(kept > 600 && first->result.n == 0 && last->result.n == 1);
	sessions_fini(&all);
}

/* Whoever is there all the time is listed once, whoever else comes and goes between pages. */
static void test_page_is_stable(void **state)
{
	struct sessions all;
	struct session *page[8];
	char after[65] = "", id[32];
	int seen = 0, extra = 0;
	bool more = true;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	for (int i = 99; i >= 0; i--) {
		snprintf(id, sizeof(id), "stay-%02d", i);
		sessions_claim(&all, add(&all, id));
	}
	while (more) {
		size_t n = sessions_page(&all, after, page, 7, &more);

		assert_true(n > 0);
		for (size_t i = 0; i < n; i++) {
			assert_true(strcmp(page[i]->agent_id, after) > 0);
			strcpy(after, page[i]->agent_id);
			seen += strncmp(after, "stay-", 5) == 0;
		}
		snprintf(id, sizeof(id), "%s-%d", extra % 2 ? "aaa" : "stay", 500 + extra);
		sessions_claim(&all, add(&all, id));
		if (++extra % 3 == 0)
			sessions_remove(&all, all.last);
		assert_true(extra < 40);
	}
	assert_true(seen >= 100);
	sessions_fini(&all);
}

static void test_ring_keeps_the_newest(void **state)
{
	struct rings all;
	struct ring r = {0};
	char text[8];

	(void)state;
	rings_init(&all, 3, 100000);
	for (int i = 0; i < 10; i++)
		ring_add(&all, &r, text, (size_t)snprintf(text, sizeof(text), "%d", i));
	assert_int_equal(r.n, 3);
	assert_memory_equal(r.oldest->bytes, "7", 1);
	assert_memory_equal(r.newest->bytes, "9", 1);
	ring_clear(&all, &r);
	assert_int_equal(all.bytes, 0);
}

static void test_ring_budget_drops_the_oldest_of_all(void **state)
{
	struct ring r[10] = {0};
	struct rings all;
	char frame[900] = {0};

	(void)state;
	rings_init(&all, 50, 10000);
	for (int i = 0; i < 100; i++) {
		ring_add(&all, &r[i % 10], frame, sizeof(frame));
		assert_true(all.bytes <= 10000);
	}
	assert_int_equal(r[9].n, 1);
	assert_true(all.evicted >= 90);
	for (int i = 0; i < 10; i++)
		ring_clear(&all, &r[i]);
	assert_int_equal(all.bytes, 0);
}

static void test_send_over_the_cap_closes(void **state)
{
	struct wire_frame f = {.type = WIRE_PONG};
	struct session_frame *q;
	struct sessions all;
	struct session *s;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	s = add(&all, "a");
	for (size_t i = 0; i < limits.send_msgs; i++)
		assert_int_equal(session_send(s, &limits, &f), 0);
	assert_int_not_equal(session_send(s, &limits, &f), 0);
	assert_int_equal(s->state, SESSION_CLOSING);
	assert_string_equal(s->close_reason, "slow_reader");
	q = session_next(s);
	assert_memory_equal(q->bytes + SESSION_HEADROOM, "{\"type\":\"PONG\"}", q->n);
	free(q);
	sessions_fini(&all);
}

static void test_send_over_the_cap_of_bytes_closes(void **state)
{
	char text[400];
	struct wire_frame f = {.type = WIRE_ERROR,
			       .error = {.code = SPAN("c"), .msg = {text, sizeof(text)}}};
	struct sessions all;
	struct session *s;

	(void)state;
	memset(text, 'x', sizeof(text));
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	s = add(&all, "a");
	assert_int_equal(session_send(s, &limits, &f), 0);
	assert_int_equal(session_send(s, &limits, &f), 0);
	assert_true(s->out.bytes > 800 && s->out.bytes <= limits.send_bytes);
	assert_int_not_equal(session_send(s, &limits, &f), 0);
	assert_string_equal(s->close_reason, "slow_reader");
	assert_true(s->out.bytes <= limits.send_bytes);
	sessions_fini(&all);
}

static void test_hold_is_capped_and_in_order(void **state)
{
	struct session_held *h;
	struct sessions all;
	struct session *s;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	s = add(&all, "a");
	session_hold(s, &limits, "first", 5);
	session_hold(s, &limits, "second", 6);
	assert_true(fake_transport.paused);
	h = session_unhold(s);
	assert_memory_equal(h->bytes, "first", 5);
	free(h);
	for (int i = 0; i < 20 && session_is_open(s); i++)
		session_hold(s, &limits, "0123456789", 10);
	assert_int_equal(s->close_code, SESSION_CLOSE_REDIS);
	size_t mine = all.held_bytes;

	all.held_bytes = SESSION_HELD_ALL_MAX - 30; /* others hold nearly all there is */
	s = add(&all, "b");
	session_hold(s, &limits, "0123456789", 10);
	assert_true(session_is_open(s));
	session_hold(s, &limits, "0123456789012345678901234567890123456789", 40);
	assert_int_equal(s->close_code, SESSION_CLOSE_REDIS);
	all.held_bytes = mine + 10;
	sessions_remove(&all, all.first);
	sessions_remove(&all, all.first);
	assert_int_equal(all.held_bytes, 0);
	sessions_fini(&all);
}

static void test_violated_tenth_within_a_minute(void **state)
{
	struct sessions all;
	struct session *s;

	(void)state;
	assert_int_equal(sessions_init(&all, 5, 10000), 0);
	s = add(&all, "a");
	for (int i = 1; i < 10; i++)
		assert_false(session_violated(s, i * 1000));
	assert_true(session_violated(s, 10000));
	s = add(&all, "b");
	for (int i = 1; i <= 100; i++) /* one every 7 s: nine within a minute */
		assert_false(session_violated(s, i * 7000));
	sessions_fini(&all);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_find_after_growth_and_removal),
	    cmocka_unit_test(test_claim_hands_ring_over),
	    cmocka_unit_test(test_last_results_have_a_budget),
	    cmocka_unit_test(test_page_is_stable),
	    cmocka_unit_test(test_ring_keeps_the_newest),
	    cmocka_unit_test(test_ring_budget_drops_the_oldest_of_all),
	    cmocka_unit_test(test_send_over_the_cap_closes),
	    cmocka_unit_test(test_send_over_the_cap_of_bytes_closes),
	    cmocka_unit_test(test_hold_is_capped_and_in_order),
	    cmocka_unit_test(test_violated_tenth_within_a_minute),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
