/*
 * Private to lib/wire: the scanner behind json_validate and the frame decoder, and the pieces of
 * strings and numbers it is made of.
 */
#pragma once

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "wire/json_scan.h"

/* A member name as it stands between its quotes. hash is over the unescaped bytes and keyed by
 * the process, so that a peer cannot prepare names that collide. */
struct json_key {
	const char *p;
	uint32_t n, hash;
	bool escaped;
};

/* Told of every member of the outermost object, once its value is over. */
struct json_sink {
	void (*on_member)(void *arg, const struct json_key *key, const struct json_member *m,
			  bool value_escaped);
	void *arg;
};

/* json_validate, with a sink. With one, the document must be an object. -ENOMEM can also come:
 * an object of many members needs a table. */
int json_scan(const char *json, size_t n, unsigned max_depth, const struct json_sink *sink,
	      struct json_fault *fault) MUST_CHECK;

/* One string from behind its opening quote: the position behind the closing one, or NULL with
 * *ret_at and *ret_what. */
const char *json_scan_string(const char *p, const char *end, bool *ret_escaped, const char **ret_at,
			     const char **ret_what);
/* One number: the position behind it, or NULL with *ret_what. */
const char *json_scan_number(const char *p, const char *end, enum json_type *ret_type,
			     const char **ret_what);

/* Decodes one byte or one escape of a validated string at *p, moves *p behind it, writes 1 to 4
 * bytes. */
size_t json_unescape_next(const char **p, char *out);
uint32_t json_key_hash(const char *p, size_t n, bool escaped);
bool json_key_eq(const struct json_key *a, const struct json_key *b);
/* True when raw, unescaped, is text. */
bool json_raw_eq(struct span raw, const char *text, size_t text_n);

static inline const char *json_skip_space(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
		p++;
	return p;
}

static inline uint64_t json_load64(const char *p)
{
	uint64_t w;

	memcpy(&w, p, sizeof w);
	return le64toh(w);
}
