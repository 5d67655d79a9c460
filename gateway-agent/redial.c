/* Backends, their health, and what an end means. See redial.h. */
#include "redial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/ident.h"

#define HOUR_MS		   3600000
#define SOON_MAX_MS	   5000
#define SOON_TIMES	   10 /* without a quiet minute in between */
#define RETRY_AFTER_CAP_MS 3600000

static const char *const cause_words[REDIAL_CAUSES] = {
    [REDIAL_RESOLVE] = "resolve", [REDIAL_CONNECT] = "connect",	  [REDIAL_TIMEOUT] = "timeout",
    [REDIAL_TLS] = "tls",	  [REDIAL_PIN] = "pin",		  [REDIAL_PROXY] = "proxy",
    [REDIAL_HTTP] = "http",	  [REDIAL_CLOSE] = "close",	  [REDIAL_LOST] = "lost",
    [REDIAL_SILENT] = "silent",	  [REDIAL_PROTOCOL] = "protocol", [REDIAL_STALE] = "stale_epoch",
    [REDIAL_LOCAL] = "local",
};

const char *redial_cause_word(enum redial_cause c)
{
	return c < REDIAL_CAUSES ? cause_words[c] : "unknown";
}

/* Contract 1.2 (close codes) and 1.1 (refusals). Not listed: back off. */
static const struct {
	enum redial_cause cause;
	int code;
	enum redial_action action;
	bool all_backends; /* it is about this agent, not about that backend */
} action_table[] = {
    {REDIAL_CLOSE, 1001, REDIAL_SOON, false},	   {REDIAL_CLOSE, 4000, REDIAL_AT_MAX, true},
    {REDIAL_CLOSE, 4001, REDIAL_RETRY_NOW, false}, {REDIAL_CLOSE, 4003, REDIAL_HOURLY, true},
    {REDIAL_HTTP, 403, REDIAL_AT_MAX, false},	   {REDIAL_PIN, 0, REDIAL_AT_MAX, false},
    {REDIAL_LOCAL, 0, REDIAL_RETRY_NOW, false},
};

static size_t action_row(const struct redial_end *end)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(action_table); i++) {
		if (action_table[i].cause == end->cause &&
		    (action_table[i].code == 0 || action_table[i].code == end->code))
			break;
	}
	return i;
}

enum redial_action redial_action_for(const struct redial_end *end)
{
	size_t i = action_row(end);

	return i < ARRAY_LEN(action_table) ? action_table[i].action : REDIAL_BACK_OFF;
}

/* ---- URLs ---- */

static int parse_port(const char *s, const char *end, uint16_t *ret)
{
	unsigned v = 0;

	if (s == end || end - s > 5)
		return -EINVAL;
	for (; s < end; s++) {
		if (*s < '0' || *s > '9')
			return -EINVAL;
		v = v * 10 + (unsigned)(*s - '0');
	}
	if (v == 0 || v > 65535)
		return -EINVAL;
	*ret = (uint16_t)v;
	return 0;
}

static bool host_is_plain(const char *s, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		char c = s[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
		      c == '.' || c == '-' || c == '_'))
			return false;
	}
	return n > 0 && n <= 253;
}

static bool path_is_plain(const char *s, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		if (s[i] <= ' ' || s[i] == '|' || s[i] == '#' || (unsigned char)s[i] >= 0x7f)
			return false;
	}
	return n < 512;
}

static bool is_loopback_name(const char *host, bool is_ip)
{
	struct in6_addr a6;
	struct in_addr a4;

	if (!is_ip)
		return strcmp(host, "localhost") == 0;
	if (inet_pton(AF_INET, host, &a4) == 1)
		return (ntohl(a4.s_addr) >> 24) == 127;
	return inet_pton(AF_INET6, host, &a6) == 1 && IN6_IS_ADDR_LOOPBACK(&a6);
}

