/* Redis URLs. Faults name the part that is wrong and never show the password. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_internal.h"

#define PORT_DEFAULT 6379
#define DB_MAX	     16383

static int fault(char *msg, size_t cap, const char *text)
{
	(void)snprintf(msg, cap, "%s", text);
	return -EINVAL;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Percent-decodes; false when it does not fit or an escape is broken or NUL. */
static bool decode(const char *s, size_t n, char *out, size_t cap)
{
	size_t o = 0;

	for (size_t i = 0; i < n; i++) {
		char c = s[i];

		if (c == '%') {
			int hi = i + 2 < n ? hex_digit(s[i + 1]) : -1;

			if (hi < 0 || hex_digit(s[i + 2]) < 0)
				return false;
			c = (char)(hi * 16 + hex_digit(s[i + 2]));
			i += 2;
		}
		if (!c || o + 1 >= cap)
			return false;
		out[o++] = c;
	}
	out[o] = '\0';
	return true;
}

static bool number(const char *s, size_t n, long min, long max, long *ret)
{
	long v = 0;

	if (!n || n > 9)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (s[i] < '0' || s[i] > '9')
			return false;
		v = v * 10 + (s[i] - '0');
	}
	*ret = v;
	return v >= min && v <= max;
}

static int parse_user(const char *s, size_t n, struct redis_url *u, char *msg, size_t cap)
{
	const char *colon = memchr(s, ':', n);
	size_t user_n = colon ? (size_t)(colon - s) : n;

	if (!colon)
		return fault(msg, cap, "credentials must be user:password@ or :password@");
	if (!decode(s, user_n, u->user, sizeof(u->user)))
		return fault(msg, cap, "the user is too long or badly percent-encoded");
	if (!decode(colon + 1, n - user_n - 1, u->password, sizeof(u->password)))
		return fault(msg, cap, "the password is too long or badly percent-encoded");
	return 0;
}

static int parse_db(const char *s, struct redis_url *u, char *msg, size_t cap)
{
	long db;

	if (!number(s, strlen(s), 0, DB_MAX, &db))
		return fault(msg, cap, "the database must be a number, as in /0 or ?db=0");
	u->db = (int)db;
	return 0;
}

static int parse_unix(const char *s, struct redis_url *u, char *msg, size_t cap)
{
	const char *query = strchr(s, '?');
	size_t n = query ? (size_t)(query - s) : strlen(s);

	u->is_unix = true;
	if (*s != '/' || n < 2 || !decode(s, n, u->path, sizeof(u->path)))
		return fault(msg, cap, "unix:// needs an absolute path of at most 107 bytes");
	if (!query)
		return 0;
	if (strncmp(query, "?db=", 4))
		return fault(msg, cap, "only ?db=N may follow the path");
	return parse_db(query + 4, u, msg, cap);
}

static int parse_tcp(const char *s, struct redis_url *u, char *msg, size_t cap)
{
	const char *slash = strchr(s, '/');
	size_t n = slash ? (size_t)(slash - s) : strlen(s), host_n;
	const char *host = s, *colon;
	long port = PORT_DEFAULT;

	if (*s == '[') {
		const char *end = memchr(s, ']', n);

		if (!end)
			return fault(msg, cap, "an IPv6 host must be closed by ]");
		host = s + 1;
		host_n = (size_t)(end - host);
		colon = end + 1 < s + n ? end + 1 : NULL;
		if (colon && *colon != ':')
			return fault(msg, cap, "only :port may follow the host");
	} else {
		colon = memchr(s, ':', n);
		host_n = colon ? (size_t)(colon - s) : n;
	}
	if (!host_n || !decode(host, host_n, u->host, sizeof(u->host)))
		return fault(msg, cap, "the host is missing or too long");
	if (colon && !number(colon + 1, (size_t)(s + n - colon - 1), 1, 65535, &port))
		return fault(msg, cap, "the port must be a number from 1 to 65535");
	u->port = (uint16_t)port;
	return slash && slash[1] ? parse_db(slash + 1, u, msg, cap) : 0;
}

int redis_url_parse(const char *url, struct redis_url *ret, char *msg, size_t msg_cap)
{
	const char *rest, *at;
	bool is_unix;
	int r;

	memset(ret, 0, sizeof(*ret));
	if (!strncmp(url, "rediss://", 9))
		return fault(msg, msg_cap,
			     "rediss:// is not built in: use a unix socket, a private network or a "
			     "local TLS tunnel");
	is_unix = !strncmp(url, "unix://", 7);
	if (!is_unix && strncmp(url, "redis://", 8))
		return fault(msg, msg_cap, "must begin with redis:// or unix://");
	rest = url + (is_unix ? 7 : 8);
	at = strrchr(rest, '@');
	if (at && !memchr(rest, '/', (size_t)(at - rest))) {
		r = parse_user(rest, (size_t)(at - rest), ret, msg, msg_cap);
		if (r < 0)
			return r;
		rest = at + 1;
	}
	return is_unix ? parse_unix(rest, ret, msg, msg_cap) : parse_tcp(rest, ret, msg, msg_cap);
}

void redis_url_wipe(struct redis_url *u)
{
	explicit_bzero(u, sizeof(*u));
}

int redis_url_check(const char *url, char *msg, size_t msg_cap)
{
	struct redis_url u;
	int r = redis_url_parse(url, &u, msg, msg_cap);

	redis_url_wipe(&u);
	return r;
}
