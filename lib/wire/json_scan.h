/*
 * A strict one-pass JSON reader for hot paths (RFC 8259): UTF-8 checked, no duplicate keys, no
 * NUL (also not as \u0000), no lone surrogates, numbers that fit a double (1e400 refused) and a
 * jsonb (1e-16384 refused), a depth limit, no recursion, no allocation up to 64 members an object.
 * Accepts and refuses exactly what jansson does with JSON_REJECT_DUPLICATES at the same depth
 * (tests/fuzz proves it), but for numbers no jsonb holds, and for a NUL right behind a number,
 * which jansson overlooks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/macros.h"

/* Bytes somebody else owns. p NULL: absent. Not NUL-terminated. */
struct span {
	const char *p;
	size_t n;
};
#define SPAN(literal) ((struct span){(literal), sizeof(literal) - 1})
#define SPAN_FMT      "%.*s"
#define SPAN_ARG(s)   (int)(s).n, (s).p
bool span_eq(struct span a, const char *text);
struct span span_of(const char *text_or_null);
/* Copies with a NUL; -ENOBUFS when it does not fit in cap bytes. */
int span_copy(struct span s, char *out, size_t cap) MUST_CHECK;
char *span_dup(struct span s); /* malloc; NULL for absent or no memory */

enum json_type {
	JSON_T_NULL,
	JSON_T_BOOL,
	JSON_T_INT,
	JSON_T_REAL,
	JSON_T_STR,
	JSON_T_OBJ,
	JSON_T_ARR
};

struct json_fault {
	size_t offset;	  /* byte where it broke */
	const char *what; /* static text */
};

#define JSON_MAX_DEPTH 64 /* a larger max_depth counts as this */

/* One value validated whole: 0, or -EBADMSG with fault (may be NULL). max_depth counts objects and
 * arrays. -ENOMEM when an object has so many members that it needs a table and there is no memory.
 */
int json_validate(const char *json, size_t n, unsigned max_depth,
		  struct json_fault *fault) MUST_CHECK;

/* Walks the members of an object or the items of an array that was validated before. */
struct json_iter {
	const char *p, *end;
	bool object, first;
};
struct json_member {
	struct span
	    key; /* raw bytes between the quotes; unescape with json_unescape if it has '\\' */
	enum json_type type;
	struct span raw; /* the value's bytes; for strings between the quotes */
};
void json_iter_init(struct json_iter *it, struct span container);
bool json_iter_next(struct json_iter *it, struct json_member *ret);
/* Finds a member of a validated object. */
bool json_find(struct span object, const char *key, struct json_member *ret);
/* Undoes escapes: appends to out. Input must be validated. */
int json_unescape(struct span raw, struct buf *out) MUST_CHECK;
/* -ERANGE outside int64, -EINVAL when it is not an integer. */
int json_int(struct span raw, int64_t *ret) MUST_CHECK;
double json_num(struct span raw);
