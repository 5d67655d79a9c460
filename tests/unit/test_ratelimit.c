/* Rates: the burst, the refill, the wait told, keys apart, memory fixed. */
#include "ratelimit.h"
#include "unit.h"

static struct ratelimit *fresh(size_t keys)
{
	struct ratelimit *r = NULL;

	assert_int_equal(ratelimit_new(keys, &r), 0);
	return r;
}

static void test_take_burst_is_one_minutes_worth(void **state)
{
	struct ratelimit *r = fresh(16);

	(void)state;
	for (int i = 0; i < 30; i++)
		assert_int_equal(ratelimit_take(r, "a", 1, 30, 1000), 0);
	assert_int_equal(ratelimit_take(r, "a", 1, 30, 1000), 2); /* one every two seconds */
	ratelimit_free(r);
}

static void test_take_refills_evenly(void **state)
{
	struct ratelimit *r = fresh(16);

	(void)state;
	for (int i = 0; i < 60; i++)
		assert_int_equal(ratelimit_take(r, "a", 1, 60, 0), 0);
	assert_int_equal(ratelimit_take(r, "a", 1, 60, 999), 1);
	assert_int_equal(ratelimit_take(r, "a", 1, 60, 1000), 0);
	assert_int_equal(ratelimit_take(r, "a", 1, 60, 1000), 1);
	/* A refused attempt costs nothing. */
	assert_int_equal(ratelimit_take(r, "a", 1, 60, 2000), 0);
	ratelimit_free(r);
}

static void test_take_keys_are_apart(void **state)
{
	struct ratelimit *r = fresh(16);

	(void)state;
	assert_int_equal(ratelimit_take(r, "a", 1, 1, 0), 0);
	assert_int_equal(ratelimit_take(r, "a", 1, 1, 0), 60);
	assert_int_equal(ratelimit_take(r, "b", 1, 1, 0), 0);
	ratelimit_free(r);
}

static void test_take_many_counts_each(void **state)
{
	struct ratelimit *r = fresh(16);

	(void)state;
	assert_true(ratelimit_allows(r, "a", 1, 60, 60, 0)); /* which counts nothing */
	assert_int_equal(ratelimit_take_many(r, "a", 1, 60, 50, 0), 0);
	assert_int_equal(ratelimit_take_many(r, "a", 1, 60, 20, 0), 10);
	assert_false(ratelimit_allows(r, "a", 1, 60, 20, 9999));
	assert_true(ratelimit_allows(r, "a", 1, 60, 20, 10000));
	assert_int_equal(ratelimit_take_many(r, "a", 1, 60, 10, 0), 0);
	assert_int_equal(ratelimit_take(r, "a", 1, 60, 0), 1);
	/* More than a minute's worth is a minute's worth. */
	assert_int_equal(ratelimit_take_many(r, "b", 1, 60, 1000, 0), 0);
	assert_int_equal(ratelimit_take(r, "b", 1, 60, 0), 1);
	ratelimit_free(r);
}

static void test_take_many_keys_never_grow(void **state)
{
	struct ratelimit *r = fresh(64);

	(void)state;
	for (int i = 0; i < 100000; i++)
		assert_int_equal(ratelimit_take(r, &i, sizeof(i), 1, 0), 0);
	ratelimit_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_take_burst_is_one_minutes_worth),
	    cmocka_unit_test(test_take_refills_evenly),
	    cmocka_unit_test(test_take_keys_are_apart),
	    cmocka_unit_test(test_take_many_counts_each),
	    cmocka_unit_test(test_take_many_keys_never_grow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
