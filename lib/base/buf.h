/* A growable byte buffer that is born with a cap. Embedded; owns its bytes. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct buf {
	char *data; /* always NUL-terminated after the first append, the NUL is not counted */
	size_t len; /* bytes in use */
	size_t cap; /* bytes allocated, without the NUL */
	size_t max; /* len never exceeds this */
};

/* max_bytes caps the content. Allocates nothing yet. */
void buf_init(struct buf *b, size_t max_bytes);
/* Wipes nothing; use buf_wipe first when it held a secret. Safe twice. */
void buf_fini(struct buf *b);
/* Overwrites the whole allocation and sets len to 0. */
void buf_wipe(struct buf *b);
void buf_clear(struct buf *b);

/* Appends; -ENOBUFS when the cap would be exceeded (nothing is appended), -ENOMEM. */
int buf_append(struct buf *b, const void *bytes, size_t n) MUST_CHECK;
int buf_append_str(struct buf *b, const char *s) MUST_CHECK;
int buf_append_char(struct buf *b, char c) MUST_CHECK;
int buf_appendf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3) MUST_CHECK;
int buf_vappendf(struct buf *b, const char *fmt, va_list ap) PRINTF_LIKE(2, 0) MUST_CHECK;

/* Makes room for n more bytes and gives where to write them; buf_commit says how many were. */
int buf_reserve(struct buf *b, size_t n, char **ret_at) MUST_CHECK;
void buf_commit(struct buf *b, size_t n);
/* Drops the first n bytes. */
void buf_consume(struct buf *b, size_t n);
/* Gives back what the content does not need. */
void buf_fit(struct buf *b);
/* Gives allocation back when it is larger than keep_bytes and empty. */
void buf_trim(struct buf *b, size_t keep_bytes);
