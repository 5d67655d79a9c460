/* agent-bridge/pace.c: how far apart turns are, by what comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>

#include "pace.h"

#define START_MS 1024000 /* a window begins here */

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
	for (int64_t t = START_MS; t < START_MS + 4096; t += 8) /* 125 a second */
		assert_int_equal(pace_on_frame(&p, t), 0);
}

static void test_a_fleet_of_18000_is_paced(void **state)
{
	struct pace p = {0};
	int64_t said_ms = START_MS;

	(void)state;
	for (int64_t t = START_MS; t < START_MS + 4096; t += 2) { /* 500 a second */
		unsigned us = pace_on_frame(&p, t);

		assert_true(us == 0 || us == 16000);
		said_ms = us ? t : said_ms;
		assert_true(t - said_ms < PACE_FOR_MS);
	}
}

static void test_the_more_come_the_sooner_turns_are(void **state)
{
	struct pace p = {0};

	(void)state;
	assert_int_equal(feed(&p, START_MS, 128, 1), 16000);
	assert_int_equal(p.hurried_us, 0);
	assert_int_equal(feed(&p, START_MS + 128, 128, 3), 12000);
	assert_int_equal(p.hurried_us, 500);
	assert_int_equal(feed(&p, START_MS + 256, 128, 19), 12000);
	assert_int_equal(feed(&p, START_MS + 384, 128, 1), 16000);
	assert_int_equal(p.hurried_us, 0);
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
	    cmocka_unit_test(test_a_fleet_of_18000_is_paced),
	    cmocka_unit_test(test_the_more_come_the_sooner_turns_are),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
