/* Requests as RESP arrays, and SHA-1 for naming scripts. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/decimal.h"
#include "redis_internal.h"

static size_t put_len(char *out, char sign, size_t v)
{
	char *at = out;

	*at++ = sign;
	at = decimal_put(at, v);
	*at++ = '\r';
	*at++ = '\n';
	return (size_t)(at - out);
}

int resp_append(struct buf *out, size_t argc, const struct span *argv)
{
	size_t need = 24, o;
	char *at;
	int r;

	for (size_t i = 0; i < argc; i++)
		need += argv[i].n + 26;
	r = buf_reserve(out, need, &at);
	if (r < 0)
		return r;
	o = put_len(at, '*', argc);
	for (size_t i = 0; i < argc; i++) {
		o += put_len(at + o, '$', argv[i].n);
		if (argv[i].n)
			memcpy(at + o, argv[i].p, argv[i].n);
		o += argv[i].n;
		at[o++] = '\r';
		at[o++] = '\n';
	}
	buf_commit(out, o);
	return 0;
}

static int append_conversion(struct buf *text, const char **fmt, va_list *ap)
{
	const char *f = *fmt;
	int r;

	if (!strncmp(f, "%lld", 4)) {
		r = buf_appendf(text, "%lld", va_arg(*ap, long long));
		*fmt += 4;
		return r;
	}
	*fmt += 2;
	switch (f[1]) {
	case 's':
		return buf_append_str(text, va_arg(*ap, const char *));
	case 'd':
		return buf_appendf(text, "%d", va_arg(*ap, int));
	case 'b': {
		struct span s = va_arg(*ap, struct span);

		return s.n ? buf_append(text, s.p, s.n) : 0;
	}
	default:
		return -EINVAL;
	}
}

int resp_vformat(struct buf *text, const char *fmt, va_list ap, size_t *ret_argc, struct span *argv)
{
	size_t start[REDIS_FMT_WORDS_MAX + 1], n = 0;
	va_list copy;
	int r = 0;

	va_copy(copy, ap); /* a va_list of our own: only that can be passed on by reference */
	while (*fmt && r == 0) {
		if (n == REDIS_FMT_WORDS_MAX) {
			r = -E2BIG;
			break;
		}
		start[n++] = text->len;
		while (*fmt && *fmt != ' ' && r == 0) {
			if (*fmt == '%')
				r = append_conversion(text, &fmt, &copy);
			else
				r = buf_append_char(text, *fmt++);
		}
		while (*fmt == ' ')
			fmt++;
	}
	va_end(copy);
	if (r < 0)
		return r;
	start[n] = text->len;
	for (size_t i = 0; i < n; i++)
		argv[i] = (struct span){text->data + start[i], start[i + 1] - start[i]};
	*ret_argc = n;
	return 0;
}

int resp_append_greeting(struct buf *out, const struct redis_url *u, unsigned *ret_replies)
{
	struct span auth[3] = {SPAN("AUTH")}, word[2] = {SPAN("SELECT")}, ping = SPAN("PING");
	unsigned n = 1;
	size_t argc = 1;
	char db[12];
	int r = 0;

	if (u->password[0]) {
		if (u->user[0])
			auth[argc++] = span_of(u->user);
		auth[argc++] = span_of(u->password);
		r = resp_append(out, argc, auth);
		n++;
	}
	if (r == 0 && u->db > 0) {
		(void)snprintf(db, sizeof(db), "%d", u->db);
		word[1] = span_of(db);
		r = resp_append(out, 2, word);
		n++;
	}
	if (r == 0)
		r = resp_append(out, 1, &ping);
	*ret_replies = n;
	return r;
}

/* ---- SHA-1 (RFC 3174) ---- */

static uint32_t rol(uint32_t v, unsigned by)
{
	return (v << by) | (v >> (32 - by));
}

static void sha1_block(uint32_t *h, const uint8_t *p)
{
	static const uint32_t k[4] = {0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6};
	uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];

	for (unsigned i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 |
		       (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (unsigned i = 16; i < 80; i++)
		w[i] = rol(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
	for (unsigned i = 0; i < 80; i++) {
		uint32_t f = i < 20   ? (b & c) | (~b & d)
			     : i < 40 ? b ^ c ^ d
			     : i < 60 ? (b & c) | (b & d) | (c & d)
				      : b ^ c ^ d;
		uint32_t t = rol(a, 5) + f + e + k[i / 20] + w[i];

		e = d;
		d = c;
		c = rol(b, 30);
		b = a;
		a = t;
	}
	h[0] += a;
	h[1] += b;
	h[2] += c;
	h[3] += d;
	h[4] += e;
}

void redis_sha1_hex(const char *text, size_t n, char *out)
{
	uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
	uint8_t tail[128] = {0};
	size_t whole = n / 64 * 64, rest = n - whole, tail_n = rest < 56 ? 64 : 128;
	uint64_t bits = (uint64_t)n * 8;

	for (size_t i = 0; i < whole; i += 64)
		sha1_block(h, (const uint8_t *)text + i);
	memcpy(tail, text + whole, rest);
	tail[rest] = 0x80;
	for (unsigned i = 0; i < 8; i++)
		tail[tail_n - 1 - i] = (uint8_t)(bits >> (8 * i));
	for (size_t i = 0; i < tail_n; i += 64)
		sha1_block(h, tail + i);
	for (unsigned i = 0; i < 5; i++)
		(void)snprintf(out + 8 * i, 9, "%08x", h[i]);
}
