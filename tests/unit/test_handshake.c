/* Every row of the refusal table of contract 1.1, and what must not count against anybody. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "crypto/crypto.h"
#include "handshake.h"
#include "handshake_cert.h"
#include "unit.h"

#define SECRET "a shared secret"
#define AGENT  "gw-1"

struct fixture {
	struct handshake_config cfg;
	struct handshake *h;
	struct handshake_world w;
	struct handshake_request q;
	struct handshake_verdict v;
	char timestamp[CLOCK_RFC3339_LEN + 1], nonce[UUID_LEN + 1], mac[65];
	const char *agent;
	bool connected;
	const char *revoked, *decommissioned;
};

static bool fake_is_connected(void *arg, const char *agent_id)
{
	(void)agent_id;
	return ((struct fixture *)arg)->connected;
}

static bool fake_is_denied(void *arg, enum handshake_denied list, const char *key)
{
	const struct fixture *x = arg;
	const char *denied = list == HANDSHAKE_REVOKED ? x->revoked : x->decommissioned;

	return denied && strcmp(denied, key) == 0;
}

static void sign(struct fixture *x, int64_t at_ms, const char *path)
{
	uint8_t mac[SHA256_BYTES];

	ident_uuid4(x->nonce);
	clock_format_rfc3339(at_ms, x->timestamp);
	crypto_handshake_mac(SECRET, path, x->timestamp, x->nonce, x->agent, mac);
	crypto_hex(mac, sizeof(mac), x->mac);
	x->q.path = path;
	x->q.header[HANDSHAKE_AGENT_ID] = span_of(x->agent);
	x->q.header[HANDSHAKE_TIMESTAMP] = span_of(x->timestamp);
	x->q.header[HANDSHAKE_NONCE] = span_of(x->nonce);
	x->q.header[HANDSHAKE_AUTH] = span_of(x->mac);
}

static void reopen(struct fixture *x)
{
	handshake_free(x->h);
	x->h = NULL;
	assert_int_equal(handshake_new(&x->cfg, &x->h), 0);
}

static int setup(void **state)
{
	struct fixture *x = calloc(1, sizeof(*x));

	assert_non_null(x);
	x->cfg = (struct handshake_config){
	    .secret = SECRET, .max_skew_s = 300, .rate_per_ip = 1000, .rate_per_agent = 1000};
	x->w = (struct handshake_world){.now_ms = 1763637000000,
					.uptime_ms = 1000,
					.max_conn = 10,
					.is_connected = fake_is_connected,
					.is_denied = fake_is_denied,
					.arg = x};
	x->agent = AGENT;
	assert_int_equal(netaddr_parse_hostport("192.0.2.7:4711", &x->q.peer), 0);
	reopen(x);
	sign(x, x->w.now_ms, "/agent/ws");
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *x = *state;

	handshake_free(x->h);
	free(x);
	return 0;
}

static void expect(struct fixture *x, int status, const char *code)
{
	handshake_judge(x->h, &x->q, &x->w, &x->v);
	assert_string_equal(x->v.code, code);
	assert_int_equal(x->v.status, status);
}

static void test_judge_accepts(void **state)
{
	struct fixture *x = *state;

	expect(x, 0, "");
	assert_string_equal(x->v.agent_id, AGENT);
	assert_string_equal(x->v.ip, "192.0.2.7");
	sign(x, x->w.now_ms, "/ws/agent");
	for (char *p = x->mac; *p; p++) /* either hex case */
		*p = (char)(*p >= 'a' ? *p - 'a' + 'A' : *p);
	expect(x, 0, "");
}

static void test_judge_form(void **state)
{
	struct fixture *x = *state;

	x->q.header[HANDSHAKE_AGENT_ID] = SPAN(".bad");
	expect(x, 400, "bad_agent_id");
	x->q.header[HANDSHAKE_AGENT_ID] = (struct span){0};
	expect(x, 400, "bad_agent_id");
	sign(x, x->w.now_ms, "/agent/ws");
	x->q.header[HANDSHAKE_TIMESTAMP] = SPAN("yesterday");
	expect(x, 400, "bad_timestamp");
	sign(x, x->w.now_ms, "/agent/ws");
	x->q.header[HANDSHAKE_NONCE] = SPAN("1");
	expect(x, 400, "bad_nonce");
	sign(x, x->w.now_ms, "/agent/ws");
	x->q.header[HANDSHAKE_PROTOCOL] = SPAN("chat, viworks-agent-v2");
	expect(x, 400, "wrong_subprotocol");
	x->q.header[HANDSHAKE_PROTOCOL] = SPAN("chat , viworks-agent-v1");
	expect(x, 0, "");
	sign(x, x->w.now_ms, "/agent/ws");
	x->q.duplicate[HANDSHAKE_AUTH] = true;
	expect(x, 400, "duplicate_header");
}

