/* Byte ranges of RFC 3629, section 4: what the second byte may be depends on the first. */
#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

size_t utf8_plain_prefix(const char *s, size_t n)
{
	size_t i = 0;

	while (i < n && s[i] >= 0x20 && s[i] < 0x7f && s[i] != '"' && s[i] != '\\')
		i++;
	return i;
}

size_t utf8_sequence(const char *text, size_t n)
{
	const uint8_t *s = (const uint8_t *)text;
	if (n == 0)
		return 0;
	if (s[0] < 0x80)
		return 1;
	size_t len;
	uint8_t low = 0x80, high = 0xbf;
	if (s[0] >= 0xc2 && s[0] <= 0xdf) {
		len = 2;
	} else if (s[0] >= 0xe0 && s[0] <= 0xef) {
		len = 3;
		if (s[0] == 0xe0)
			low = 0xa0; /* overlong */
		else if (s[0] == 0xed)
			high = 0x9f; /* surrogates */
	} else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
		len = 4;
		if (s[0] == 0xf0)
			low = 0x90; /* overlong */
		else if (s[0] == 0xf4)
			high = 0x8f; /* over U+10FFFF */
	} else {
		return 0;
	}
	if (n < len || s[1] < low || s[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return len;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
	size_t i = 0;
	while (i < n) {
		uint64_t eight;
		if (n - i >= sizeof eight) {
			memcpy(&eight, s + i, sizeof eight);
			if (!(eight & 0x8080808080808080u)) {
				i += sizeof eight;
				continue;
			}
		}
		size_t len = utf8_sequence(s + i, n - i);
		if (!len)
			break;
		i += len;
	}
	return i;
}

bool utf8_is_valid(const char *s, size_t n)
{
	return utf8_valid_prefix(s, n) == n;
}

bool utf8_is_control(const char *s, size_t n)
{
	unsigned char c = (unsigned char)s[0];

	return (n == 1 && (c < 0x20 || c == 0x7f)) ||
	       (n == 2 && c == 0xc2 && (unsigned char)s[1] < 0xa0);
}

void utf8_blank_controls(char *s)
{
	size_t left = strlen(s), n;

	for (; left > 0; s += n, left -= n) {
		n = utf8_sequence(s, left);
		if (n == 0 || utf8_is_control(s, n))
			memset(s, '?', n = n ? n : 1);
	}
}
