/*
 * Writes JSON into a struct buf. The first error sticks (cap reached, no memory) and is what
 * jsonw_finish returns, so callers write straight through. key is NULL inside arrays and at the
 * top. Strings: invalid UTF-8 becomes U+FFFD, control bytes are escaped.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

struct jsonw {
	struct buf *out;
	int err;
	unsigned depth;	     /* at most 32 */
	uint32_t has_member; /* one bit a level: a comma is due */
};

void jsonw_init(struct jsonw *w, struct buf *out);
void jsonw_obj(struct jsonw *w, const char *key);
void jsonw_obj_end(struct jsonw *w);
void jsonw_arr(struct jsonw *w, const char *key);
void jsonw_arr_end(struct jsonw *w);
/* s NULL: the member is omitted (absent fields are never null). */
void jsonw_str(struct jsonw *w, const char *key, const char *s);
void jsonw_strn(struct jsonw *w, const char *key, const char *s, size_t n);
void jsonw_int(struct jsonw *w, const char *key, int64_t v);
void jsonw_uint(struct jsonw *w, const char *key, uint64_t v);
/* NaN and infinities are omitted. At most 3 decimals when |v| >= 0.001, else %.6g. */
void jsonw_num(struct jsonw *w, const char *key, double v);
void jsonw_bool(struct jsonw *w, const char *key, bool v);
/* json must be one valid JSON value. */
void jsonw_raw(struct jsonw *w, const char *key, const char *json, size_t n);
/* 0, -ENOBUFS, -ENOMEM; asserts that every level was closed when 0. */
int jsonw_finish(struct jsonw *w) MUST_CHECK;
