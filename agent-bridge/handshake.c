#include "handshake.h"

#include <errno.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "allowlist.h"
#include "base/clock.h"
#include "crypto/crypto.h"
#include "crypto/nonces.h"
#include "handshake_cert.h"
#include "ratelimit.h"

#define NONCE_CAPACITY 1000000
#define RATE_KEYS      65536
#define RETRY_SPREAD_S 10 /* 503s come in storms: spread the return */

const char *const handshake_header_name[HANDSHAKE_HEADERS + 1] = {
    [HANDSHAKE_AGENT_ID] = "x-agent-id",
    [HANDSHAKE_TIMESTAMP] = "x-timestamp",
    [HANDSHAKE_NONCE] = "x-nonce",
    [HANDSHAKE_AUTH] = "x-agent-auth",
    [HANDSHAKE_SSL_VERIFY] = "x-ssl-client-verify",
    [HANDSHAKE_SSL_CERT] = "x-ssl-client-cert",
    [HANDSHAKE_SSL_FINGERPRINT] = "x-ssl-client-fingerprint",
    [HANDSHAKE_SSL_DN] = "x-ssl-client-dn",
    [HANDSHAKE_SSL_SAN] = "x-ssl-client-san",
    [HANDSHAKE_FORWARDED_FOR] = "x-forwarded-for",
    [HANDSHAKE_PROTOCOL] = "sec-websocket-protocol",
};

struct settings_now {
	char *secret, *dn_policy;
	struct cidr_list proxies;
	struct allowlist allowed;
	int64_t max_skew_s, rate_per_ip, rate_per_agent;
	bool cert_required;
};

struct handshake {
	struct settings_now now;
	struct nonces *nonces;
	struct ratelimit *by_ip, *by_agent;
};

/* One handshake while it is judged. */
struct judging {
	struct handshake *h;
	const struct handshake_request *q;
	const struct handshake_world *w;
	struct handshake_verdict *v;
	int64_t timestamp_ms;
	char timestamp[64];
	bool from_proxy;
	bool has_identity;
	struct handshake_identity identity;
};

/* ---- settings ---- */

static void settings_now_fini(struct settings_now *s)
{
	if (s->secret)
		crypto_wipe(s->secret, strlen(s->secret));
	free(s->secret);
	free(s->dn_policy);
	cidr_list_fini(&s->proxies);
	allowlist_fini(&s->allowed);
}

static int text_read(char **to, const char *from)
{
	if (!from || !*from)
		return 0;
	*to = strdup(from);
	return *to ? 0 : -ENOMEM;
}

int handshake_configure(struct handshake *h, const struct handshake_config *cfg)
{
	struct settings_now s = {
	    .max_skew_s = cfg->max_skew_s,
	    .rate_per_ip = cfg->rate_per_ip,
	    .rate_per_agent = cfg->rate_per_agent,
	    .cert_required = cfg->cert_required,
	};
	int r = text_read(&s.secret, cfg->secret);

	if (r == 0)
		r = text_read(&s.dn_policy, cfg->dn_policy);
	if (r == 0 && cfg->trusted_proxies)
		r = cidr_list_parse(cfg->trusted_proxies, &s.proxies);
	if (r == 0)
		r = allowlist_parse(cfg->allowed_agent_ids, &s.allowed);
	if (r < 0) {
		settings_now_fini(&s);
		return r;
	}
	settings_now_fini(&h->now);
	h->now = s;
	return 0;
}

int handshake_new(const struct handshake_config *cfg, struct handshake **ret)
{
	const size_t rate_keys = cfg->rate_keys ? cfg->rate_keys : RATE_KEYS;
	struct handshake *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	r = handshake_configure(h, cfg);
	if (r == 0)
		r = nonces_new(cfg->nonce_capacity ? cfg->nonce_capacity : NONCE_CAPACITY,
			       &h->nonces);
	if (r == 0)
		r = ratelimit_new(rate_keys, &h->by_ip);
	if (r == 0)
		r = ratelimit_new(rate_keys, &h->by_agent);
	if (r < 0) {
		handshake_free(h);
		return r;
	}
	*ret = h;
	return 0;
}

void handshake_free(struct handshake *h)
{
	if (!h)
		return;
	settings_now_fini(&h->now);
	if (h->nonces)
		nonces_free(h->nonces);
	ratelimit_free(h->by_ip);
	ratelimit_free(h->by_agent);
	free(h);
}

size_t handshake_nonces(const struct handshake *h)
{
	return nonces_count(h->nonces);
}

const struct cidr_list *handshake_proxies(const struct handshake *h)
{
	return &h->now.proxies;
}

/* ---- the steps; each returns true to go on ---- */

