#include "unit.h"

#include <errno.h>
#include <stdio.h>

#include "crypto/nonces.h"

static int add(struct nonces *s, const char *owner, const char *nonce, int64_t until, int64_t now)
{
	return nonces_add(s, owner, nonce, strlen(nonce), until, now);
}

/* n0, n1, … of owner "a", the first until then, each 1 ms longer. */
static void fill(struct nonces *s, int count, int64_t until, int64_t now)
{
	char n[16];

	for (int i = 0; i < count; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_ok(add(s, "a", n, until + i, now));
	}
}

static void test_seen_until_its_time(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, "a", "n", 1000, 0));
	assert_int_equal(add(s, "a", "n", 1000, 999), -EEXIST);
	assert_int_equal(add(s, "a", "n", 5000, 500), -EEXIST);
	assert_ok(add(s, "a", "n", 2000, 1000));
	assert_int_equal(add(s, "a", "n", 2000, 1500), -EEXIST);
	assert_true(nonces_has(s, "a", "n", 1, 1500));
	assert_false(nonces_has(s, "a", "n", 1, 2000));
	assert_false(nonces_has(s, "b", "n", 1, 1500));
	nonces_free(s);
}

static void test_owners_are_apart(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, "a", "bc", 1000, 0));
	assert_ok(add(s, "ab", "c", 1000, 0));
	assert_ok(add(s, "b", "bc", 1000, 0));
	assert_int_equal(add(s, "ab", "c", 1000, 0), -EEXIST);
	assert_int_equal(nonces_count(s), 3);
	nonces_free(s);
}

static void test_long_texts(void **state)
{
	struct nonces *s;
	char a[400], b[400];
	(void)state;
	memset(a, 'a', sizeof a - 1);
	memset(b, 'a', sizeof b - 1);
	a[399] = b[399] = '\0';
	b[398] = 'b';
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, a, a, 1000, 0));
	assert_ok(add(s, a, b, 1000, 0));
	assert_ok(add(s, b, a, 1000, 0));
	assert_int_equal(add(s, a, a, 1000, 0), -EEXIST);
	assert_int_equal(add(s, b, a, 1000, 0), -EEXIST);
	nonces_free(s);
}

static void test_full_refuses_and_forgets_nothing(void **state)
{
	struct nonces *s;
	char n[16];
	(void)state;
	assert_ok(nonces_new(1000, &s));
	fill(s, 1000, 1000, 0);
	assert_int_equal(add(s, "a", "one more", 9000, 0), -ENOSPC);
	assert_int_equal(add(s, "a", "one more", 9000, 999), -ENOSPC);
	for (int i = 0; i < 1000; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_int_equal(add(s, "a", n, 9000, 500), -EEXIST);
	}
	/* the first ten have run out */
	for (int i = 0; i < 10; i++) {
		snprintf(n, sizeof n, "m%d", i);
		assert_ok(add(s, "a", n, 9000, 1009));
	}
	assert_int_equal(add(s, "a", "m10", 9000, 1009), -ENOSPC);
	for (int i = 10; i < 1000; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_int_equal(add(s, "a", n, 9000, 1009), -EEXIST);
	}
	nonces_free(s);
}

static void test_steady_flow_stays_small(void **state)
{
	struct nonces *s;
	char n[16];
	(void)state;
	assert_ok(nonces_new(1000000, &s));
	for (int i = 0; i < 50000; i++) { /* each lives 100 ms, one a millisecond */
		snprintf(n, sizeof n, "n%d", i);
		assert_ok(add(s, "a", n, i + 100, i));
		assert_int_equal(add(s, "a", n, i + 100, i), -EEXIST);
		assert_true(nonces_count(s) <= 400);
	}
	nonces_free(s);
}

/* What must hold, kept in the plainest way. */
struct plain {
	int64_t until[1000];
};

static int plain_count(const struct plain *p, int names, int64_t now)
{
	int n = 0;
	for (int i = 0; i < names; i++)
		n += p->until[i] > now;
	return n;
}

static uint32_t step(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 32);
}

/* Random adds of few names into a small store, at a clock that stands, runs and leaps. */
static void test_like_a_plain_list(void **state)
{
	static const int64_t windows[] = {50, 700, 70000, 600001, 90000000};
	const int capacity = 100, names = 1000;
	(void)state;
	for (size_t w = 0; w < sizeof windows / sizeof windows[0]; w++) {
		static struct plain p;
		struct nonces *s;
		uint64_t random = 7 + w;
		int64_t now = 1795186837296;
		int refused = 0, seen = 0;

		memset(&p, 0, sizeof p);
		assert_ok(nonces_new((size_t)capacity, &s));
		for (int i = 0; i < 40000; i++) {
			int name = (int)(step(&random) % (uint32_t)names);
			int64_t until = now + 1 + step(&random) % windows[w];
			char n[16];
			int want = 0;

			if (p.until[name] > now)
				want = -EEXIST;
			else if (plain_count(&p, names, now) >= capacity)
				want = -ENOSPC;
			snprintf(n, sizeof n, "n%d", name);
			int r = add(s, "a", n, until, now);
			assert_int_equal(r, want);
			assert_true(nonces_count(s) <= (size_t)capacity);
			if (r == 0)
				p.until[name] = until;
			refused += r == -ENOSPC;
			seen += r == -EEXIST;
			if (step(&random) % 4 == 0)
				now += step(&random) % (windows[w] / 100 + 2);
			if (step(&random) % 5000 == 0)
				now += windows[w];
		}
		assert_true(refused > 100);
		assert_true(seen > 100);
		nonces_free(s);
	}
}

