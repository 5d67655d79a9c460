/* `gateway-agent check`. See check.h. Everything is tried for real: the same uplink and helper
 * client that `run` uses, one backend after the other. */
#include "check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent_private.h"
#include "base/clock.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "base/program.h"
#include "base/utf8.h"
#include "helper_client.h"
#include "loop/loop.h"
#include "redial.h"
#include "status.h"
#include "trust.h"
#include "uplink.h"
#include "wire/wire.h"

#define HELPER_MS      5000
#define HELPER_LOOK_MS 100
#define CHECK_MS       20000 /* one backend, or the helper */
#define DAY_MS	       86400000
#define WARN_DAYS      30

enum verdict { GOOD, WARNING, BAD };
static const char *const verdict_words[] = {"ok", "warn", "FAIL"};

struct check {
	const struct agent_settings *cfg;
	struct loop *loop;
	struct trust *trust;
	struct wire_decoder *decoder;
	struct uplink *uplink;
	struct helper_client *helper;
	int helper_looks;
	struct loop_timer *timer;
	const struct redial_backend *backend;
	bool json, dial, hello_ack, answered;
	unsigned bad;
	struct buf report; /* JSON array's members */
	struct jsonw w;
};

static void say(struct check *c, enum verdict v, const char *what, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
static void say(struct check *c, enum verdict v, const char *what, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	utf8_blank_controls(text);
	c->bad += v == BAD;
	if (!c->json) {
		printf("%-5s %-14s %s\n", verdict_words[v], what, text);
		return;
	}
	jsonw_obj(&c->w, NULL);
	jsonw_str(&c->w, "result", v == GOOD ? "ok" : v == WARNING ? "warn" : "fail");
	jsonw_str(&c->w, "what", what);
	jsonw_str(&c->w, "text", text);
	jsonw_obj_end(&c->w);
}

/* ---- files ---- */

static void check_days(struct check *c, const char *what, int64_t not_after_ms)
{
	int64_t days = (not_after_ms - clock_wall_ms()) / DAY_MS;

	if (!not_after_ms)
		return;
	if (not_after_ms <= clock_wall_ms())
		say(c, BAD, what, "the certificate has expired; issue a new one");
	else
		say(c, days < WARN_DAYS ? WARNING : GOOD, what, "%lld days left%s", (long long)days,
		    days < WARN_DAYS ? "; replace it soon" : "");
}

static void check_files(struct check *c)
{
	const struct cert_info *info;
	struct trust_config tc = agent_trust_config(c->cfg);
	char why[512];

	say(c, GOOD, "settings", "agent %s", c->cfg->id);
	if (trust_load(&tc, &c->trust, why, sizeof why) < 0) {
		say(c, BAD, "files", "%s", why);
		return;
	}
	info = trust_cert_info(c->trust);
	if (info)
		say(c, GOOD, "certificate", "%s", info->subject);
	if (info)
		check_days(c, "certificate", info->not_after_ms);
	check_days(c, "trust bundle", trust_bundle_not_after_ms(c->trust));
	if (access(c->cfg->state_dir, W_OK) < 0)
		say(c, WARNING, "state dir",
		    "%s: %s; create it for the agent's user, or `status` shows nothing",
		    c->cfg->state_dir, strerror(errno));
	else
		say(c, GOOD, "state dir", "%s is writable", c->cfg->state_dir);
}

/* ---- a backend ---- */

static const struct {
	enum redial_cause cause;
	int code; /* 0: any */
	const char *remedy;
} remedies[] = {
    {REDIAL_RESOLVE, 0, "check the name in VIW_AGENT_BACKEND_URL and the host's DNS"},
    {REDIAL_CONNECT, 0, "is the bridge running there, and does a firewall let this host out?"},
    {REDIAL_TIMEOUT, 0, "packets seem to be dropped: check firewall and routing"},
    {REDIAL_PIN, 0,
     "if the backend's key was changed on purpose, add this pin to VIW_AGENT_BACKEND_SPKI_PIN; "
     "else somebody is in between"},
    {REDIAL_PROXY, 0, "check https_proxy and no_proxy"},
    {REDIAL_TLS, 0,
     "check VIW_AGENT_TRUST_BUNDLE, the host name, and that the bridge accepts this client "
     "certificate"},
    {REDIAL_HTTP, 400,
     "the path or a header was not understood: is this an agent-bridge, and the path /agent/ws?"},
    {REDIAL_HTTP, 401,
     "VIW_AGENT_SHARED_SECRET differs from the bridge's, this host's clock is off, or a client "
     "certificate is missing"},
    {REDIAL_HTTP, 403,
     "this agent id is not allowed there, the certificate names another agent, or it is revoked"},
    {REDIAL_HTTP, 404, "the path is wrong: it is /agent/ws"},
    {REDIAL_HTTP, 429, "too many attempts; wait"},
    {REDIAL_HTTP, 503, "the bridge is full, draining or without Redis; wait, or look at its log"},
    {REDIAL_HTTP, 0, "is this an agent-bridge?"},
    {REDIAL_CLOSE, 4000,
     "an agent with this id is connected already (a second one would take its place)"},
    {REDIAL_CLOSE, 4003, "this agent is revoked or decommissioned"},
    {REDIAL_CLOSE, 4013, "the bridge has no Redis"},
    {REDIAL_LOST, 0,
     "the bridge hung up: over TLS most often because it does not accept the client certificate; "
     "look at its log"},
};

static const char *remedy_for(const struct redial_end *e)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(remedies); i++) {
		if (remedies[i].cause == e->cause &&
		    (remedies[i].code == 0 || remedies[i].code == e->code))
			return remedies[i].remedy;
	}
	return "look at the bridge's log";
}

