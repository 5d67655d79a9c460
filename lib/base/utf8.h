#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Strict UTF-8 (RFC 3629): no surrogates, no overlong forms, at most U+10FFFF. */
bool utf8_is_valid(const char *s, size_t n);
/* Length of the valid prefix. */
size_t utf8_valid_prefix(const char *s, size_t n);