static bool PRINTF_LIKE(4, 5)
    refuse(struct judging *j, int status, const char *code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(j->v->msg, sizeof(j->v->msg), fmt, ap);
	va_end(ap);
	j->v->status = status;
	j->v->code = code;
	return false;
}

static bool refuse_for_now(struct judging *j, const char *code, const char *msg)
{
	j->v->retry_after_s = 1 + (int)ident_random_below(RETRY_SPREAD_S);
	return refuse(j, 503, code, "%s", msg);
}

/* An address as proxies write it: also with a port, IPv6 also in brackets. */
static bool forwarded_read(const char *item, size_t n, struct netaddr *ret)
{
	char text[NETADDR_TEXT_MAX + 8];
	const char *colon = memchr(item, ':', n);
	bool bracket = item[0] == '[', bare6, port;

	bare6 = colon && !bracket && memchr(colon + 1, ':', n - (size_t)(colon + 1 - item));
	port = bracket ? item[n - 1] != ']' : colon && !bare6;
	snprintf(text, sizeof(text), "%s%.*s%s%s", bare6 ? "[" : "", (int)n, item, bare6 ? "]" : "",
		 port ? "" : ":0");
	return colon != item && netaddr_parse_hostport(text, ret) == 0;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* The rightmost address of X-Forwarded-For that is no trusted proxy itself. */
static bool forwarded_client(const struct judging *j, struct netaddr *ret)
{
	struct span xff = j->q->header[HANDSHAKE_FORWARDED_FOR];
	size_t end = xff.n;

	while (xff.p && end > 0) {
		size_t start = end, n;

		while (start > 0 && xff.p[start - 1] != ',')
			start--;
		n = end - start;
		end = start ? start - 1 : 0;
		while (n && is_blank(xff.p[start])) {
			start++;
			n--;
		}
		while (n && is_blank(xff.p[start + n - 1]))
			n--;
		if (n == 0 || n >= NETADDR_TEXT_MAX || !forwarded_read(xff.p + start, n, ret))
			return false;
		if (!cidr_list_contains(&j->h->now.proxies, ret))
			return true;
	}
	return false;
}

static void find_client(struct judging *j)
{
	struct netaddr a;

	j->from_proxy = cidr_list_contains(&j->h->now.proxies, &j->q->peer);
	if (j->from_proxy && forwarded_client(j, &a))
		netaddr_format_ip(&a, j->v->ip);
	else
		netaddr_format_ip(&j->q->peer, j->v->ip);
}

static bool check_open(struct judging *j)
{
	if (j->w->draining)
		return refuse_for_now(j, "draining", "this bridge is about to stop");
	if (j->w->redis_away)
		return refuse_for_now(j, "redis_away", "the bridge has no Redis now");
	return true;
}

/* IPv6 hosts own a /64: one key for it. */
static bool check_ip_rate(struct judging *j)
{
	size_t n = strlen(j->v->ip);
	struct netaddr a;
	char text[NETADDR_TEXT_MAX + 8];
	const void *key = j->v->ip;

	if (strchr(j->v->ip, ':')) {
		snprintf(text, sizeof(text), "[%s]:0", j->v->ip);
		if (netaddr_parse_hostport(text, &a) == 0 && a.ss.ss_family == AF_INET6) {
			key = &((struct sockaddr_in6 *)&a.ss)->sin6_addr;
			n = 8;
		}
	}
	j->v->retry_after_s =
	    ratelimit_take(j->h->by_ip, key, n, j->h->now.rate_per_ip, j->w->uptime_ms);
	return j->v->retry_after_s == 0 ||
	       refuse(j, 429, "rate_limited_ip", "too many handshakes from this address");
}

static bool check_upgrade(struct judging *j)
{
	return !j->q->fault || refuse(j, 400, "bad_upgrade", "%s", j->q->fault);
}

static bool check_duplicates(struct judging *j)
{
	for (int i = 0; i < HANDSHAKE_HEADERS; i++)
		if (j->q->duplicate[i] && i != HANDSHAKE_FORWARDED_FOR && i != HANDSHAKE_PROTOCOL)
			return refuse(j, 400, "duplicate_header", "%s was sent more than once",
				      handshake_header_name[i]);
	return true;
}

static bool check_identity_headers(struct judging *j)
{
	if (j->from_proxy)
		return true;
	for (int i = HANDSHAKE_SSL_VERIFY; i <= HANDSHAKE_SSL_SAN; i++)
		if (j->q->header[i].p)
			return refuse(j, 400, "untrusted_identity",
				      "%s counts from a trusted proxy only",
				      handshake_header_name[i]);
	return true;
}

static bool check_subprotocol(struct judging *j)
{
	struct span s = j->q->header[HANDSHAKE_PROTOCOL];
	const char *p = s.p, *end;
	const size_t want = sizeof(HANDSHAKE_SUBPROTOCOL) - 1;

	if (!s.p)
		return true;
	end = s.p + s.n;
	while (p < end) {
		const char *comma = memchr(p, ',', (size_t)(end - p));
		const char *stop = comma ? comma : end;

		while (p < stop && (*p == ' ' || *p == '\t'))
			p++;
		while (stop > p && (stop[-1] == ' ' || stop[-1] == '\t'))
			stop--;
		if ((size_t)(stop - p) == want && memcmp(p, HANDSHAKE_SUBPROTOCOL, want) == 0)
			return true;
		p = comma ? comma + 1 : end;
	}
	return refuse(j, 400, "wrong_subprotocol", "offer " HANDSHAKE_SUBPROTOCOL ", or none");
}

static bool check_form(struct judging *j)
{
	struct span id = j->q->header[HANDSHAKE_AGENT_ID], ts = j->q->header[HANDSHAKE_TIMESTAMP],
		    nonce = j->q->header[HANDSHAKE_NONCE];

	if (!id.p || !ident_is_agent_id(id.p, id.n) ||
	    span_copy(id, j->v->agent_id, sizeof(j->v->agent_id)) < 0)
		return refuse(
		    j, 400, "bad_agent_id",
		    "X-Agent-Id is missing or does not fit [A-Za-z0-9][A-Za-z0-9._-]{0,63}");
	if (!ts.p || clock_parse_rfc3339(ts.p, ts.n, &j->timestamp_ms) < 0 ||
	    span_copy(ts, j->timestamp, sizeof(j->timestamp)) < 0)
		return refuse(j, 400, "bad_timestamp",
			      "X-Timestamp is missing or no RFC 3339 time");
	if (!nonce.p || !ident_is_uuid4(nonce.p, nonce.n) ||
	    span_copy(nonce, j->v->nonce, sizeof(j->v->nonce)) < 0)
		return refuse(j, 400, "bad_nonce", "X-Nonce is missing or no UUIDv4");
	/* The first moment the timestamp is refused. */
	j->v->nonce_until_ms = j->timestamp_ms + j->h->now.max_skew_s * 1000 + 1;
	return true;
}

static bool check_skew(struct judging *j)
{
	int64_t off = j->timestamp_ms - j->w->now_ms, most = j->h->now.max_skew_s * 1000;

	if (off > most || off < -most)
		return refuse(j, 401, "skew", "X-Timestamp is more than %lld s from this clock",
			      (long long)j->h->now.max_skew_s);
	return true;
}

static bool check_mac(struct judging *j)
{
	struct span auth = j->q->header[HANDSHAKE_AUTH];
	uint8_t want[SHA256_BYTES], got[SHA256_BYTES];
	bool fits;

	if (!j->h->now.secret)
		return !auth.p || refuse(j, 401, "unexpected_auth",
					 "X-Agent-Auth was sent, but this bridge has no secret");
	if (!auth.p)
		return refuse(j, 401, "missing_auth", "X-Agent-Auth is missing");
	crypto_handshake_mac(j->h->now.secret, j->q->path, j->timestamp, j->v->nonce,
			     j->v->agent_id, want);
	fits = auth.n == SHA256_HEX_LEN && crypto_unhex(auth.p, auth.n, got) == 0 &&
	       crypto_equal(want, got, sizeof(want));
	crypto_wipe(want, sizeof(want));
	return fits || refuse(j, 401, "bad_auth", "X-Agent-Auth is not the HMAC of this request");
}

static bool read_proxied_identity(struct judging *j)
{
	const struct span *h = j->q->header;
	int r;

	if (!h[HANDSHAKE_SSL_VERIFY].p || !span_eq(h[HANDSHAKE_SSL_VERIFY], "SUCCESS"))
		return refuse(j, 401, "no_identity",
			      "the proxy did not verify a client certificate");
	if (h[HANDSHAKE_SSL_CERT].p)
		r = identity_from_escaped_pem(h[HANDSHAKE_SSL_CERT], j->v->agent_id, &j->identity);
	else if (h[HANDSHAKE_SSL_FINGERPRINT].p)
		r = identity_from_text(h[HANDSHAKE_SSL_FINGERPRINT], h[HANDSHAKE_SSL_DN],
				       h[HANDSHAKE_SSL_SAN], j->v->agent_id, &j->identity);
	else
		return refuse(
		    j, 401, "no_identity",
		    "the proxy sent neither X-SSL-Client-Cert nor X-SSL-Client-Fingerprint");
	if (r < 0)
		return refuse(j, 401, "bad_identity",
			      "the proxy's certificate headers cannot be read");
	j->has_identity = true;
	return true;
}

static bool read_identity(struct judging *j)
{
	if (j->from_proxy)
		return read_proxied_identity(j);
	if (j->q->cert) {
		if (identity_from_x509(j->q->cert, j->v->agent_id, &j->identity) < 0)
			return refuse(j, 401, "bad_identity", "the certificate cannot be read");
		j->has_identity = true;
		return true;
	}
	if (j->h->now.cert_required || (!j->h->now.secret && j->h->now.proxies.n))
		return refuse(j, 401, "no_identity", "a client certificate is required");
	return true;
}

static bool check_identity(struct judging *j)
{
	if (!j->has_identity)
		return true;
	memcpy(j->v->fingerprint, j->identity.fingerprint, sizeof(j->v->fingerprint));
	if (!j->identity.names_agent)
		return refuse(j, 403, "certificate_name",
			      "the certificate does not name this agent");
	if (j->h->now.dn_policy && fnmatch(j->h->now.dn_policy, j->identity.subject, 0) != 0)
		return refuse(j, 403, "certificate_policy",
			      "the certificate's subject is not allowed");
	if (j->w->is_denied(j->w->arg, HANDSHAKE_REVOKED, j->v->fingerprint))
		return refuse(j, 403, "revoked", "the certificate is revoked");
	return true;
}

static bool check_agent_rate(struct judging *j)
{
	j->v->retry_after_s = ratelimit_take(j->h->by_agent, j->v->agent_id, strlen(j->v->agent_id),
					     j->h->now.rate_per_agent, j->w->uptime_ms);
	return j->v->retry_after_s == 0 ||
	       refuse(j, 429, "rate_limited_agent", "too many handshakes of this agent");
}

static bool check_lists(struct judging *j)
{
	if (!allowlist_has(&j->h->now.allowed, j->v->agent_id))
		return refuse(j, 403, "not_allowed", "this agent is not on the allowlist");
	if (j->w->is_denied(j->w->arg, HANDSHAKE_DECOMMISSIONED, j->v->agent_id))
		return refuse(j, 403, "decommissioned", "this agent was decommissioned");
	return true;
}

static bool check_room(struct judging *j)
{
	if (j->w->connections < j->w->max_conn || j->w->is_connected(j->w->arg, j->v->agent_id))
		return true;
	return refuse_for_now(j, "max_conn", "this bridge has all the connections it may have");
}

static bool check_nonce(struct judging *j)
{
	int r = nonces_add(j->h->nonces, j->v->agent_id, j->v->nonce, strlen(j->v->nonce),
			   j->v->nonce_until_ms, j->w->now_ms);

	if (r == -EEXIST)
		return refuse(j, 401, "replayed_nonce", "X-Nonce was used before");
	if (r < 0)
		return refuse_for_now(j, "nonce_store_full", "too many nonces are remembered now");
	return true;
}

void handshake_judge(struct handshake *h, const struct handshake_request *q,
		     const struct handshake_world *w, struct handshake_verdict *ret)
{
	static bool (*const steps[])(struct judging *) = {
	    check_open,
	    check_ip_rate,
	    check_upgrade,
	    check_duplicates,
	    check_identity_headers,
	    check_subprotocol,
	    check_form,
	    check_skew,
	    check_mac,
	    read_identity,
	    check_identity,
	    check_agent_rate,
	    check_lists,
	    check_room,
	    check_nonce,
	};
	struct judging j = {.h = h, .q = q, .w = w, .v = ret};
	struct span id = q->header[HANDSHAKE_AGENT_ID];

	memset(ret, 0, sizeof(*ret));
	ret->code = "";
	find_client(&j);
	/* For the log of an early refusal. */
	if (ident_is_agent_id(id.p ? id.p : "", id.n) &&
	    span_copy(id, ret->agent_id, sizeof(ret->agent_id)) < 0)
		ret->agent_id[0] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(steps); i++)
		if (!steps[i](&j))
			return;
}

/* ---- versions ---- */

static long version_part(const char **p)
{
	long n = 0;

	if (**p == 'v' || **p == '.')
		(*p)++;
	while (**p >= '0' && **p <= '9' && n < 100000000)
		n = n * 10 + (*(*p)++ - '0');
	while (**p >= '0' && **p <= '9')
		(*p)++;
	return n;
}

bool handshake_version_is_older(const char *version, const char *min)
{
	for (;;) {
		long a = version_part(&version), b = version_part(&min);

		if (a != b)
			return a < b;
		if (*version != '.' && *min != '.')
			return *version == '-' && *min != '-';
	}
}