static void test_judge_mac(void **state)
{
	struct fixture *x = *state;

	x->q.path = "/ws/agent";
	expect(x, 401, "bad_auth");
	x->q.path = "/agent/ws";
	x->mac[5] = x->mac[5] == 'a' ? 'b' : 'a';
	expect(x, 401, "bad_auth");
	x->q.header[HANDSHAKE_AUTH] = SPAN("00");
	expect(x, 401, "bad_auth");
	x->q.header[HANDSHAKE_AUTH] = (struct span){0};
	expect(x, 401, "missing_auth");
	x->cfg.secret = NULL;
	reopen(x);
	expect(x, 0, "");
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 401, "unexpected_auth");
}

static void test_judge_skew_both_ways(void **state)
{
	struct fixture *x = *state;

	for (int sign_of = -1; sign_of <= 1; sign_of += 2) {
		sign(x, x->w.now_ms + sign_of * 300000, "/agent/ws");
		expect(x, 0, "");
		sign(x, x->w.now_ms + sign_of * 300001, "/agent/ws");
		expect(x, 401, "skew");
	}
}

/* A nonce from the far edge of the window is still known when its timestamp has almost left it. */
static void test_judge_nonce_is_never_forgotten_early(void **state)
{
	struct fixture *x = *state;

	sign(x, x->w.now_ms + 300000, "/agent/ws");
	expect(x, 0, "");
	assert_int_equal(x->v.nonce_until_ms, x->w.now_ms + 600001);
	expect(x, 401, "replayed_nonce");
	x->w.now_ms += 600000;
	expect(x, 401, "replayed_nonce");
	x->w.now_ms += 1;
	expect(x, 401, "skew");
}

static void test_judge_nonce_store_full_refuses(void **state)
{
	struct fixture *x = *state;

	x->cfg.nonce_capacity = 3;
	reopen(x);
	for (int i = 0; i < 3; i++) {
		sign(x, x->w.now_ms, "/agent/ws");
		expect(x, 0, "");
	}
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 503, "nonce_store_full");
	assert_true(x->v.retry_after_s >= 1);
	x->w.now_ms += 301000;
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 0, "");
}

static void test_judge_rates(void **state)
{
	struct fixture *x = *state;

	x->cfg.rate_per_ip = 5;
	reopen(x);
	for (int i = 0; i < 5; i++) {
		sign(x, x->w.now_ms, "/agent/ws");
		expect(x, 0, "");
	}
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 429, "rate_limited_ip");
	assert_int_equal(x->v.retry_after_s, 12);
	x->cfg.rate_per_ip = 1000;
	x->cfg.rate_per_agent = 2;
	reopen(x);
	/* A stranger who knows the agent's name cannot use up its rate. */
	for (int i = 0; i < 20; i++) {
		x->q.header[HANDSHAKE_AUTH] = SPAN("00");
		expect(x, 401, "bad_auth");
	}
	for (int i = 0; i < 2; i++) {
		sign(x, x->w.now_ms, "/agent/ws");
		expect(x, 0, "");
	}
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 429, "rate_limited_agent");
	assert_int_equal(x->v.retry_after_s, 30);
}

static void test_judge_rate_of_ipv6_is_per_64(void **state)
{
	struct fixture *x = *state;

	x->cfg.rate_per_ip = 1;
	reopen(x);
	assert_int_equal(netaddr_parse_hostport("[2001:db8:1:2::1]:9", &x->q.peer), 0);
	expect(x, 0, "");
	assert_int_equal(netaddr_parse_hostport("[2001:db8:1:2:ffff::2]:9", &x->q.peer), 0);
	sign(x, x->w.now_ms, "/agent/ws");
	expect(x, 429, "rate_limited_ip");
	assert_int_equal(netaddr_parse_hostport("[2001:db8:1:3::1]:9", &x->q.peer), 0);
	expect(x, 0, "");
}

static void test_judge_lists_and_room(void **state)
{
	struct fixture *x = *state;

	x->cfg.allowed_agent_ids = "gw-0,gw-10,gw-2";
	reopen(x);
	expect(x, 403, "not_allowed");
	x->cfg.allowed_agent_ids = "gw-2,gw-1";
	reopen(x);
	x->decommissioned = AGENT;
	expect(x, 403, "decommissioned");
	x->decommissioned = NULL;
	x->w.connections = 10;
	expect(x, 503, "max_conn");
	x->connected = true; /* it takes its own place */
	expect(x, 0, "");
}