/* host[:port] in [s, end). */
static int parse_authority(struct redial_backend *b, const char *s, const char *end)
{
	struct in6_addr a6;
	struct in_addr a4;
	const char *host = s, *host_end, *colon;
	bool v6 = s < end && *s == '[';

	b->port = b->tls ? 443 : 80;
	if (v6) {
		host = s + 1;
		host_end = memchr(host, ']', (size_t)(end - host));
		if (!host_end)
			return -EINVAL;
		colon = host_end + 1;
		if (colon != end && *colon != ':')
			return -EINVAL;
	} else {
		colon = memchr(s, ':', (size_t)(end - s));
		if (!colon)
			colon = end;
		host_end = colon;
		if (!host_is_plain(host, (size_t)(host_end - host)))
			return -EINVAL;
	}
	if (colon != end && parse_port(colon + 1, end, &b->port) < 0)
		return -EINVAL;
	b->host = strndup(host, (size_t)(host_end - host));
	if (!b->host)
		return -ENOMEM;
	if (v6 && inet_pton(AF_INET6, b->host, &a6) != 1)
		return -EINVAL;
	b->host_is_ip = v6 || inet_pton(AF_INET, b->host, &a4) == 1;
	if (b->port == (b->tls ? 443 : 80))
		(void)snprintf(b->authority, sizeof b->authority, v6 ? "[%s]" : "%s", b->host);
	else
		(void)snprintf(b->authority, sizeof b->authority, v6 ? "[%s]:%u" : "%s:%u", b->host,
			       (unsigned)b->port);
	return 0;
}

static void backend_fini(struct redial_backend *b)
{
	free(b->url);
	free(b->host);
	free(b->path);
}

static int backend_init(struct redial_backend *b, const char *s, size_t n, char *why, size_t cap)
{
	const char *rest, *end = s + n, *slash;
	int r;

	*b = (struct redial_backend){0};
	backoff_init(&b->backoff, REDIAL_BASE_MS, REDIAL_CAP_MS);
	b->url = strndup(s, n);
	if (!b->url)
		return -ENOMEM;
	if (n > 6 && strncasecmp(s, "wss://", 6) == 0) {
		b->tls = true;
		rest = s + 6;
	} else if (n > 5 && strncasecmp(s, "ws://", 5) == 0) {
		rest = s + 5;
	} else {
		(void)snprintf(why, cap, "%s: must begin with wss:// (or ws:// to loopback)",
			       b->url);
		return -EINVAL;
	}
	slash = memchr(rest, '/', (size_t)(end - rest));
	r = parse_authority(b, rest, slash ? slash : end);
	if (r == -ENOMEM)
		return r;
	if (r < 0) {
		(void)snprintf(why, cap,
			       "%s: host or port is not valid; write wss://host:port/agent/ws",
			       b->url);
		return r;
	}
	b->path =
	    slash && end - slash > 1 ? strndup(slash, (size_t)(end - slash)) : strdup("/agent/ws");
	if (!b->path)
		return -ENOMEM;
	if (!path_is_plain(b->path, strlen(b->path))) {
		(void)snprintf(why, cap, "%s: the path holds a character that is not allowed",
			       b->url);
		return -EINVAL;
	}
	if (!b->tls && !is_loopback_name(b->host, b->host_is_ip)) {
		(void)snprintf(why, cap, "%s: ws:// is allowed to loopback only; use wss://",
			       b->url);
		return -EINVAL;
	}
	return 0;
}

int redial_init(const char *csv, struct redial *ret, char *why, size_t why_cap)
{
	struct redial l = {0};
	const char *s = csv;
	int r = 0;

	(void)snprintf(why, why_cap, "no backend URL given");
	l.backend = calloc(REDIAL_MAX_BACKENDS, sizeof *l.backend);
	if (!l.backend)
		return -ENOMEM;
	while (r == 0 && *s) {
		size_t n;

		s += strspn(s, ", \t");
		n = strcspn(s, ", \t");
		if (n == 0)
			break;
		if (l.n == REDIAL_MAX_BACKENDS) {
			(void)snprintf(why, why_cap, "more than %d backends", REDIAL_MAX_BACKENDS);
			r = -EINVAL;
			break;
		}
		r = backend_init(&l.backend[l.n++], s, n, why, why_cap);
		s += n;
	}
	if (r == 0 && l.n == 0)
		r = -EINVAL;
	if (r < 0) {
		redial_fini(&l);
		return r;
	}
	*ret = l;
	return 0;
}

void redial_fini(struct redial *l)
{
	size_t i;

	for (i = 0; i < l->n; i++)
		backend_fini(&l->backend[i]);
	free(l->backend);
	*l = (struct redial){0};
}

