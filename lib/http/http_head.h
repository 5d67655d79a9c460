/* A look at a request head before libwebsockets parses it. Pure. lws 4.1 keeps the first of
 * repeated headers and cannot tell that there were more, and hangs up on what it cannot read
 * without an answer. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define HTTP_HEAD_MAX 8192

/* Why this head, of which the first n bytes are here, is refused; NULL: nothing is wrong so far.
 * *ret_status: 400, or 431 when it is longer than HTTP_HEAD_MAX. */
const char *http_head_fault(const char *bytes, size_t n, int *ret_status);
/* Bytes up to and with the empty line; 0: it has not come yet. */
size_t http_head_length(const char *bytes, size_t n);
/* Bit i: names[i] (lower case, no colon) stands there more than once. names end with NULL, at
 * most 16. */
unsigned http_head_repeated(const char *head, size_t n, const char *const *names);
/* The path stands there as one of these (ended by NULL), byte for byte: lws decodes it and takes
 * dots and double slashes out of it. A query may follow. */
bool http_head_names(const char *head, size_t n, const char *const *paths);
