/* Strict UTF-8 (RFC 3629): no surrogates, no overlong forms, at most U+10FFFF. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

bool utf8_is_valid(const char *s, size_t n);
/* Length of the valid prefix. */
size_t utf8_valid_prefix(const char *s, size_t n);
/* Bytes of the sequence at s (1 to 4); 0 when it is invalid or cut by n. */
size_t utf8_sequence(const char *s, size_t n);
/* How many bytes from s on need no care in a JSON string: printable ASCII but " and \. */
size_t utf8_plain_prefix(const char *s, size_t n);
/* C0, DEL, or C1: what a terminal would obey. n: of this sequence. */
bool utf8_is_control(const char *s, size_t n);
/* Makes text of somebody else fit for a terminal: control characters and what is not UTF-8 become
 * '?'. In place. */
void utf8_blank_controls(char *s);