void redial_adopt_health(struct redial *l, const struct redial *old)
{
	size_t i, k;

	for (i = 0; i < l->n; i++) {
		for (k = 0; k < old->n; k++) {
			if (strcmp(l->backend[i].url, old->backend[k].url) != 0)
				continue;
			l->backend[i].last_welcome_ms = old->backend[k].last_welcome_ms;
		}
	}
}

/* ---- health ---- */

struct redial_next redial_next(const struct redial *l, int64_t now_ms)
{
	struct redial_next next = {.backend = 0, .wait_ms = INT64_MAX};
	size_t i;

	for (i = 0; i < l->n; i++) {
		int64_t wait = l->backend[i].not_before_ms - now_ms;

		if (wait <= 0)
			return (struct redial_next){.backend = i};
		if (wait < next.wait_ms)
			next = (struct redial_next){.backend = i, .wait_ms = wait};
	}
	return next;
}

static int64_t pause_for(struct redial_backend *b, enum redial_action action)
{
	switch (action) {
	case REDIAL_SOON:
		/* A bridge that always drains is a fault, and each return costs a handshake. */
		return b->failures <= SOON_TIMES ? (int64_t)ident_random_below(SOON_MAX_MS + 1)
						 : backoff_next_ms(&b->backoff);
	case REDIAL_AT_MAX:
		return REDIAL_CAP_MS - (int64_t)ident_random_below(REDIAL_CAP_MS / 10);
	case REDIAL_HOURLY:
		return HOUR_MS;
	case REDIAL_RETRY_NOW:
		/* Thrice in a row it is no luck any more. */
		return b->failures <= 3 ? (int64_t)ident_random_below(REDIAL_BASE_MS)
					: backoff_next_ms(&b->backoff);
	case REDIAL_BACK_OFF:
		break;
	}
	return backoff_next_ms(&b->backoff);
}

/* RFC 9110, 5.6.7. */
static bool http_date(const char *text, int64_t *ret_wall_ms)
{
	static const char *const forms[] = {"%a, %d %b %Y %H:%M:%S GMT",
					    "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"};

	for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
		struct tm tm = {0};
		const char *end = strptime(text, forms[i], &tm);

		if (!end || *end)
			continue;
		*ret_wall_ms = (int64_t)timegm(&tm) * 1000;
		return true;
	}
	return false;
}

int64_t redial_retry_after_ms(const char *text, const char *date, int64_t now_wall_ms)
{
	size_t digits = strspn(text, "0123456789");
	int64_t ms, from = now_wall_ms;

	if (digits && !text[digits]) {
		ms = digits > 4 ? RETRY_AFTER_CAP_MS : strtol(text, NULL, 10) * 1000;
	} else {
		if (!http_date(text, &ms))
			return -1;
		if (date)
			(void)http_date(date, &from);
		ms = ms > from ? ms - from : 0;
	}
	return ms < RETRY_AFTER_CAP_MS ? ms : RETRY_AFTER_CAP_MS;
}

void redial_ended(struct redial *l, const struct redial_end *end, int64_t connected_ms,
		  int64_t now_ms)
{
	struct redial_backend *b = &l->backend[l->current];
	size_t row = action_row(end), i;
	int64_t pause;

	if (connected_ms >= REDIAL_QUIET_MS) {
		backoff_reset(&b->backoff);
		b->failures = 0;
	}
	b->failures++;
	pause = pause_for(b, redial_action_for(end));
	if (end->retry_after_ms >= 0) {
		int64_t asked = end->retry_after_ms;

		/* Spread: all were told the same number. */
		asked += (int64_t)ident_random_below((uint64_t)asked / 4 + REDIAL_BASE_MS);
		if (asked > pause)
			pause = asked;
	}
	b->not_before_ms = now_ms + pause;
	if (row == ARRAY_LEN(action_table) || !action_table[row].all_backends)
		return;
	for (i = 0; i < l->n; i++) {
		if (l->backend[i].not_before_ms < b->not_before_ms)
			l->backend[i].not_before_ms = b->not_before_ms;
	}
}

void redial_welcomed(struct redial *l, int64_t now_ms)
{
	l->backend[l->current].last_welcome_ms = now_ms;
}
