/* See ident.h. */
#include "base/ident.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static bool is_alnum(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool is_word(const char *s, size_t n, size_t max, const char *punctuation)
{
	if (n == 0 || n > max || !is_alnum(s[0]))
		return false;
	for (size_t i = 1; i < n; i++)
		if (!is_alnum(s[i]) && (s[i] == '\0' || !strchr(punctuation, s[i])))
			return false;
	return true;
}

bool ident_is_agent_id(const char *s, size_t n)
{
	return is_word(s, n, AGENT_ID_MAX, "._-");
}

bool ident_is_correlation_id(const char *s, size_t n)
{
	return is_word(s, n, CORRELATION_ID_MAX, "._:-");
}

static bool is_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

bool ident_is_uuid4(const char *s, size_t n)
{
	if (n != UUID_LEN)
		return false;
	for (size_t i = 0; i < n; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? s[i] != '-' : !is_hex(s[i]))
			return false;
	}
	return s[14] == '4' && strchr("89abAB", s[19]) != NULL;
}

static void random_bytes(void *out, size_t n)
{
	char *p = out;
	while (n) {
		ssize_t got = getrandom(p, n, 0);
		if (got < 0) {
			if (errno == EINTR)
				continue;
			abort();
		}
		p += got;
		n -= (size_t)got;
	}
}

void ident_uuid4(char *out)
{
	static const char digit[] = "0123456789abcdef";
	unsigned char b[16];
	random_bytes(b, sizeof b);
	b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
	b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
	for (size_t i = 0; i < sizeof b; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digit[b[i] >> 4];
		*out++ = digit[b[i] & 15];
	}
	*out = '\0';
}

uint64_t ident_random_u64(void)
{
	uint64_t v;
	random_bytes(&v, sizeof v);
	return v;
}

uint64_t ident_random_below(uint64_t bound)
{
	if (bound < 2)
		return 0;
	uint64_t limit = UINT64_MAX - UINT64_MAX % bound; /* drop the uneven tail */
	for (;;) {
		uint64_t v = ident_random_u64();
		if (v < limit)
			return v % bound;
	}
}
