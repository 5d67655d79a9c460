/* Strings of JSON: scanning eight bytes at a time, escapes, UTF-8, and hashing of names. */
#include <errno.h>
#include <stdatomic.h>

#include "base/ident.h"
#include "base/utf8.h"
#include "wire/json_core.h"

#define ONES  0x0101010101010101u
#define HIGHS 0x8080808080808080u

/* The high bit of every byte that ends a plain run: quote, backslash, control byte, not ASCII.
 * Borrows can only spoil bytes above the lowest one marked, and only that one is used. */
static inline uint64_t special_bytes(uint64_t w)
{
	uint64_t quote = w ^ (ONES * '"');
	uint64_t back = w ^ (ONES * '\\');

	return (((quote - ONES) & ~quote) | ((back - ONES) & ~back) | ((w - ONES * 0x20) & ~w) |
		w) &
	       HIGHS;
}

static inline const char *skip_plain(const char *p, const char *end)
{
	while (end - p >= 8) {
		uint64_t mark = special_bytes(json_load64(p));

		if (mark)
			return p + (__builtin_ctzll(mark) >> 3);
		p += 8;
	}
	while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20 &&
	       (unsigned char)*p < 0x80)
		p++;
	return p;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Four hex digits; -1 when they are not. */
static int32_t hex4(const char *p)
{
	int32_t v = 0;

	for (int i = 0; i < 4; i++) {
		int d = hex_digit(p[i]);

		if (d < 0)
			return -1;
		v = v * 16 + d;
	}
	return v;
}

static bool is_high_surrogate(int32_t v)
{
	return v >= 0xD800 && v <= 0xDBFF;
}

static bool is_low_surrogate(int32_t v)
{
	return v >= 0xDC00 && v <= 0xDFFF;
}

/* p is behind "\u". */
static const char *scan_unicode_escape(const char *p, const char *end, const char **ret_what)
{
	int32_t v = end - p >= 4 ? hex4(p) : -1;

	*ret_what = "\\u needs four hex digits";
	if (v < 0)
		return NULL;
	*ret_what = "\\u0000 is not allowed";
	if (v == 0)
		return NULL;
	*ret_what = "a lone surrogate";
	if (is_low_surrogate(v))
		return NULL;
	if (!is_high_surrogate(v))
		return p + 4;
	if (end - p < 10 || p[4] != '\\' || p[5] != 'u' || !is_low_surrogate(hex4(p + 6)))
		return NULL;
	return p + 10;
}

/* p is at the backslash. */
static const char *scan_escape(const char *p, const char *end, const char **ret_what)
{
	*ret_what = "an unfinished string";
	if (end - p < 2)
		return NULL;
	switch (p[1]) {
	case '"':
	case '\\':
	case '/':
	case 'b':
	case 'f':
	case 'n':
	case 'r':
	case 't':
		return p + 2;
	case 'u':
		return scan_unicode_escape(p + 2, end, ret_what);
	default:
		*ret_what = "an unknown escape";
		return NULL;
	}
}

const char *json_scan_string(const char *p, const char *end, bool *ret_escaped, const char **ret_at,
			     const char **ret_what)
{
	*ret_escaped = false;
	for (;;) {
		p = skip_plain(p, end);
		*ret_at = p;
		*ret_what = "an unfinished string";
		if (p == end)
			return NULL;
		if (*p == '"')
			return p + 1;
		if (*p == '\\') {
			*ret_escaped = true;
			p = scan_escape(p, end, ret_what);
			if (!p)
				return NULL;
		} else if ((unsigned char)*p < 0x20) {
			*ret_what = "a control byte in a string; escape it";
			return NULL;
		} else {
			size_t n = utf8_sequence(p, (size_t)(end - p));

			*ret_what = "not valid UTF-8";
			if (!n)
				return NULL;
			p += n;
		}
	}
}

static size_t put_utf8(uint32_t c, char *out)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xC0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3F));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xE0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3F));
		out[2] = (char)(0x80 | (c & 0x3F));
		return 3;
	}
	out[0] = (char)(0xF0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3F));
	out[2] = (char)(0x80 | (c >> 6 & 0x3F));
	out[3] = (char)(0x80 | (c & 0x3F));
	return 4;
}

size_t json_unescape_next(const char **pp, char *out)
{
	static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
	const char *p = *pp, *at;

	if (*p != '\\') {
		*out = *p;
		*pp = p + 1;
		return 1;
	}
	if (p[1] == 'u') {
		uint32_t c = (uint32_t)hex4(p + 2);

		*pp = p + 6;
		if (is_high_surrogate((int32_t)c)) {
			c = 0x10000 + ((c - 0xD800) << 10) + ((uint32_t)hex4(p + 8) - 0xDC00);
			*pp = p + 12;
		}
		return put_utf8(c, out);
	}
	at = strchr(from, p[1]);
	*out = at ? to[at - from] : p[1];
	*pp = p + 2;
	return 1;
}

