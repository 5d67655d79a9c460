/*
 * Where to dial next, and when: the list of backends with what is known of their health, and the
 * table that says what an ended attempt means. Pure logic: no sockets, no timers, no clock.
 *
 * Each backend backs off by itself (decorrelated jitter, 0.5 s to 60 s); the first one in order
 * that is not backing off is next, so a healthy fallback is used at once and the primary is tried
 * again on the next dial after its pause. A backoff is forgotten after WELCOME and a quiet minute.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/backoff.h"
#include "base/macros.h"

#define REDIAL_BASE_MS	    500
#define REDIAL_CAP_MS	    60000
#define REDIAL_QUIET_MS	    60000 /* connected this long: the backoff is forgotten */
#define REDIAL_MAX_BACKENDS 16

struct redial_backend {
	char *url;  /* as configured */
	char *host; /* without brackets */
	char *path;
	bool tls;
	bool host_is_ip;
	uint16_t port;
	char authority[288]; /* for the Host header: host[:port] */
	/* health */
	struct backoff backoff;
	int64_t not_before_ms;	 /* boot clock */
	int64_t last_welcome_ms; /* 0: never */
	unsigned failures;	 /* in a row */
};

enum redial_cause {
	REDIAL_RESOLVE,	 /* name does not resolve */
	REDIAL_CONNECT,	 /* TCP refused, unreachable, reset */
	REDIAL_TIMEOUT,	 /* no WELCOME in time: black hole */
	REDIAL_TLS,	 /* handshake failed, either side refused */
	REDIAL_PIN,	 /* backend's key is not pinned */
	REDIAL_PROXY,	 /* CONNECT refused */
	REDIAL_HTTP,	 /* answer was not 101: code = status */
	REDIAL_CLOSE,	 /* WebSocket close: code */
	REDIAL_LOST,	 /* connection ended without a close */
	REDIAL_SILENT,	 /* half-open: nothing heard for the limit */
	REDIAL_PROTOCOL, /* the peer broke the protocol */
	REDIAL_STALE,	 /* epoch older than one seen before */
	REDIAL_LOCAL,	 /* we hung up to dial anew (reload, other journal) */
	REDIAL_CAUSES
};
const char *redial_cause_word(enum redial_cause c);

struct redial_end {
	enum redial_cause cause;
	int code;		/* HTTP status or close code; 0: none */
	int64_t retry_after_ms; /* -1: not given */
	char detail[192];	/* for the log */
};

/* Retry-After (RFC 9110, 10.2.3) in either form: seconds, or a date in any of HTTP's three, which
 * counts from the answer's own Date where that is given (NULL: not), else from now_wall_ms. An hour
 * at most; -1: neither form. */
int64_t redial_retry_after_ms(const char *text, const char *date, int64_t now_wall_ms);

struct redial {
	struct redial_backend *backend;
	size_t n, current;
};

/* csv of URLs. -EINVAL with why naming the URL and the remedy. ret is untouched on failure. */
int redial_init(const char *csv, struct redial *ret, char *why, size_t why_cap) MUST_CHECK;
void redial_fini(struct redial *l);
/* Takes over the health of backends with the same URL. */
void redial_adopt_health(struct redial *l, const struct redial *old);

/* Which backend to dial and how long to wait first (0: now). */
struct redial_next {
	size_t backend;
	int64_t wait_ms;
};
struct redial_next redial_next(const struct redial *l, int64_t now_ms);
/* The attempt or connection with l->current is over. connected_ms: how long WELCOME had been
 * there, -1 when it never came. */
void redial_ended(struct redial *l, const struct redial_end *end, int64_t connected_ms,
		  int64_t now_ms);
void redial_welcomed(struct redial *l, int64_t now_ms);

/* What the table says of an end, for the log and tests. */
enum redial_action { REDIAL_BACK_OFF, REDIAL_SOON, REDIAL_AT_MAX, REDIAL_RETRY_NOW, REDIAL_HOURLY };
enum redial_action redial_action_for(const struct redial_end *end);