static void test_judge_draining_and_redis(void **state)
{
	struct fixture *x = *state;

	x->w.draining = true;
	expect(x, 503, "draining");
	assert_true(x->v.retry_after_s >= 1);
	assert_string_equal(x->v.agent_id, AGENT); /* for the log */
	x->w.draining = false;
	x->w.redis_away = true;
	expect(x, 503, "redis_away");
}

/* A crowd that is sent away together does not come back together. */
static void test_judge_spreads_the_return(void **state)
{
	struct fixture *x = *state;
	unsigned seen = 0;

	x->w.draining = true;
	for (int i = 0; i < 200; i++) {
		expect(x, 503, "draining");
		assert_in_range(x->v.retry_after_s, 1, 10);
		seen |= 1u << x->v.retry_after_s;
	}
	assert_true(__builtin_popcount(seen) >= 8);
}

/* ---- identity behind a proxy ---- */

static void behind_proxy(struct fixture *x)
{
	x->cfg.trusted_proxies = "10.0.0.0/8,192.0.2.7";
	reopen(x);
	x->q.header[HANDSHAKE_SSL_VERIFY] = SPAN("SUCCESS");
	x->q.header[HANDSHAKE_SSL_FINGERPRINT] =
	    SPAN("AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:"
		 "EF:01:23:45:67:89");
	x->q.header[HANDSHAKE_SSL_DN] = SPAN("CN=gw-1,O=Site 7");
}

static void test_judge_identity_from_strangers(void **state)
{
	struct fixture *x = *state;

	for (int i = HANDSHAKE_SSL_VERIFY; i <= HANDSHAKE_SSL_SAN; i++) {
		x->q.header[i] = SPAN("x");
		expect(x, 400, "untrusted_identity");
		x->q.header[i] = (struct span){0};
	}
	x->q.header[HANDSHAKE_FORWARDED_FOR] = SPAN("203.0.113.9");
	expect(x, 0, "");
	assert_string_equal(x->v.ip, "192.0.2.7"); /* not believed */
}

static void test_judge_identity_from_proxy(void **state)
{
	struct fixture *x = *state;

	behind_proxy(x);
	expect(x, 0, "");
	assert_int_equal(strlen(x->v.fingerprint), 64);
	sign(x, x->w.now_ms, "/agent/ws");
	x->revoked = "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
	expect(x, 403, "revoked");
	x->revoked = NULL;
	x->q.header[HANDSHAKE_SSL_DN] = SPAN("CN=gw-2");
	expect(x, 403, "certificate_name");
	x->q.header[HANDSHAKE_SSL_SAN] = SPAN("DNS:gw-1, URI:urn:viworks:agent:gw-3");
	expect(x, 403, "certificate_name");
	x->q.header[HANDSHAKE_SSL_SAN] = SPAN("DNS:gw-9, URI:urn:viworks:agent:gw-1");
	expect(x, 0, "");
	x->q.header[HANDSHAKE_SSL_VERIFY] = SPAN("FAILED:expired");
	expect(x, 401, "no_identity");
	x->q.header[HANDSHAKE_SSL_VERIFY] = (struct span){0};
	expect(x, 401, "no_identity");
}

static void test_judge_proxy_without_certificate_headers(void **state)
{
	struct fixture *x = *state;

	behind_proxy(x);
	x->q.header[HANDSHAKE_SSL_FINGERPRINT] = (struct span){0};
	expect(x, 401, "no_identity");
	x->q.header[HANDSHAKE_SSL_CERT] = SPAN("-----BEGIN%20CERTIFICATE-----%0Anonsense");
	expect(x, 401, "bad_identity");
	x->q.header[HANDSHAKE_SSL_CERT] = SPAN("%zz");
	expect(x, 401, "bad_identity");
	/* Proxies set and no secret: whoever comes around them is nobody. */
	x->cfg.secret = NULL;
	reopen(x);
	memset(x->q.header, 0, sizeof(x->q.header));
	sign(x, x->w.now_ms, "/agent/ws");
	x->q.header[HANDSHAKE_AUTH] = (struct span){0};
	assert_int_equal(netaddr_parse_hostport("198.51.100.1:1", &x->q.peer), 0);
	expect(x, 401, "no_identity");
}

static void test_judge_policy_on_subject(void **state)
{
	struct fixture *x = *state;

	behind_proxy(x);
	x->cfg.dn_policy = "*,O=Site 8";
	reopen(x);
	expect(x, 403, "certificate_policy");
	x->cfg.dn_policy = "*,O=Site 7";
	reopen(x);
	expect(x, 0, "");
}