int json_unescape(struct span raw, struct buf *out)
{
	const char *p = raw.p, *end = raw.p + raw.n;

	while (p < end) {
		const char *back = memchr(p, '\\', (size_t)(end - p));
		const char *stop = back ? back : end;
		char bytes[4];
		size_t n;
		int r = buf_append(out, p, (size_t)(stop - p));

		if (r < 0 || !back)
			return r;
		p = back;
		n = json_unescape_next(&p, bytes);
		r = buf_append(out, bytes, n);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- hashing ---- */

static uint64_t hash_secret(void)
{
	static _Atomic uint64_t secret;
	uint64_t v = atomic_load_explicit(&secret, memory_order_relaxed);

	if (__builtin_expect(v == 0, 0)) {
		uint64_t fresh = ident_random_u64() | 1;

		v = 0;
		if (atomic_compare_exchange_strong(&secret, &v, fresh))
			v = fresh;
	}
	return v;
}

/* Both halves of a full product, folded. */
static inline uint64_t mul_fold(uint64_t a, uint64_t b)
{
	__extension__ unsigned __int128 m = (unsigned __int128)a * b;

	return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/* The last n (below 8) bytes as one word, without a loop. */
static inline uint64_t load_tail(const char *p, size_t n)
{
	uint32_t a, b;

	if (n >= 4) {
		memcpy(&a, p, 4);
		memcpy(&b, p + n - 4, 4);
		return (uint64_t)a | (uint64_t)b << 32;
	}
	if (n == 0)
		return 0;
	return (uint64_t)(unsigned char)p[0] | (uint64_t)(unsigned char)p[n >> 1] << 8 |
	       (uint64_t)(unsigned char)p[n - 1] << 16;
}

static uint32_t hash_end(uint64_t h, uint64_t secret)
{
	h = mul_fold(h ^ 0x9E3779B97F4A7C15u, secret);
	return (uint32_t)(h ^ h >> 32);
}

static uint32_t hash_escaped(const char *p, size_t n, uint64_t secret)
{
	const char *end = p + n, *q = p;
	size_t total = 0, fill = 0;
	char bytes[4], word[12];
	uint64_t h;

	while (q < end)
		total += json_unescape_next(&q, bytes);
	h = secret ^ (uint64_t)total << 32;
	while (p < end) {
		size_t k = json_unescape_next(&p, bytes);

		memcpy(word + fill, bytes, k);
		fill += k;
		if (fill >= 8) {
			h = mul_fold(h ^ json_load64(word), secret);
			fill -= 8;
			memmove(word, word + 8, fill);
		}
	}
	return hash_end(h ^ load_tail(word, fill), secret);
}

uint32_t json_key_hash(const char *p, size_t n, bool escaped)
{
	uint64_t secret = hash_secret(), h;

	if (__builtin_expect(escaped, 0))
		return hash_escaped(p, n, secret);
	h = secret ^ (uint64_t)n << 32;
	for (; n >= 8; n -= 8, p += 8)
		h = mul_fold(h ^ json_load64(p), secret);
	return hash_end(h ^ load_tail(p, n), secret);
}

static bool escaped_eq(const char *a, const char *a_end, const char *b, const char *b_end)
{
	char x[4], y[4];
	size_t xn = 0, yn = 0, xi = 0, yi = 0;

	for (;;) {
		if (xi == xn && a < a_end) {
			xn = json_unescape_next(&a, x);
			xi = 0;
		}
		if (yi == yn && b < b_end) {
			yn = json_unescape_next(&b, y);
			yi = 0;
		}
		if (xi == xn || yi == yn)
			return xi == xn && yi == yn;
		if (x[xi++] != y[yi++])
			return false;
	}
}

bool json_key_eq(const struct json_key *a, const struct json_key *b)
{
	if (a->hash != b->hash)
		return false;
	if (!a->escaped && !b->escaped)
		return a->n == b->n && memcmp(a->p, b->p, a->n) == 0;
	return escaped_eq(a->p, a->p + a->n, b->p, b->p + b->n);
}

bool json_raw_eq(struct span raw, const char *text, size_t text_n)
{
	const char *p = raw.p, *end = raw.p + raw.n;

	if (raw.n == text_n && memcmp(p, text, text_n) == 0)
		return !memchr(text, '\\', text_n);
	if (raw.n <= text_n || !memchr(p, '\\', raw.n))
		return false;
	for (size_t i = 0; i < text_n;) {
		char bytes[4];
		size_t n;

		if (p == end)
			return false;
		n = json_unescape_next(&p, bytes);
		if (n > text_n - i || memcmp(bytes, text + i, n) != 0)
			return false;
		i += n;
	}
	return p == end;
}
