#include "http/http_head.h"

#include <string.h>
#include <strings.h>

/* lws has about 90 places for headers it knows and parts of the query together. */
#define HEADERS_MAX	64
#define QUERY_PARTS_MAX 16

enum place { METHOD, TARGET, ESCAPE_1, ESCAPE_2, VERSION, NAME_FIRST, NAME, VALUE, END };

/* A head read byte by byte. */
struct reading {
	enum place place;
	size_t in_place; /* bytes read there */
	int headers, parts, escape;
	bool connect, cr;
};

static bool is_token(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_value(char c)
{
	return ((unsigned char)c >= ' ' && c != 0x7f) || c == '\t';
}

static int hex_value(char c)
{
	static const char digits[] = "0123456789abcdef";
	const char *at = c >= '0' ? strchr(digits, c < 'A' ? c : c | 0x20) : NULL;

	return at ? (int)(at - digits) : -1;
}

static void go(struct reading *r, enum place to)
{
	r->place = to;
	r->in_place = 0;
}

static const char *method_byte(struct reading *r, char c)
{
	static const char connect[] = "CONNECT ";

	r->connect = (r->in_place == 0 || r->connect) && r->in_place < sizeof(connect) - 1 &&
		     c == connect[r->in_place];
	if (c == ' ' && r->in_place) {
		go(r, TARGET);
		return r->connect ? "nothing is connected here" : NULL;
	}
	r->in_place++;
	return c >= 'A' && c <= 'Z' && r->in_place <= 16 ? NULL : "this is no HTTP request";
}

static const char *target_byte(struct reading *r, char c)
{
	if (r->in_place++ == 0 && c != '/')
		return "the request names no path";
	if (c == ' ') {
		go(r, VERSION);
		return NULL;
	}
	if ((unsigned char)c < ' ' || c == 0x7f)
		return "the path has a control byte, or no version behind it";
	if (c == '%')
		r->place = ESCAPE_1;
	r->parts += c == '&' || c == ';';
	return r->parts < QUERY_PARTS_MAX ? NULL : "the query has more than 16 parts";
}

static const char *escape_byte(struct reading *r, char c)
{
	int digit = hex_value(c);

	if (digit < 0)
		return "the path has a % without two hexadecimal digits";
	if (r->place == ESCAPE_2 && r->escape + digit == 0)
		return "the path has a NUL";
	r->escape = digit;
	r->place = r->place == ESCAPE_1 ? ESCAPE_2 : TARGET;
	return NULL;
}

static const char *version_byte(struct reading *r, char c)
{
	static const char version[] = "HTTP/1.";
	size_t n = sizeof(version) - 1;

	if (c == '\n' && r->in_place == n + 1) {
		go(r, NAME_FIRST);
		return NULL;
	}
	if (r->in_place < n ? c == version[r->in_place]
			    : r->in_place == n && (c == '0' || c == '1')) {
		r->in_place++;
		return NULL;
	}
	return "the request is not of HTTP/1.0 or HTTP/1.1";
}

static const char *name_byte(struct reading *r, char c)
{
	if (r->place == NAME_FIRST && c == '\n') {
		go(r, END);
		return NULL;
	}
	if (r->place == NAME && c == ':') {
		go(r, VALUE);
		return ++r->headers <= HEADERS_MAX ? NULL : "there are more than 64 headers";
	}
	r->place = NAME;
	return is_token(c) ? NULL : "a header's name is none";
}

static const char *value_byte(struct reading *r, char c)
{
	if (c == '\n') {
		go(r, NAME_FIRST);
		return NULL;
	}
	return is_value(c) ? NULL : "a header has a control byte";
}

static const char *byte_fault(struct reading *r, char c)
{
	static const char *(*const readers[])(struct reading *, char) = {
	    [METHOD] = method_byte,   [TARGET] = target_byte,	[ESCAPE_1] = escape_byte,
	    [ESCAPE_2] = escape_byte, [VERSION] = version_byte, [NAME_FIRST] = name_byte,
	    [NAME] = name_byte,	      [VALUE] = value_byte,
	};
	bool may_end = r->place == VERSION || r->place == NAME_FIRST || r->place == VALUE;

	if (r->cr && c != '\n')
		return "a carriage return stands amid a line";
	r->cr = c == '\r' && may_end;
	return r->cr ? NULL : readers[r->place](r, c);
}

/* Most of a head: how many bytes from p on are more of the same name or value. */
static size_t run(enum place place, const char *p, const char *end)
{
	const char *from = p;

	if (place == VALUE)
		while (p < end && is_value(*p))
			p++;
	else if (place == NAME)
		while (p < end && is_token(*p))
			p++;
	return (size_t)(p - from);
}

const char *http_head_fault(const char *bytes, size_t n, int *ret_status)
{
	struct reading r = {.place = METHOD};
	const char *p = bytes, *end = bytes + (n < HTTP_HEAD_MAX ? n : HTTP_HEAD_MAX);

	*ret_status = 400;
	while (p < end && r.place != END) {
		const char *fault;

		if (!r.cr)
			p += run(r.place, p, end);
		fault = p < end ? byte_fault(&r, *p++) : NULL;
		if (fault)
			return fault;
	}
	if (r.place == END || n < HTTP_HEAD_MAX)
		return NULL;
	*ret_status = 431;
	return "the request head is longer than 8192 bytes";
}

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

bool http_head_names(const char *head, size_t n, const char *const *paths)
{
	const char *end = head + n, *path = memchr(head, ' ', n), *stop;

	if (!path)
		return false;
	for (stop = ++path; stop < end && (unsigned char)*stop > ' ' && *stop != '?';)
		stop++;
	for (size_t len = (size_t)(stop - path); *paths; paths++)
		if (strlen(*paths) == len && !memcmp(*paths, path, len))
			return true;
	return false;
}