/* One ends, one comes, 20,000 times over, in a store of 100,000 that stays full. */
static void test_full_store_does_not_look_at_all_for_one(void **state)
{
	enum { ALL = 100000, MORE = 20000 };
	const int64_t window = 600000, start = 1795186837296;
	struct nonces *s;
	uint64_t before;
	char n[16];
	(void)state;
	assert_ok(nonces_new(ALL, &s));
	for (int i = 0; i < ALL; i++) {
		snprintf(n, sizeof n, "n%d", i);
		/* in no order; one every 6 ms */
		assert_ok(
		    add(s, "a", n, start + (int64_t)(i * 7919LL % ALL + 1) * window / ALL, start));
	}
	before = nonces_moves(s);
	for (int i = 0; i < MORE; i++) {
		int64_t now = start + (int64_t)(i + 1) * window / ALL;
		snprintf(n, sizeof n, "m%d", i);
		assert_int_equal(add(s, "a", n, now + window, now - 1), -ENOSPC);
		assert_ok(add(s, "a", n, now + window, now));
		assert_int_equal(nonces_count(s), ALL);
	}
	assert_true(nonces_moves(s) - before <= 4 * (ALL + MORE));
	nonces_free(s);
}

static void test_refusals_of_a_full_store_cost_nothing(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(1000, &s));
	fill(s, 1000, 600000, 1);
	uint64_t before = nonces_moves(s);
	for (int i = 0; i < 100000; i++)
		assert_int_equal(add(s, "a", "one more", 900000, 1 + i), -ENOSPC);
	assert_true(nonces_moves(s) - before <= 5000);
	nonces_free(s);
}

/* A clock set ahead by an hour, used, and set back: nothing that still counts is forgotten, and
 * what ends by the new time makes room. */
static void test_clock_goes_back(void **state)
{
	const int64_t hour = 3600000;
	struct nonces *s;
	char n[16];
	(void)state;
	assert_ok(nonces_new(100, &s));
	for (int i = 0; i < 50; i++) {
		snprintf(n, sizeof n, "ahead%d", i);
		assert_ok(add(s, "a", n, 2 * hour + 1000, 2 * hour));
	}
	for (int i = 0; i < 50; i++) {
		snprintf(n, sizeof n, "back%d", i);
		assert_ok(add(s, "a", n, hour + 1000 + i, hour));
	}
	assert_int_equal(add(s, "a", "more", hour + 2000, hour + 999), -ENOSPC);
	for (int i = 0; i < 100; i++) {
		snprintf(n, sizeof n, i < 50 ? "ahead%d" : "back%d", i % 50);
		assert_int_equal(add(s, "a", n, 3 * hour, hour + 999), -EEXIST);
	}
	assert_ok(add(s, "a", "more", hour + 2000, hour + 1000));
	assert_int_equal(add(s, "a", "and more", hour + 2000, hour + 1000), -ENOSPC);
	assert_int_equal(add(s, "a", "back1", hour + 2000, hour + 1000), -EEXIST);
	assert_int_equal(add(s, "a", "ahead1", 3 * hour, 2 * hour + 999), -EEXIST);
	nonces_free(s);
}

static void test_an_end_that_never_comes(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(3, &s));
	assert_ok(add(s, "a", "for ever", INT64_MAX, 0));
	assert_ok(add(s, "a", "past", -5, 10));
	assert_ok(add(s, "a", "past", 0, 10));
	assert_ok(add(s, "a", "long", INT64_MAX - 1, 10));
	assert_int_equal(add(s, "a", "for ever", 5, INT64_MAX - 2), -EEXIST);
	assert_ok(add(s, "a", "b", INT64_MAX, INT64_MAX - 2));
	assert_int_equal(add(s, "a", "c", INT64_MAX, INT64_MAX - 2), -ENOSPC);
	assert_ok(add(s, "a", "c", INT64_MAX, INT64_MAX - 1));
	nonces_free(s);
}

static void test_capacity_zero_refuses(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(0, &s));
	assert_int_equal(add(s, "a", "n", 10, 0), -ENOSPC);
	nonces_free(s);
	nonces_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_seen_until_its_time),
	    cmocka_unit_test(test_owners_are_apart),
	    cmocka_unit_test(test_long_texts),
	    cmocka_unit_test(test_full_refuses_and_forgets_nothing),
	    cmocka_unit_test(test_steady_flow_stays_small),
	    cmocka_unit_test(test_like_a_plain_list),
	    cmocka_unit_test(test_full_store_does_not_look_at_all_for_one),
	    cmocka_unit_test(test_refusals_of_a_full_store_cost_nothing),
	    cmocka_unit_test(test_clock_goes_back),
	    cmocka_unit_test(test_an_end_that_never_comes),
	    cmocka_unit_test(test_capacity_zero_refuses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
