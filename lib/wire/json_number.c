/* Numbers of JSON: which are well-formed, which fit an int64 or a double, and their values. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "wire/json_core.h"

/* 2^1024 - 2^970: the smallest magnitude that rounds to infinity. */
#define OVERFLOW_DIGITS 309
static const char overflow_at[] =
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017"
    "977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273"
    "854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704"
    "342711559699508093042880177904174497792";

/* PostgreSQL's numeric, hence jsonb, holds no more digits behind the point (NUMERIC_DSCALE_MASK in
 * src/backend/utils/adt/numeric.c). */
#define SCALE_MAX 16383

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static const char *skip_digits(const char *p, const char *end)
{
	while (p < end && is_digit(*p))
		p++;
	return p;
}

/* The first OVERFLOW_DIGITS digits from the first one that is not 0, against the limit. */
static bool digits_overflow(const char *p, const char *end)
{
	for (int i = 0; i < OVERFLOW_DIGITS; i++) {
		char c;

		if (p < end && *p == '.')
			p++;
		c = p < end ? *p++ : '0';
		if (c != overflow_at[i])
			return c > overflow_at[i];
	}
	return true;
}

static int64_t exponent_value(const char *p, const char *end)
{
	bool negative = p < end && *p == '-';
	int64_t v = 0;

	if (p < end && (*p == '-' || *p == '+'))
		p++;
	for (; p < end; p++) {
		if (v < INT64_C(1000000000000000))
			v = v * 10 + (*p - '0');
	}
	return negative ? -v : v;
}

/* A well-formed real: true when it is at or over the limit. */
static bool real_overflows(const char *p, const char *end)
{
	const char *exponent = p, *first, *dot;
	int64_t magnitude; /* the value is 0.d1d2… times ten to this */

	while (exponent < end && *exponent != 'e' && *exponent != 'E')
		exponent++;
	dot = memchr(p, '.', (size_t)(exponent - p));
	if (!dot)
		dot = exponent;
	for (first = p; first < exponent && (*first == '0' || *first == '.' || *first == '-');)
		first++;
	if (first == exponent)
		return false; /* zero */
	magnitude = first < dot ? dot - first : dot + 1 - first;
	if (exponent < end)
		magnitude += exponent_value(exponent + 1, end);
	if (magnitude != OVERFLOW_DIGITS)
		return magnitude > OVERFLOW_DIGITS;
	return digits_overflow(first, exponent);
}

/* A well-formed real: true when its last decimal is further than SCALE_MAX behind the point, or
 * when its exponent alone says so of a zero. */
static bool real_is_too_fine(const char *p, const char *end)
{
	const char *exponent = p, *dot;
	int64_t e, decimals;

	while (exponent < end && *exponent != 'e' && *exponent != 'E')
		exponent++;
	dot = memchr(p, '.', (size_t)(exponent - p));
	decimals = dot ? exponent - dot - 1 : 0;
	e = exponent < end ? exponent_value(exponent + 1, end) : 0;
	return e > SCALE_MAX || decimals - e > SCALE_MAX;
}

/* digits of an integer without sign and leading zeros. */
static bool integer_overflows(const char *digits, size_t n, bool negative)
{
	const char *limit = negative ? "9223372036854775808" : "9223372036854775807";

	if (n != 19)
		return n > 19;
	return memcmp(digits, limit, 19) > 0;
}

/* What follows the integer part, from '.', 'e' or 'E'. */
static const char *scan_real_rest(const char *p, const char *end)
{
	const char *q;

	if (*p == '.') {
		q = skip_digits(p + 1, end);
		if (q == p + 1)
			return NULL;
		p = q;
	}
	if (p < end && (*p == 'e' || *p == 'E')) {
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			p++;
		q = skip_digits(p, end);
		if (q == p)
			return NULL;
		p = q;
	}
	return p;
}

const char *json_scan_number(const char *p, const char *end, enum json_type *ret_type,
			     const char **ret_what)
{
	const char *start = p, *digits;
	bool negative = *p == '-';

	*ret_what = "not a number";
	if (negative)
		p++;
	digits = p;
	if (p < end && *p == '0')
		p++;
	else
		p = skip_digits(p, end);
	if (p == digits)
		return NULL;
	*ret_type = JSON_T_INT;
	if (p == end || (*p != '.' && *p != 'e' && *p != 'E')) {
		*ret_what = "an integer that does not fit 64 bits";
		if (p - digits >= 19 && integer_overflows(digits, (size_t)(p - digits), negative))
			return NULL;
		return p;
	}
	*ret_type = JSON_T_REAL;
	p = scan_real_rest(p, end);
	if (!p)
		return NULL;
	/* Below 308 characters without an exponent nothing can overflow. */
	if (p - start < 308 && !memchr(start, 'e', (size_t)(p - start)) &&
	    !memchr(start, 'E', (size_t)(p - start)))
		return p;
	*ret_what = "a number that does not fit a double";
	if (real_overflows(start, p))
		return NULL;
	*ret_what = "a number with more decimals than a database holds";
	return real_is_too_fine(start, p) ? NULL : p;
}

int json_int(struct span raw, int64_t *ret)
{
	bool negative = raw.n > 0 && raw.p[0] == '-';
	uint64_t v = 0, limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;

	if (raw.n == (negative ? 1u : 0u))
		return -EINVAL;
	for (size_t i = negative; i < raw.n; i++) {
		uint64_t d = (uint64_t)(raw.p[i] - '0');

		if (!is_digit(raw.p[i]))
			return -EINVAL;
		if (v > (limit - d) / 10)
			return -ERANGE;
		v = v * 10 + d;
	}
	*ret = negative ? (int64_t)(0 - v) : (int64_t)v;
	return 0;
}

double json_num(struct span raw)
{
	char small[64], *text = small;
	double v;

	if (raw.n >= sizeof small)
		text = malloc(raw.n + 1);
	if (!text)
		return NAN;
	memcpy(text, raw.p, raw.n);
	text[raw.n] = '\0';
	v = strtod(text, NULL);
	if (text != small)
		free(text);
	return v;
}
