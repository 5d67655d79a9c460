/*
 * The decision about one WebSocket handshake: headers in, accept or refusal out (contract 1.1).
 * Pure: no sockets, no lws, no Redis; fuzzed and unit-tested as it is. Owns the nonce store and
 * the rate limits.
 *
 * Order: draining or Redis away → address rate → form → identity → HMAC → agent rate → lists →
 * room → nonce. Nothing an unauthenticated peer sends counts against an agent or its nonces.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ident.h"
#include "base/macros.h"
#include "base/netaddr.h"
#include "wire/json_scan.h" /* struct span */

#define HANDSHAKE_SUBPROTOCOL "viworks-agent-v1"

enum handshake_header {
	HANDSHAKE_AGENT_ID,
	HANDSHAKE_TIMESTAMP,
	HANDSHAKE_NONCE,
	HANDSHAKE_AUTH,
	HANDSHAKE_SSL_VERIFY,
	HANDSHAKE_SSL_CERT,
	HANDSHAKE_SSL_FINGERPRINT,
	HANDSHAKE_SSL_DN,
	HANDSHAKE_SSL_SAN,
	HANDSHAKE_FORWARDED_FOR,
	HANDSHAKE_PROTOCOL,
	HANDSHAKE_HEADERS
};
/* Lower case, without the colon. */
extern const char *const handshake_header_name[HANDSHAKE_HEADERS + 1]; /* ends with NULL */

struct x509_st;
struct handshake_request {
	const char *path;
	struct span header[HANDSHAKE_HEADERS]; /* p NULL: absent */
	bool duplicate[HANDSHAKE_HEADERS];     /* sent more than once, as far as can be known */
	const char *fault; /* what is wrong with the upgrade itself (static text), or NULL */
	struct netaddr peer;
	struct x509_st *cert; /* native TLS client certificate, chain verified; or NULL */
};

struct handshake_verdict {
	int status; /* 0: accepted */
	const char *code;
	char msg[160];
	int retry_after_s;		 /* 0: none */
	char agent_id[AGENT_ID_MAX + 1]; /* "" while it is malformed */
	char ip[NETADDR_TEXT_MAX];	 /* the client's, behind a trusted proxy too */
	char nonce[UUID_LEN + 1];
	int64_t nonce_until_ms;
	char fingerprint[65]; /* lower-case hex, "" without a certificate */
};

enum handshake_denied { HANDSHAKE_DECOMMISSIONED, HANDSHAKE_REVOKED };
/* What the world looks like now. */
struct handshake_world {
	int64_t now_ms;	   /* wall clock */
	int64_t uptime_ms; /* monotonic, for rates */
	bool draining, redis_away;
	size_t connections, max_conn;
	/* Is the agent connected here already (its new socket takes the old one's place)? */
	bool (*is_connected)(void *arg, const char *agent_id);
	/* key: agent id or fingerprint. */
	bool (*is_denied)(void *arg, enum handshake_denied list, const char *key);
	void *arg;
};

/* Text is copied; NULL or "" is unset. */
struct handshake_config {
	const char *secret, *trusted_proxies, *allowed_agent_ids, *dn_policy;
	int64_t max_skew_s, rate_per_ip, rate_per_agent;
	bool cert_required;    /* native TLS with a client CA */
	size_t nonce_capacity; /* 0: a million */
	size_t rate_keys;      /* addresses, and agents, remembered; 0: 65536 */
};

struct handshake;
int handshake_new(const struct handshake_config *cfg, struct handshake **ret) MUST_CHECK;
/* New settings; nonces and rates stay. On failure the old settings stay. */
int handshake_configure(struct handshake *h, const struct handshake_config *cfg) MUST_CHECK;
void handshake_free(struct handshake *h);
size_t handshake_nonces(const struct handshake *h);
const struct cidr_list *handshake_proxies(const struct handshake *h);

void handshake_judge(struct handshake *h, const struct handshake_request *q,
		     const struct handshake_world *w, struct handshake_verdict *ret);

/* Dotted numbers are compared as numbers; a pre-release ("1.2.0-rc1") is older than its release. */
bool handshake_version_is_older(const char *version, const char *min);
