/* See jsonw.h. Plain runs of bytes are appended whole; only odd bytes are looked at one by one. */
#include "base/jsonw.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/decimal.h"
#include "base/utf8.h"

#define JSONW_DEPTH_MAX 32

void jsonw_init(struct jsonw *w, struct buf *out)
{
	*w = (struct jsonw){.out = out};
}

static void put(struct jsonw *w, const char *bytes, size_t n)
{
	if (w->err == 0)
		w->err = buf_append(w->out, bytes, n);
}

/* One byte or sequence that is not plain; returns how many input bytes it took. */
static size_t put_odd(struct jsonw *w, const char *s, size_t n)
{
	static const char short_form[] = "btn?fr"; /* from 0x08 */
	unsigned char c = (unsigned char)s[0];
	char esc[8];
	if (c == '"' || c == '\\') {
		put(w, (const char[]){'\\', (char)c}, 2);
	} else if (c >= 0x08 && c <= 0x0d && c != 0x0b) {
		put(w, (const char[]){'\\', short_form[c - 0x08]}, 2);
	} else if (c < 0x20 || c == 0x7f) {
		snprintf(esc, sizeof esc, "\\u%04x", c);
		put(w, esc, 6);
	} else {
		size_t len = utf8_sequence(s, n);
		if (!len) {
			put(w, "\xef\xbf\xbd", 3);
			return 1;
		}
		put(w, s, len);
		return len;
	}
	return 1;
}

static void put_string(struct jsonw *w, const char *s, size_t n)
{
	put(w, "\"", 1);
	for (size_t i = 0; i < n && w->err == 0;) {
		size_t run = utf8_plain_prefix(s + i, n - i);

		if (run)
			put(w, s + i, run);
		i += run;
		if (i < n)
			i += put_odd(w, s + i, n - i);
	}
	put(w, "\"", 1);
}

/* What stands before every value: a comma when one is due, and the key. */
static void put_key(struct jsonw *w, const char *key)
{
	if (w->depth) {
		uint32_t bit = UINT32_C(1) << (w->depth - 1);
		if (w->has_member & bit)
			put(w, ",", 1);
		w->has_member |= bit;
	}
	if (key) {
		put_string(w, key, strlen(key));
		put(w, ":", 1);
	}
}

static void open_level(struct jsonw *w, const char *key, const char *bracket)
{
	put_key(w, key);
	put(w, bracket, 1);
	assert(w->depth < JSONW_DEPTH_MAX);
	w->depth++;
	w->has_member &= ~(UINT32_C(1) << (w->depth - 1));
}

static void close_level(struct jsonw *w, const char *bracket)
{
	assert(w->depth > 0);
	w->depth--;
	put(w, bracket, 1);
}

void jsonw_obj(struct jsonw *w, const char *key)
{
	open_level(w, key, "{");
}

void jsonw_obj_end(struct jsonw *w)
{
	close_level(w, "}");
}

void jsonw_arr(struct jsonw *w, const char *key)
{
	open_level(w, key, "[");
}

void jsonw_arr_end(struct jsonw *w)
{
	close_level(w, "]");
}

void jsonw_str(struct jsonw *w, const char *key, const char *s)
{
	if (s)
		jsonw_strn(w, key, s, strlen(s));
}

void jsonw_strn(struct jsonw *w, const char *key, const char *s, size_t n)
{
	if (!s)
		return;
	put_key(w, key);
	put_string(w, s, n);
}

static void put_number(struct jsonw *w, const char *key, bool minus, uint64_t magnitude)
{
	char text[1 + DECIMAL_MAX] = "-";

	put_key(w, key);
	put(w, text, (size_t)(decimal_put(text + minus, magnitude) - text));
}

void jsonw_int(struct jsonw *w, const char *key, int64_t v)
{
	put_number(w, key, v < 0, v < 0 ? 0 - (uint64_t)v : (uint64_t)v);
}

void jsonw_uint(struct jsonw *w, const char *key, uint64_t v)
{
	put_number(w, key, false, v);
}

void jsonw_num(struct jsonw *w, const char *key, double v)
{
	char text[352]; /* %.3f of DBL_MAX has 309 digits before the point */
	if (!isfinite(v))
		return;
	double magnitude = fabs(v);
	int n;
	if (magnitude == 0.0) {
		n = snprintf(text, sizeof text, "0");
	} else if (magnitude < 0.001 || magnitude >= 1e15) {
		n = snprintf(text, sizeof text, "%.6g", v);
	} else {
		n = snprintf(text, sizeof text, "%.3f", v);
		while (text[n - 1] == '0')
			n--;
		if (text[n - 1] == '.')
			n--;
	}
	put_key(w, key);
	put(w, text, (size_t)n);
}

void jsonw_bool(struct jsonw *w, const char *key, bool v)
{
	put_key(w, key);
	put(w, v ? "true" : "false", v ? 4 : 5);
}

void jsonw_raw(struct jsonw *w, const char *key, const char *json, size_t n)
{
	put_key(w, key);
	put(w, json, n);
}

int jsonw_finish(struct jsonw *w)
{
	assert(w->err < 0 || w->depth == 0);
	return w->err;
}
