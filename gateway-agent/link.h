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

#define LINK_BASE_MS	  500
#define LINK_CAP_MS	  60000
#define LINK_QUIET_MS	  60000 /* connected this long: the backoff is forgotten */
#define LINK_MAX_BACKENDS 16

struct link_backend {
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

enum link_cause {
	LINK_RESOLVE,  /* name does not resolve */
	LINK_CONNECT,  /* TCP refused, unreachable, reset */
	LINK_TIMEOUT,  /* no WELCOME in time: black hole */
	LINK_TLS,      /* handshake failed, either side refused */
	LINK_PIN,      /* backend's key is not pinned */
	LINK_PROXY,    /* CONNECT refused */
	LINK_HTTP,     /* answer was not 101: code = status */
	LINK_CLOSE,    /* WebSocket close: code */
	LINK_LOST,     /* connection ended without a close */
	LINK_SILENT,   /* half-open: nothing heard for the limit */
	LINK_PROTOCOL, /* the peer broke the protocol */
	LINK_STALE,    /* epoch older than one seen before */
	LINK_LOCAL,    /* we hung up to dial anew (reload, other journal) */
	LINK_CAUSES
};
const char *link_cause_word(enum link_cause c);

struct link_end {
	enum link_cause cause;
	int code;		/* HTTP status or close code; 0: none */
	int64_t retry_after_ms; /* -1: not given */
	char detail[192];	/* for the log */
};

struct link {
	struct link_backend *backend;
	size_t n, current;
};

/* csv of URLs. -EINVAL with why naming the URL and the remedy. ret is untouched on failure. */
int link_init(const char *csv, struct link *ret, char *why, size_t why_cap) MUST_CHECK;
void link_fini(struct link *l);
/* Takes over the health of backends with the same URL. */
void link_adopt_health(struct link *l, const struct link *old);

/* Which backend to dial and how long to wait first (0: now). */
struct link_next {
	size_t backend;
	int64_t wait_ms;
};
struct link_next link_next(const struct link *l, int64_t now_ms);
/* The attempt or connection with l->current is over. connected_ms: how long WELCOME had been
 * there, -1 when it never came. */
void link_ended(struct link *l, const struct link_end *end, int64_t connected_ms, int64_t now_ms);
void link_welcomed(struct link *l, int64_t now_ms);

/* What the table says of an end, for the log and tests. */
enum link_action { LINK_BACK_OFF, LINK_SOON, LINK_AT_MAX, LINK_RETRY_NOW, LINK_HOURLY };
enum link_action link_action_for(const struct link_end *end);
