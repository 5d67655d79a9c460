/* What jansson says of a document, with the depth rule of the frames and what a jsonb holds on top:
 * the judge of lib/wire's own scanner, for the unit and fuzz tests. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Containers inside one another. Recursion is bounded by jansson's own parser depth (2048). */
static inline unsigned oracle_depth(const json_t *v)
{
	unsigned deepest = 0;
	const char *key;
	json_t *item;
	size_t i;

	if (!json_is_object(v) && !json_is_array(v))
		return 0;
	if (json_is_object(v)) {
		json_object_foreach((json_t *)(size_t)v, key, item)
		{
			unsigned d = oracle_depth(item);

			deepest = d > deepest ? d : deepest;
		}
	} else {
		json_array_foreach(v, i, item)
		{
			unsigned d = oracle_depth(item);

			deepest = d > deepest ? d : deepest;
		}
	}
	return deepest + 1;
}

static inline size_t oracle_digits(const char *json, size_t n, size_t i)
{
	size_t from = i;

	while (i < n && json[i] >= '0' && json[i] <= '9')
		i++;
	return i - from;
}

/* Of good JSON: no number has more than 16,383 digits behind the point when written out, which is
 * what PostgreSQL's jsonb holds and jansson does not ask. */
static inline bool oracle_fits_jsonb(const char *json, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		long long decimals = 0, exponent = 0;
		bool negative;

		if (json[i] == '"') {
			for (i++; json[i] != '"'; i++)
				i += json[i] == '\\';
			continue;
		}
		if (json[i] < '0' || json[i] > '9')
			continue;
		i += oracle_digits(json, n, i);
		if (i < n && json[i] == '.') {
			decimals = (long long)oracle_digits(json, n, i + 1);
			i += 1 + (size_t)decimals;
		}
		if (i < n && (json[i] == 'e' || json[i] == 'E')) {
			i++;
			negative = json[i] == '-';
			i += json[i] == '-' || json[i] == '+';
			for (size_t k = oracle_digits(json, n, i); k; k--, i++)
				if (exponent < 1000000)
					exponent = exponent * 10 + (json[i] - '0');
			exponent = negative ? -exponent : exponent;
		}
		i--;
		if (exponent > 16383 || decimals - exponent > 16383)
			return false;
	}
	return true;
}

/* NULL: refused. */
static inline json_t *oracle_load(const char *json, size_t n, unsigned max_depth)
{
	json_error_t e;
	json_t *v;

	/* jansson 2.14 overlooks a NUL right behind a number: it pushes the byte back into a
	 * buffer whose end it tells by a NUL. */
	if (n && memchr(json, 0, n))
		return NULL;
	v = json_loadb(json, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);

	if (v && (oracle_depth(v) > max_depth || !oracle_fits_jsonb(json, n))) {
		json_decref(v);
		v = NULL;
	}
	return v;
}
