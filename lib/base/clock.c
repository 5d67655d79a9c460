/* See clock.h. Calendar arithmetic on days since 1970-01-01, proleptic Gregorian, after
 * Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms". */
#include "base/clock.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>

#include "base/crash.h"

#define MS_PER_DAY   INT64_C(86400000)
#define YEAR_0001_MS INT64_C(-62135596800000)
#define YEAR_9999_MS INT64_C(253402300799999)

static _Atomic int64_t wall_shift_ms, boot_shift_ms;

static uint64_t read_us(clockid_t id)
{
	struct timespec ts;
	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

int64_t clock_wall_ms(void)
{
	int64_t ms = (int64_t)(read_us(CLOCK_REALTIME) / 1000u) + atomic_load(&wall_shift_ms);
#ifdef VIW_CRASH_POINTS
	ms += crash_clock_shift_ms();
#endif
	return ms;
}

int64_t clock_boot_ms(void)
{
	return (int64_t)(clock_boot_us() / 1000u);
}

uint64_t clock_boot_us(void)
{
	return read_us(CLOCK_BOOTTIME) + (uint64_t)(atomic_load(&boot_shift_ms) * 1000);
}

void clock_test_shift(int64_t wall_ms, int64_t boot_ms)
{
	atomic_store(&wall_shift_ms, wall_ms);
	atomic_store(&boot_shift_ms, boot_ms);
}

static int64_t days_from_civil(int64_t y, unsigned m, unsigned d)
{
	y -= m <= 2;
	int64_t era = (y >= 0 ? y : y - 399) / 400;
	unsigned yoe = (unsigned)(y - era * 400);
	unsigned doy = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;
	unsigned doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
	return era * 146097 + (int64_t)doe - 719468;
}

static void civil_from_days(int64_t z, unsigned *y, unsigned *m, unsigned *d)
{
	z += 719468;
	int64_t era = (z >= 0 ? z : z - 146096) / 146097;
	unsigned doe = (unsigned)(z - era * 146097);
	unsigned yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	unsigned doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	unsigned mp = (5 * doy + 2) / 153;
	*d = doy - (153 * mp + 2) / 5 + 1;
	*m = mp < 10 ? mp + 3 : mp - 9;
	*y = (unsigned)((int64_t)yoe + era * 400) + (*m <= 2);
}

static char *put_digits(char *out, unsigned v, unsigned width)
{
	for (unsigned i = width; i-- > 0; v /= 10)
		out[i] = (char)('0' + v % 10);
	return out + width;
}

void clock_format_rfc3339(int64_t ms, char *out)
{
	if (ms < YEAR_0001_MS)
		ms = YEAR_0001_MS;
	if (ms > YEAR_9999_MS)
		ms = YEAR_9999_MS;
	int64_t days = ms / MS_PER_DAY, rest = ms % MS_PER_DAY;
	if (rest < 0) {
		rest += MS_PER_DAY;
		days--;
	}
	unsigned y, m, d, t = (unsigned)rest;
	civil_from_days(days, &y, &m, &d);
	out = put_digits(out, y, 4);
	*out++ = '-';
	out = put_digits(out, m, 2);
	*out++ = '-';
	out = put_digits(out, d, 2);
	*out++ = 'T';
	out = put_digits(out, t / 3600000, 2);
	*out++ = ':';
	out = put_digits(out, t / 60000 % 60, 2);
	*out++ = ':';
	out = put_digits(out, t / 1000 % 60, 2);
	*out++ = '.';
	out = put_digits(out, t % 1000, 3);
	*out++ = 'Z';
	*out = '\0';
}

/* Exactly `width` digits at *s; false when there are not. */
static bool take_digits(const char **s, const char *end, unsigned width, unsigned *ret)
{
	unsigned v = 0;
	if ((size_t)(end - *s) < width)
		return false;
	for (unsigned i = 0; i < width; i++, (*s)++) {
		if (**s < '0' || **s > '9')
			return false;
		v = v * 10 + (unsigned)(**s - '0');
	}
	*ret = v;
	return true;
}

static bool take_char(const char **s, const char *end, char c)
{
	if (*s == end || **s != c)
		return false;
	(*s)++;
	return true;
}

static unsigned days_in_month(unsigned y, unsigned m)
{
	static const unsigned char days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
	return m == 2 && leap ? 29 : days[m - 1];
}

static bool take_fraction(const char **s, const char *end, unsigned *ret_ms)
{
	unsigned digits = 0, ms = 0, weight = 100;
	*ret_ms = 0;
	if (!take_char(s, end, '.'))
		return true;
	for (; *s < end && **s >= '0' && **s <= '9'; (*s)++, digits++, weight /= 10)
		ms += (unsigned)(**s - '0') * weight;
	*ret_ms = ms;
	return digits >= 1 && digits <= 9;
}

static bool take_offset(const char **s, const char *end, int *ret_minutes)
{
	unsigned h, m;
	*ret_minutes = 0;
	if (take_char(s, end, 'Z') || take_char(s, end, 'z'))
		return true;
	bool west = *s < end && **s == '-';
	if (!west && (*s == end || **s != '+'))
		return false;
	(*s)++;
	if (!take_digits(s, end, 2, &h) || !take_char(s, end, ':') || !take_digits(s, end, 2, &m) ||
	    h > 23 || m > 59)
		return false;
	*ret_minutes = (int)(h * 60 + m) * (west ? -1 : 1);
	return true;
}

int clock_parse_rfc3339(const char *s, size_t n, int64_t *ret_wall_ms)
{
	const char *end = s + n;
	unsigned y, mo, d, h, mi, sec, ms;
	int offset;
	if (!take_digits(&s, end, 4, &y) || !take_char(&s, end, '-') ||
	    !take_digits(&s, end, 2, &mo) || !take_char(&s, end, '-') ||
	    !take_digits(&s, end, 2, &d) ||
	    (!take_char(&s, end, 'T') && !take_char(&s, end, 't')) ||
	    !take_digits(&s, end, 2, &h) || !take_char(&s, end, ':') ||
	    !take_digits(&s, end, 2, &mi) || !take_char(&s, end, ':') ||
	    !take_digits(&s, end, 2, &sec) || !take_fraction(&s, end, &ms) ||
	    !take_offset(&s, end, &offset) || s != end)
		return -EINVAL;
	if (y < 1 || mo < 1 || mo > 12 || d < 1 || d > days_in_month(y, mo) || h > 23 || mi > 59 ||
	    sec > 60)
		return -EINVAL;
	if (sec == 60)
		ms = 0;
	int64_t t =
	    (((days_from_civil(y, mo, d) * 24 + h) * 60 + mi - offset) * 60 + sec) * 1000 + ms;
	if (sec == 60 && t % MS_PER_DAY != 0)
		return -EINVAL; /* leap seconds are inserted at the end of a UTC day only */
	if (t < YEAR_0001_MS || t > YEAR_9999_MS)
		return -EINVAL;
	*ret_wall_ms = t;
	return 0;
}
