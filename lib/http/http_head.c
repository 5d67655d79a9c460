#include "http/http_head.h"

#include <string.h>
#include <strings.h>

size_t http_head_length(const char *bytes, size_t n)
{
	for (const char *p = bytes; p < bytes + n; p++) {
		size_t left;

		p = memchr(p, '\n', (size_t)(bytes + n - p));
		if (!p)
			return 0;
		left = (size_t)(bytes + n - p);
		/* lws takes bare line feeds too. */
		if (left >= 2 && p[1] == '\n')
			return (size_t)(p - bytes) + 2;
		if (left >= 3 && p[1] == '\r' && p[2] == '\n')
			return (size_t)(p - bytes) + 3;
	}
	return 0;
}

unsigned http_head_repeated(const char *head, size_t n, const char *const *names)
{
	unsigned seen = 0, repeated = 0;
	const char *end = head + n;

	for (const char *line = head; line < end;) {
		const char *next = memchr(line, '\n', (size_t)(end - line));
		const char *stop = next ? next : end;
		const char *colon = memchr(line, ':', (size_t)(stop - line));

		for (unsigned i = 0; colon && names[i]; i++) {
			if (strlen(names[i]) != (size_t)(colon - line) ||
			    strncasecmp(line, names[i], (size_t)(colon - line)) != 0)
				continue;
			repeated |= seen & 1u << i;
			seen |= 1u << i;
		}
		line = next ? next + 1 : end;
	}
	return repeated;
}
