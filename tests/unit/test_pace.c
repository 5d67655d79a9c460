/* agent-bridge/pace.c: how far apart turns are, by what comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>

#include "pace.h"

#define START_MS 1000000 /* a window begins here */

/* n frames a millisecond; what was said last, at most ms milliseconds ago. */
static unsigned feed(struct pace *p, int64_t from_ms, int ms, unsigned n)
{
	unsigned last = 0;

	for (int64_t t = from_ms; t < from_ms + ms; t++)
		for (unsigned i = 0; i < n; i++) {
			unsigned us = pace_on_frame(p, t);

			last = us ? us : last;
		}
	return last;
}

static void test_few_frames_are_not_paced(void **state)
{
	struct pace p = {0};

	(void)state;
	assert_int_equal(feed(&p, START_MS, 1000, 1), 0);
}

static void test_the_more_come_the_sooner_turns_are(void **state)
{
	struct pace p = {0};

	(void)state;
	assert_int_equal(feed(&p, START_MS, 100, 2), 8000);
	assert_int_equal(feed(&p, START_MS + 100, 100, 19), 8000);
	assert_int_equal(feed(&p, START_MS + 200, 100, 20), 4000);
	assert_int_equal(feed(&p, START_MS + 300, 100, 10), 8000);
}

static void test_a_command_makes_it_brisk_for_a_while(void **state)
{
	struct pace p = {0};

	(void)state;
	(void)feed(&p, START_MS, 96, 2);
	assert_int_equal(pace_be_brisk(&p, START_MS + 96), 2000);
	assert_int_equal(pace_be_brisk(&p, START_MS + 97), 0); /* it is */
	assert_int_equal(feed(&p, START_MS + 104, 80, 2), 2000);
	assert_int_equal(feed(&p, START_MS + 184, 80, 2), 8000);
	(void)pace_be_brisk(&p, START_MS + 264);
	assert_int_equal(feed(&p, START_MS + 272, 80, 20), 1000);
}

static void test_a_command_does_not_pace_who_is_not(void **state)
{
	struct pace p = {0};

	(void)state;
	assert_int_equal(pace_be_brisk(&p, START_MS), 0);
	(void)feed(&p, START_MS, 96, 2);
	assert_int_equal(pace_be_brisk(&p, START_MS + 96 + PACE_FOR_MS), 0);
}

static void test_a_socket_that_fills_what_is_read_has_more(void **state)
{
	struct pace p = {0};
	int a = 0, b = 0;

	(void)state;
	assert_false(pace_on_read(&p, &a, 400, START_MS));
	assert_false(pace_on_read(&p, &a, 400, START_MS));
	assert_true(pace_on_read(&p, &a, 208, START_MS)); /* three heads, too */
	assert_false(pace_on_read(&p, &b, 400, START_MS));
	assert_true(pace_on_read(&p, &a, PACE_READ_BYTES, START_MS));
	assert_false(pace_on_read(&p, &a, 400, START_MS + 8));
	assert_false(pace_on_read(&p, &a, 400, START_MS + 16));
	assert_false(pace_on_read(&p, &a, 400, START_MS + 24));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_a_socket_that_fills_what_is_read_has_more),
	    cmocka_unit_test(test_few_frames_are_not_paced),
	    cmocka_unit_test(test_the_more_come_the_sooner_turns_are),
	    cmocka_unit_test(test_a_command_makes_it_brisk_for_a_while),
	    cmocka_unit_test(test_a_command_does_not_pace_who_is_not),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
