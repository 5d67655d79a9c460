/* What jansson says of a document, with the depth rule of the frames on top: the judge of
 * lib/wire's own scanner, for the unit and fuzz tests. */
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

	if (v && oracle_depth(v) > max_depth) {
		json_decref(v);
		v = NULL;
	}
	return v;
}
