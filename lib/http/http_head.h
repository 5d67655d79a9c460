/* A look at a request head before libwebsockets parses it. Pure. lws 4.1 keeps the first of
 * repeated headers and cannot tell that there were more. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Bytes up to and with the empty line; 0: it has not come yet. */
size_t http_head_length(const char *bytes, size_t n);
/* Bit i: names[i] (lower case, no colon) stands there more than once. names end with NULL, at
 * most 16. */
unsigned http_head_repeated(const char *head, size_t n, const char *const *names);
