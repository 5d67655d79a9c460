#include "unit.h"

#include <errno.h>
#include <time.h>

#include "base/backoff.h"
#include "base/clock.h"

static int64_t parsed(const char *s)
{
	int64_t ms = -1;
	assert_ok(clock_parse_rfc3339(s, strlen(s), &ms));
	return ms;
}

static void test_parse_known_values(void **state)
{
	(void)state;
	assert_int_equal(parsed("1970-01-01T00:00:00Z"), 0);
	assert_int_equal(parsed("2026-11-20T11:09:00.123Z"), 1795172940123);
	assert_int_equal(parsed("2026-11-20t11:09:00.123z"), 1795172940123);
	assert_int_equal(parsed("2026-11-20T12:39:00.123456789+01:30"), 1795172940123);
	assert_int_equal(parsed("2026-11-20T10:09:00.1-01:00"), 1795172940100);
	assert_int_equal(parsed("2000-02-29T23:59:59.999Z"), 951868799999);
	assert_int_equal(parsed("0001-01-01T00:00:00Z"), -62135596800000);
	assert_int_equal(parsed("9999-12-31T23:59:59.999Z"), 253402300799999);
	assert_int_equal(parsed("1969-12-31T23:59:59.5Z"), -500);
}

static void test_leap_second_is_the_next_start(void **state)
{
	int64_t ms;
	(void)state;
	assert_int_equal(parsed("2016-12-31T23:59:60.9Z"), 1483228800000);
	assert_int_equal(parsed("2017-01-01T00:59:60+01:00"), 1483228800000);
	assert_int_equal(clock_parse_rfc3339("2016-12-31T12:59:60Z", 20, &ms), -EINVAL);
}

static void test_parse_refuses(void **state)
{
	static const char *const bad[] = {
	    "",
	    "2026-11-20",
	    "2026-11-20 11:09:00Z",
	    "2026-11-20T11:09:00",
	    "2026-11-20T11:09Z",
	    "2026-11-20T11:09:00.Z",
	    "2026-11-20T11:09:00.1234567890Z",
	    "2026-11-20T11:09:00+0100",
	    "2026-11-20T11:09:00+24:00",
	    "2026-11-20T11:09:00+01:60",
	    "2026-13-20T11:09:00Z",
	    "2026-00-20T11:09:00Z",
	    "2026-02-29T11:09:00Z",
	    "1900-02-29T00:00:00Z",
	    "2026-11-31T11:09:00Z",
	    "2026-11-20T24:00:00Z",
	    "2026-11-20T11:60:00Z",
	    "2026-11-20T11:09:61Z",
	    "0000-01-01T00:00:00Z",
	    "0001-01-01T00:00:00+00:01",
	    "2026-11-20T11:09:00ZZ",
	    " 2026-11-20T11:09:00Z",
	    "+026-11-20T11:09:00Z",
	    "2026-11-20T11:09:00,5Z",
	    "26-11-20T11:09:00Z",
	};
	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		int64_t ms;
		if (clock_parse_rfc3339(bad[i], strlen(bad[i]), &ms) != -EINVAL)
			fail_msg("accepted: %s", bad[i]);
	}
}

static void test_format_agrees_with_gmtime(void **state)
{
	(void)state;
	for (int64_t ms = -62135596800000; ms < 253402300799999; ms += 86400000ll * 97 + 12345678) {
		char got[CLOCK_RFC3339_LEN + 1], want[64];
		time_t t = (time_t)((ms - ((ms % 1000) + 1000) % 1000) / 1000);
		struct tm tm;
		gmtime_r(&t, &tm);
		snprintf(want, sizeof want, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ",
			 tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min,
			 tm.tm_sec, (int)(((ms % 1000) + 1000) % 1000));
		clock_format_rfc3339(ms, got);
		assert_string_equal(got, want);
		assert_int_equal(parsed(got), ms);
	}
}

static void test_format_clamps(void **state)
{
	char got[CLOCK_RFC3339_LEN + 1];
	(void)state;
	clock_format_rfc3339(INT64_MAX, got);
	assert_string_equal(got, "9999-12-31T23:59:59.999Z");
	clock_format_rfc3339(INT64_MIN, got);
	assert_string_equal(got, "0001-01-01T00:00:00.000Z");
}

static void test_shift_moves_both_clocks(void **state)
{
	(void)state;
	int64_t wall = clock_wall_ms(), boot = clock_boot_ms();
	clock_test_shift(-3600000, 50000);
	assert_in_range(wall - clock_wall_ms(), 3590000, 3600000);
	assert_in_range(clock_boot_ms() - boot, 50000, 60000);
	assert_in_range(clock_boot_us() / 1000 - (uint64_t)boot, 50000, 60000);
	clock_test_shift(0, 0);
	assert_in_range(clock_wall_ms() - wall, 0, 10000);
}

static void test_backoff_stays_in_bounds_and_spreads(void **state)
{
	struct backoff b;
	int64_t last = 100, reached = 0;
	(void)state;
	backoff_init(&b, 100, 5000);
	for (int i = 0; i < 1000; i++) {
		int64_t ms = backoff_next_ms(&b);
		assert_in_range(ms, 100, last * 3 < 5000 ? last * 3 : 5000);
		if (ms > reached)
			reached = ms;
		last = ms;
	}
	assert_true(reached > 2500);
	backoff_reset(&b);
	assert_in_range(backoff_next_ms(&b), 100, 300);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_parse_known_values),
	    cmocka_unit_test(test_leap_second_is_the_next_start),
	    cmocka_unit_test(test_parse_refuses),
	    cmocka_unit_test(test_format_agrees_with_gmtime),
	    cmocka_unit_test(test_format_clamps),
	    cmocka_unit_test(test_shift_moves_both_clocks),
	    cmocka_unit_test(test_backoff_stays_in_bounds_and_spreads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
