/* See buf.h. The allocation doubles, starting at 64 bytes, and never exceeds max + 1. */
#include "base/buf.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t max_bytes)
{
	*b = (struct buf){.max = max_bytes};
}

void buf_fini(struct buf *b)
{
	free(b->data);
	*b = (struct buf){.max = b->max};
}

void buf_wipe(struct buf *b)
{
	if (b->data)
		explicit_bzero(b->data, b->cap + 1);
	b->len = 0;
}

void buf_clear(struct buf *b)
{
	b->len = 0;
	if (b->data)
		b->data[0] = '\0';
}

static int buf_grow(struct buf *b, size_t n)
{
	if (n > b->max || b->len > b->max - n)
		return -ENOBUFS;
	size_t need = b->len + n;
	if (b->data && need <= b->cap)
		return 0;
	size_t cap = b->cap < 64 ? 64 : b->cap;
	while (cap < need)
		cap = cap > b->max / 2 ? b->max : cap * 2;
	if (cap > b->max)
		cap = b->max;
	if (cap == SIZE_MAX)
		return -ENOMEM;
	char *data = realloc(b->data, cap + 1);
	if (!data)
		return -ENOMEM;
	b->data = data;
	b->cap = cap;
	b->data[b->len] = '\0';
	return 0;
}

int buf_append(struct buf *b, const void *bytes, size_t n)
{
	int r = buf_grow(b, n);
	if (r < 0)
		return r;
	if (n)
		memcpy(b->data + b->len, bytes, n);
	b->len += n;
	b->data[b->len] = '\0';
	return 0;
}

int buf_append_str(struct buf *b, const char *s)
{
	return buf_append(b, s, strlen(s));
}

int buf_append_char(struct buf *b, char c)
{
	return buf_append(b, &c, 1);
}

int buf_appendf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int r = buf_vappendf(b, fmt, ap);
	va_end(ap);
	return r;
}

int buf_vappendf(struct buf *b, const char *fmt, va_list ap)
{
	va_list again;
	va_copy(again, ap);
	size_t room = b->data ? b->cap - b->len + 1 : 0;
	int n = vsnprintf(b->data ? b->data + b->len : NULL, room, fmt, ap);
	int r = n < 0 ? -EINVAL : buf_grow(b, (size_t)n);
	if (r == 0 && (size_t)n >= room)
		n = vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
	va_end(again);
	if (r < 0) {
		if (b->data)
			b->data[b->len] = '\0';
		return r;
	}
	b->len += (size_t)n;
	return 0;
}

int buf_reserve(struct buf *b, size_t n, char **ret_at)
{
	int r = buf_grow(b, n);
	if (r < 0)
		return r;
	*ret_at = b->data + b->len;
	return 0;
}

void buf_commit(struct buf *b, size_t n)
{
	assert(n <= b->cap - b->len);
	b->len += n;
	if (b->data)
		b->data[b->len] = '\0';
}

void buf_consume(struct buf *b, size_t n)
{
	assert(n <= b->len);
	if (!n)
		return;
	b->len -= n;
	memmove(b->data, b->data + n, b->len + 1);
}

void buf_fit(struct buf *b)
{
	char *data = b->data ? realloc(b->data, b->len + 1) : NULL;

	if (!data)
		return;
	b->data = data;
	b->cap = b->len;
}

void buf_trim(struct buf *b, size_t keep_bytes)
{
	if (b->len == 0 && b->cap > keep_bytes)
		buf_fini(b);
}