static void on_open(void *arg)
{
	(void)arg;
}

static void on_text(void *arg, const char *text, size_t n)
{
	struct check *c = arg;
	struct wire_refusal_info info;
	struct wire_frame f;

	if (wire_decode(c->decoder, WIRE_FROM_BRIDGE, text, n, &f, &info) != WIRE_OK ||
	    f.type != WIRE_HELLO_ACK)
		return;
	c->hello_ack = true;
	say(c, GOOD, "backend", "%s accepts this agent (connection " SPAN_FMT ")", c->backend->url,
	    SPAN_ARG(f.hello_ack.conn_id));
	if (llabs(f.hello_ack.server_time.ms - clock_wall_ms()) > 60000)
		say(c, WARNING, "clock", "differs from the bridge's by %lld s; run a time service",
		    (long long)(f.hello_ack.server_time.ms - clock_wall_ms()) / 1000);
	uplink_hang_up(c->uplink, 1000, REDIAL_LOCAL, "checked");
}

static void on_end(void *arg, const struct redial_end *end)
{
	struct check *c = arg;
	const struct trust_peer *peer = uplink_peer(c->uplink);

	if (peer->seen) {
		say(c, GOOD, "backend key", "pin %s%s", peer->pin,
		    c->cfg->backend_spki_pin && !peer->pin_mismatch ? " (pinned)" : "");
		check_days(c, "backend cert", peer->not_after_ms);
	}
	if (!c->hello_ack)
		say(c, BAD, "backend", "%s: %s (%s): %s", c->backend->url, end->detail,
		    redial_cause_word(end->cause), remedy_for(end));
	loop_stop(c->loop);
}

static void on_check_timeout(void *arg)
{
	struct check *c = arg;

	uplink_hang_up(c->uplink, 1000, REDIAL_TIMEOUT, "connected, but no HELLO_ACK came");
}

/* Looks again and again: the first failure is enough, an answer may take a while. */
static void on_helper_timer(void *arg)
{
	struct check *c = arg;

	c->helper_looks++;
	if (helper_client_why_down(c->helper)[0] || c->helper_looks * HELPER_LOOK_MS >= HELPER_MS)
		loop_stop(c->loop);
}

static const struct uplink_ops uplink_ops = {
    .on_open = on_open, .on_text = on_text, .on_drained = on_open, .on_end = on_end};

static int check_backend(struct check *c, const struct redial_backend *b)
{
	int r;

	c->backend = b;
	c->hello_ack = false;
	if (!c->uplink) {
		r = uplink_open(c->loop,
				&(struct uplink_config){.agent_id = c->cfg->id,
							.shared_secret = c->cfg->shared_secret},
				&uplink_ops, c, &c->uplink);
		if (r == 0)
			r = uplink_set_trust(c->uplink, c->trust);
		if (r < 0)
			return r;
	}
	r = uplink_dial(c->uplink, b);
	if (r < 0)
		return r;
	loop_timer_start(c->timer, CHECK_MS, 0);
	loop_run(c->loop);
	loop_timer_stop(c->timer);
	return 0;
}

