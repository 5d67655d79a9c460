/* Handshakes: headers, one a line ("<number> <value>", "!" before it: sent twice), after a first
 * byte of flags. Nothing is accepted without the right MAC where a secret is set, and nothing at
 * all where neither secret nor certificate proves who it is. Certificates, subjects and SANs of
 * proxies are read on the way. */
#include <string.h>

#include "base/clock.h"
#include "crypto/crypto.h"
#include "fuzz.h"
#include "handshake.h"
#include "handshake_cert.h"

#define NOW_MS INT64_C(1795172940000) /* 2026-11-20T11:09:00Z */
#define SECRET "fuzz"

static bool no(void *arg, const char *id)
{
	(void)arg;
	(void)id;
	return false;
}

static bool not_denied(void *arg, enum handshake_denied list, const char *key)
{
	(void)arg;
	(void)list;
	(void)key;
	return false;
}

static void parse(char *text, size_t n, struct handshake_request *q)
{
	char *end = text + n;

	for (char *line = text; line < end;) {
		char *stop = memchr(line, '\n', (size_t)(end - line));
		bool twice = *line == '!';
		int i = -1;

		if (!stop)
			stop = end;
		line += twice;
		if (line < stop && *line >= 'a' && *line < 'a' + HANDSHAKE_HEADERS)
			i = *line - 'a';
		if (i >= 0 && line + 1 <= stop) {
			q->header[i] = (struct span){line + 1, (size_t)(stop - line - 1)};
			q->duplicate[i] = twice;
		}
		line = stop + 1;
	}
}

/* The right MAC for what the request says: so that the fuzzer gets beyond it. */
static void sign(struct handshake_request *q, char *hex)
{
	char ts[64], nonce[64], id[128];
	uint8_t mac[SHA256_BYTES];

	if (span_copy(q->header[HANDSHAKE_TIMESTAMP], ts, sizeof ts) < 0 ||
	    span_copy(q->header[HANDSHAKE_NONCE], nonce, sizeof nonce) < 0 ||
	    span_copy(q->header[HANDSHAKE_AGENT_ID], id, sizeof id) < 0)
		return;
	crypto_handshake_mac(SECRET, q->path, ts, nonce, id, mac);
	crypto_hex(mac, sizeof mac, hex);
	q->header[HANDSHAKE_AUTH] = (struct span){hex, 64};
}

/* One judge for each set of settings, as in a running bridge: making one costs more than a verdict.
 * It is made anew once it remembers a nonce, so that an input always finds the same. */
static struct handshake *judge_of(unsigned flags, bool forget)
{
	static struct handshake *made[16];
	struct handshake_config cfg = {.max_skew_s = 300,
				       .rate_per_ip = 1000,
				       .rate_per_agent = 1000,
				       .nonce_capacity = 100,
				       .rate_keys = 16,
				       .secret = flags & 1 ? SECRET : NULL,
				       .trusted_proxies = flags & 2 ? "10.0.0.0/8" : NULL,
				       .dn_policy = flags & 8 ? "*CN=gw*" : NULL};

	if (forget) {
		handshake_free(made[flags & 15]);
		made[flags & 15] = NULL;
	}
	if (!made[flags & 15] && handshake_new(&cfg, &made[flags & 15]) < 0)
		abort();
	return made[flags & 15];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static int64_t uptime_ms;
	struct handshake_world w = {.now_ms = NOW_MS,
				    .uptime_ms = uptime_ms += 60000, /* rates are full again */
				    .max_conn = 10,
				    .is_connected = no,
				    .is_denied = not_denied};
	struct handshake_request q = {.path = "/agent/ws"};
	struct handshake_verdict v;
	struct handshake_identity who;
	struct handshake *h;
	char hex[65] = "", *text;
	bool secret, signs;

	if (n == 0)
		return 0;
	secret = data[0] & 1;
	signs = data[0] & 4;
	h = judge_of(data[0], false);
	if (netaddr_parse_hostport(data[0] & 16 ? "10.0.0.1:1" : "127.0.0.1:1", &q.peer) < 0)
		abort();
	text = malloc(n);
	if (!text)
		abort();
	memcpy(text, data + 1, n - 1);
	parse(text, n - 1, &q);
	if (signs)
		sign(&q, hex);
	handshake_judge(h, &q, &w, &v);
	if (v.status == 0) {
		FUZZ_CHECK(ident_is_agent_id(v.agent_id, strlen(v.agent_id)));
		FUZZ_CHECK(!secret || signs); /* nobody guesses a MAC */
		FUZZ_CHECK(v.nonce[0] && v.nonce_until_ms >= NOW_MS);
		handshake_judge(h, &q, &w, &v);
		FUZZ_CHECK(v.status != 0); /* the same nonce again */
		(void)judge_of(data[0], true);
	} else {
		FUZZ_CHECK(v.status >= 400 && v.status < 600 && v.code && v.msg[0]);
	}
	/* What a proxy forwards is read even where the judge would not come to it. */
	if (q.header[HANDSHAKE_SSL_CERT].p)
		(void)!identity_from_escaped_pem(q.header[HANDSHAKE_SSL_CERT], "gw-1", &who);
	(void)!identity_from_text(q.header[HANDSHAKE_SSL_FINGERPRINT], q.header[HANDSHAKE_SSL_DN],
				  q.header[HANDSHAKE_SSL_SAN], "gw-1", &who);
	if (q.header[HANDSHAKE_AGENT_ID].n < 60 && q.header[HANDSHAKE_SSL_DN].n < 60) {
		char a[64], b[64];

		if (span_copy(q.header[HANDSHAKE_AGENT_ID], a, sizeof a) == 0 &&
		    span_copy(q.header[HANDSHAKE_SSL_DN], b, sizeof b) == 0)
			FUZZ_CHECK(!(handshake_version_is_older(a, b) &&
				     handshake_version_is_older(b, a)));
	}
	free(text);
	return 0;
}
