/* Decimal numbers for the lines that are written so often that snprintf is felt. */
#pragma once

#include <stdint.h>
#include <string.h>

#define DECIMAL_MAX 20 /* digits of UINT64_MAX */

/* Writes v, at most DECIMAL_MAX bytes and no NUL, and returns what is behind it. */
static inline char *decimal_put(char *at, uint64_t v)
{
	char digits[DECIMAL_MAX];
	size_t d = sizeof(digits);

	do
		digits[--d] = (char)('0' + v % 10);
	while (v /= 10);
	memcpy(at, digits + d, sizeof(digits) - d);
	return at + sizeof(digits) - d;
}