static int check_backends(struct check *c)
{
	char connected[512] = "";
	struct redial l;
	char why[512];
	size_t i;
	int r = redial_init(c->cfg->backend_url, &l, why, sizeof why);

	(void)status_is_connected(c->cfg, connected, sizeof connected);
	for (i = 0; r == 0 && i < l.n; i++) {
		/* A second connection would take the running agent's place for a minute (4000). */
		if (connected[0] && !c->dial)
			say(c, GOOD, "backend", "%s: not tried, %s", l.backend[i].url,
			    strcmp(connected, l.backend[i].url) == 0
				? "the running agent is connected to it"
				: "the running agent is connected; `check --dial` tries it all the "
				  "same");
		else
			r = check_backend(c, &l.backend[i]);
	}
	if (c->uplink)
		uplink_close(TAKE(c->uplink));
	if (r == 0 || l.n)
		redial_fini(&l);
	return r;
}

/* ---- helper ---- */

static void on_helper_up(void *arg, struct span data)
{
	struct check *c = arg;
	struct json_member m;

	c->answered = true;
	if (json_find(data, "journal_id", &m))
		say(c, GOOD, "helper", "answers; journal " SPAN_FMT, SPAN_ARG(m.raw));
	else
		say(c, GOOD, "helper", "answers");
	loop_stop(c->loop);
}

static void on_helper_down(void *arg, const char *why)
{
	(void)arg, (void)why;
}

static const struct helper_client_ops helper_ops = {.on_up = on_helper_up,
						    .on_down = on_helper_down};

static int check_helper(struct check *c)
{
	struct loop_timer *look = NULL;
	int r;

	if (!c->cfg->helper_secret) {
		say(c, WARNING, "helper",
		    "VIW_AGENT_HELPER_SECRET is not set: ECHO only, and helper "
		    "is reported down");
		return 0;
	}
	r = helper_client_open(c->loop,
			       &(struct helper_client_config){.socket = c->cfg->helper_socket,
							      .secret = c->cfg->helper_secret,
							      .agent_id = c->cfg->id},
			       &helper_ops, c, &c->helper);
	if (r == 0)
		r = loop_timer_new(c->loop, on_helper_timer, c, &look);
	if (r < 0) {
		helper_client_close(TAKE(c->helper));
		return r;
	}
	loop_timer_start(look, HELPER_LOOK_MS, HELPER_LOOK_MS);
	loop_run(c->loop);
	loop_timer_close(look);
	if (!c->answered)
		say(c, BAD, "helper",
		    "%s: %s; is host-helper running, may this user open the socket (group "
		    "viworks), and is VIW_AGENT_HELPER_SECRET the helper's?",
		    c->cfg->helper_socket,
		    helper_client_why_down(c->helper)[0] ? helper_client_why_down(c->helper)
							 : "no answer");
	helper_client_close(TAKE(c->helper));
	return 0;
}

static int check_all(struct check *c)
{
	int r;

	r = loop_new(&c->loop);
	if (r == 0)
		r = wire_decoder_new(UPLINK_MAX_FRAME_BYTES, &c->decoder);
	if (r == 0)
		r = loop_timer_new(c->loop, on_check_timeout, c, &c->timer);
	if (r < 0)
		return r;
	check_files(c);
	if (c->trust)
		r = check_backends(c);
	if (r == 0)
		r = check_helper(c);
	loop_timer_close(c->timer);
	return r;
}

int check_run(struct agent_settings *cfg, bool json, bool dial)
{
	struct check c = {.cfg = cfg, .json = json, .dial = dial};
	int r;

	buf_init(&c.report, 65536);
	jsonw_init(&c.w, &c.report);
	jsonw_arr(&c.w, NULL);
	log_setup(cfg->log_json, LOG_LEVEL_ERROR); /* the report says it better */
	r = check_all(&c);
	if (c.loop)
		loop_free(c.loop);
	if (c.decoder)
		wire_decoder_free(c.decoder);
	trust_free(c.trust);
	jsonw_arr_end(&c.w);
	if (r == 0 && json && jsonw_finish(&c.w) == 0)
		printf("%s\n", c.report.data);
	buf_fini(&c.report);
	if (r < 0) {
		fprintf(stderr, "gateway-agent: check: %s\n", strerror(-r));
		return PROGRAM_SYSTEM;
	}
	return c.bad ? PROGRAM_UNAVAILABLE : PROGRAM_OK;
}