static void test_judge_forwarded_for(void **state)
{
	static const struct {
		const char *xff, *ip;
	} cases[] = {
	    {"203.0.113.9", "203.0.113.9"},
	    {"1.2.3.4, 203.0.113.9, 10.1.2.3", "203.0.113.9"}, /* the rest is hearsay */
	    {"2001:db8::7", "2001:db8::7"},
	    {"10.0.0.1, 10.0.0.2", "192.0.2.7"},
	    {"nonsense", "192.0.2.7"},
	    {"203.0.113.9:50123", "203.0.113.9"}, /* some proxies tell the port */
	    {"[2001:db8::7]:50123", "2001:db8::7"},
	    {"[2001:db8::7]", "2001:db8::7"},
	    {"1.2.3.4,\t203.0.113.9\t", "203.0.113.9"},
	    {"203.0.113.9:70000", "192.0.2.7"},
	    {"203.0.113.9:", "192.0.2.7"},
	    {":80", "192.0.2.7"},
	    {":", "192.0.2.7"},
	    {"[", "192.0.2.7"},
	    {"[]", "192.0.2.7"},
	    {"]:1", "192.0.2.7"},
	    {"[203.0.113.9]", "192.0.2.7"},
	    {"2001:db8::7:x", "192.0.2.7"},
	    {"203.0.113.9, ", "192.0.2.7"},
	};
	struct fixture *x = *state;

	behind_proxy(x);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		sign(x, x->w.now_ms, "/agent/ws");
		x->q.header[HANDSHAKE_FORWARDED_FOR] = span_of(cases[i].xff);
		expect(x, 0, "");
		assert_string_equal(x->v.ip, cases[i].ip);
	}
}

static void test_identity_text_must_be_clear(void **state)
{
	static const struct {
		const char *dn;
		int r;
		bool names;
	} cases[] = {
	    {"CN=gw-1", 0, true},
	    {"O=x,CN=gw-1,C=DE", 0, true},
	    {"O=x\\,CN=gw-1", 0, false},     /* an escaped comma is inside a value */
	    {"CN=gw-2,CN=gw-1", -EINVAL, 0}, /* which one? */
	    {"O=x+CN=gw-1", -EINVAL, 0},
	    {"/O=x/CN=gw-1", 0, true},
	    {"/O=x/CN=gw-1/CN=other", -EINVAL, 0}, /* no escapes in this form */
	    {"CN=gw-1x", 0, false},
	    {"", 0, false},
	};
	static const char fingerprint[] = "0123456789abcdef0123456789abcdef01234567";
	struct handshake_identity id;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		memset(&id, 0, sizeof(id));
		assert_int_equal(identity_from_text(SPAN(fingerprint), span_of(cases[i].dn),
						    (struct span){0}, AGENT, &id),
				 cases[i].r);
		assert_int_equal(id.names_agent, cases[i].names);
	}
	assert_int_equal(
	    identity_from_text(SPAN("0123"), SPAN("CN=gw-1"), (struct span){0}, AGENT, &id),
	    -EINVAL);
}

static void test_version_is_older(void **state)
{
	(void)state;
	assert_true(handshake_version_is_older("1.9.9", "1.10"));
	assert_false(handshake_version_is_older("1.10", "1.9.9"));
	assert_false(handshake_version_is_older("2.0", "2.0.0"));
	assert_true(handshake_version_is_older("2.0.0-rc1", "2.0.0"));
	assert_false(handshake_version_is_older("2.0.0", "2.0.0-rc1"));
	assert_false(handshake_version_is_older("v3", "2.9"));
	assert_true(handshake_version_is_older("nonsense", "0.1"));
	assert_true(handshake_version_is_older("", "1"));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    CASE(test_judge_accepts),
	    CASE(test_judge_form),
	    CASE(test_judge_mac),
	    CASE(test_judge_skew_both_ways),
	    CASE(test_judge_nonce_is_never_forgotten_early),
	    CASE(test_judge_nonce_store_full_refuses),
	    CASE(test_judge_rates),
	    CASE(test_judge_rate_of_ipv6_is_per_64),
	    CASE(test_judge_lists_and_room),
	    CASE(test_judge_draining_and_redis),
	    CASE(test_judge_spreads_the_return),
	    CASE(test_judge_identity_from_strangers),
	    CASE(test_judge_identity_from_proxy),
	    CASE(test_judge_proxy_without_certificate_headers),
	    CASE(test_judge_policy_on_subject),
	    CASE(test_judge_forwarded_for),
	    cmocka_unit_test(test_identity_text_must_be_clear),
	    cmocka_unit_test(test_version_is_older),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
