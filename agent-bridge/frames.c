#include "frames.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "base/utf8.h"
#include "bridge_metrics.h"
#include "handshake.h"
#include "ratelimit.h"
#include "transport.h"

#define HEARTBEAT_S   20
#define CMD_TIMEOUT_S 30

/* What only a writer removes again, from Redis or not at all: by agent, so that a new connection
 * brings no more. Our own sends a HELLO anew when its helper changes, an AUDIT in five minutes. */
#define KEPT_A_MINUTE	128
#define KEPT_UNIT_BYTES 4096
#define KEPT_AGENTS	16384

struct frames {
	struct frames_config cfg;
	struct wire_decoder *decoder;
	struct ratelimit *kept;	  /* by agent */
	int64_t boot_ms, wall_ms; /* when that was, by the other clock */
	struct metric *in[WIRE_TYPES], *out[WIRE_TYPES], *bytes_in, *bytes_out;
	char supported[256]; /* JSON array of the types an agent may send */
};

/* 0: taken; -ENOBUFS, -EAGAIN: hold it. */
typedef int (*frame_handler)(struct frames *f, struct session *s, const struct wire_frame *w,
			     struct span json);

/* ---- answers ---- */

static void send_error(struct frames *f, struct session *s, const char *code, const char *msg,
		       struct span correlation_id)
{
	struct wire_frame e = {.type = WIRE_ERROR};

	e.error.code = span_of(code);
	e.error.msg = span_of(msg);
	e.error.correlation_id = correlation_id;
	(void)!session_send(s, &f->cfg.limits, &e);
}

/* The one place where what a peer did wrong becomes an ERROR, a count and perhaps a close. */
static void violation(struct frames *f, struct session *s, const char *code, const char *msg,
		      struct span correlation_id, int64_t boot_ms)
{
	metric_add(metrics_get(f->cfg.metrics, M_frames_refused, code, NULL), 1);
	LOG_DEBUG(FIELDS(.event = "frame_refused", .agent_id = s->agent_id, .conn_id = s->conn_id,
			 .error = code),
		  "%s", msg);
	send_error(f, s, code, msg, correlation_id);
	if (session_violated(s, boot_ms)) {
		LOG_WARN(FIELDS(.event = "too_many_bad_frames", .agent_id = s->agent_id,
				.conn_id = s->conn_id, .ip = s->ip, .error = code),
			 "the tenth bad frame within a minute");
		session_close(s, SESSION_CLOSE_POLICY, "too_many_bad_frames");
	}
}

static void refuse_close(struct frames *f, struct session *s, int close_code, const char *code,
			 const char *msg)
{
	metric_add(metrics_get(f->cfg.metrics, M_frames_refused, code, NULL), 1);
	LOG_WARN(FIELDS(.event = "frame_refused", .agent_id = s->agent_id, .conn_id = s->conn_id,
			.ip = s->ip, .error = code),
		 "%s", msg);
	send_error(f, s, code, msg, (struct span){0});
	session_close(s, close_code, code);
}

/* ---- handlers ---- */

static void send_welcome(struct frames *f, struct session *s)
{
	struct wire_frame w = {.type = WIRE_WELCOME};
	char nonce[UUID_LEN + 1];

	ident_uuid4(nonce);
	w.welcome.session_id = span_of(s->conn_id);
	w.welcome.heartbeat_s = (struct wire_uint){HEARTBEAT_S, true};
	w.welcome.cmd_timeout_s = (struct wire_uint){CMD_TIMEOUT_S, true};
	w.welcome.max_in_flight =
	    (struct wire_uint){(uint64_t)f->cfg.settings->max_in_flight, true};
	w.welcome.now = (struct wire_time){clock_wall_ms(), true};
	w.welcome.server_nonce = span_of(nonce);
	(void)!session_send(s, &f->cfg.limits, &w);
}

static bool version_passes(struct frames *f, struct session *s, struct span version)
{
	const char *min = f->cfg.settings->min_agent_version;
	char text[65] = "";

	if (!min || !*min)
		return true;
	if (span_copy(version, text, sizeof(text)) == 0 && !handshake_version_is_older(text, min))
		return true;
	refuse_close(f, s, SESSION_CLOSE_POLICY, "agent_too_old",
		     "this agent's version is older than the bridge admits: upgrade it");
	return false;
}

static bool same_text(struct span a, const char *b)
{
	return a.p && b ? span_eq(a, b) : !a.p && !b;
}

static int on_hello(struct frames *f, struct session *s, const struct wire_frame *w,
		    struct span json)
{
	struct store_conn c = session_conn(s);
	bool again;
	int r;

	if (!version_passes(f, s, w->hello.version))
		return 0;
	r = store_hello(f->cfg.store, &c, json);
	if (r < 0)
		return r;
	again = s->dispatched && same_text(w->hello.journal_id, s->journal_id);
	if (session_set_text(&s->version, w->hello.version) < 0 ||
	    session_set_text(&s->site, w->hello.site) < 0 ||
	    session_set_text(&s->journal_id, w->hello.journal_id) < 0)
		return -EAGAIN;
	send_welcome(f, s);
	if (s->state == SESSION_GREETED)
		session_move(s, SESSION_READY);
	if (s->state == SESSION_READY && !again) {
		s->dispatched = true;
		dispatch_ready(f->cfg.dispatch, s->sid, s->journal_id);
	}
	return 0;
}

static int on_telemetry(struct frames *f, struct session *s, const struct wire_frame *w UNUSED,
			struct span json)
{
	struct store_conn c = session_conn(s);
	int r = store_telemetry(f->cfg.store, &c, json);

	if (r == 0)
		ring_add(&f->cfg.sessions->rings, &s->ring, json.p, json.n);
	return r;
}

static int on_result(struct frames *f, struct session *s, const struct wire_frame *w,
		     struct span json UNUSED)
{
	return dispatch_result(f->cfg.dispatch, s->sid, &w->result);
}

static int on_command_ack(struct frames *f, struct session *s, const struct wire_frame *w,
			  struct span json UNUSED)
{
	char id[CORRELATION_ID_MAX + 1];

	if (span_copy(w->command_ack.correlation_id, id, sizeof(id)) == 0)
		dispatch_accepted(f->cfg.dispatch, s->sid, id);
	return 0;
}

static int on_audit(struct frames *f, struct session *s, const struct wire_frame *w UNUSED,
		    struct span json)
{
	struct store_conn c = session_conn(s);

	return store_event(f->cfg.store, &c, "audit", NULL, json);
}

static int on_heartbeat(struct frames *f, struct session *s, const struct wire_frame *w,
			struct span json UNUSED)
{
	struct wire_frame h = {.type = WIRE_HEARTBEAT};
	char echo[CLOCK_RFC3339_LEN + 1];

	h.heartbeat.ts = (struct wire_time){clock_wall_ms(), true};
	if (w->heartbeat.ts.set) {
		clock_format_rfc3339(w->heartbeat.ts.ms, echo);
		h.heartbeat.echo = span_of(echo);
	}
	(void)!session_send(s, &f->cfg.limits, &h);
	return 0;
}

static int on_ping(struct frames *f, struct session *s, const struct wire_frame *w,
		   struct span json UNUSED)
{
	struct wire_frame p = {.type = WIRE_PONG};

	p.pong.ts = w->ping.ts;
	(void)!session_send(s, &f->cfg.limits, &p);
	return 0;
}

static int on_pong(struct frames *f UNUSED, struct session *s UNUSED,
		   const struct wire_frame *w UNUSED, struct span json UNUSED)
{
	return 0;
}

static const struct {
	frame_handler handle;
	bool after_hello; /* refused before HELLO */
} handlers[WIRE_TYPES] = {
    [WIRE_HELLO] = {on_hello, false},  [WIRE_TELEMETRY] = {on_telemetry, false},
    [WIRE_RESULT] = {on_result, true}, [WIRE_COMMAND_ACK] = {on_command_ack, true},
    [WIRE_AUDIT] = {on_audit, true},   [WIRE_HEARTBEAT] = {on_heartbeat, false},
    [WIRE_PING] = {on_ping, false},    [WIRE_PONG] = {on_pong, false},
};

/* AUDIT; HELLO too, of which a connection's first is free unless it is large: handshakes limit it.
 */
static int64_t kept_units(const struct session *s, enum wire_type t, size_t n)
{
	int64_t units = (int64_t)(n / KEPT_UNIT_BYTES);

	if (t == WIRE_AUDIT)
		return units + 1;
	return t == WIRE_HELLO ? units + (s->state == SESSION_READY) : 0;
}

/* ---- receiving ---- */

/* The agent_id a frame names; absent: none. */
static struct span named_agent(const struct wire_frame *w)
{
	switch ((int)w->type) {
	case WIRE_HELLO:
		return w->hello.agent_id;
	case WIRE_TELEMETRY:
		return w->telemetry.agent_id;
	case WIRE_RESULT:
		return w->result.agent_id;
	case WIRE_COMMAND_ACK:
		return w->command_ack.agent_id;
	case WIRE_AUDIT:
		return w->audit.agent_id;
	case WIRE_HEARTBEAT:
		return w->heartbeat.agent_id;
	default:
		return (struct span){0};
	}
}

static void refuse_undecoded(struct frames *f, struct session *s, const struct wire_refusal_info *i,
			     enum wire_refusal r, struct span json, int64_t boot_ms)
{
	if (r == WIRE_BAD_JSON && !utf8_is_valid(json.p, json.n)) {
		refuse_close(f, s, SESSION_CLOSE_UTF8, "bad_utf8", "the frame is not UTF-8");
		return;
	}
	violation(f, s, wire_refusal_code(r), i->msg, i->correlation_id, boot_ms);
}

static int take(struct frames *f, struct session *s, struct span json, int64_t boot_ms)
{
	struct wire_refusal_info info;
	struct wire_frame w;
	struct span agent;
	enum wire_refusal refusal;
	int64_t kept;
	int r;

	refusal = wire_decode(f->decoder, WIRE_FROM_AGENT, json.p, json.n, &w, &info);
	if (refusal != WIRE_OK) {
		refuse_undecoded(f, s, &info, refusal, json, boot_ms);
		return 0;
	}
	agent = named_agent(&w);
	if (agent.p && !span_eq(agent, s->agent_id)) {
		refuse_close(f, s, SESSION_CLOSE_POLICY, "wrong_agent_id",
			     "agent_id is not the connection's");
		return 0;
	}
	if (!handlers[w.type].handle) {
		violation(f, s, "wrong_direction", "an agent does not send this type",
			  (struct span){0}, boot_ms);
		return 0;
	}
	if (handlers[w.type].after_hello && s->state != SESSION_READY) {
		violation(f, s, "hello_first", "send HELLO and wait for WELCOME first",
			  (struct span){0}, boot_ms);
		return 0;
	}
	kept = kept_units(s, w.type, json.n);
	if (kept && !ratelimit_allows(f->kept, s->agent_id, strlen(s->agent_id), KEPT_A_MINUTE,
				      kept, boot_ms)) {
		violation(f, s, "too_many", "too many frames of this type: wait", (struct span){0},
			  boot_ms);
		return 0;
	}
	r = handlers[w.type].handle(f, s, &w, json);
	if (r == 0) {
		if (kept)
			(void)!ratelimit_take_many(f->kept, s->agent_id, strlen(s->agent_id),
						   KEPT_A_MINUTE, kept, boot_ms);
		metric_add_alone(f->in[w.type], 1);
		metric_add_alone(f->bytes_in, json.n);
	}
	return r;
}

void frames_receive(struct frames *f, struct session *s, const char *json, size_t n,
		    int64_t boot_ms)
{
	struct span frame = {json, n};

	if (!session_is_open(s))
		return;
	CPU_WARM(s, sizeof(*s));
	ring_warm(&s->ring);
	if (boot_ms != f->boot_ms) {
		f->boot_ms = boot_ms;
		f->wall_ms = clock_wall_ms();
	}
	s->seen_ms = f->wall_ms;
	if (s->state == SESSION_CLAIMING || s->held.first || take(f, s, frame, boot_ms) < 0)
		session_hold(s, &f->cfg.limits, json, n);
}

/* false: some of it cannot be taken now. */
static bool take_held(struct frames *f, struct session *s, int64_t boot_ms)
{
	while (s->held.first && session_is_open(s)) {
		struct session_held *h = s->held.first;

		if (s->state == SESSION_CLAIMING ||
		    take(f, s, (struct span){h->bytes, h->n}, boot_ms) < 0)
			return false;
		free(session_unhold(s));
	}
	return true;
}

void frames_release(struct frames *f, struct session *s, int64_t boot_ms)
{
	bool all;

	if (s->releasing)
		return; /* a frame that was taken brought the news that there is room */
	s->releasing = true;
	all = take_held(f, s, boot_ms);
	s->releasing = false;
	if (all && (s->pause & SESSION_PAUSE_HELD)) {
		s->pause &= (uint8_t)~SESSION_PAUSE_HELD;
		transport_pause(s);
	}
}

/* ---- sending ---- */

void frames_greet(struct frames *f, struct session *s, int64_t boot_ms, int64_t redis_ms)
{
	struct wire_frame a = {.type = WIRE_HELLO_ACK};

	session_move(s, SESSION_GREETED);
	a.hello_ack.agent_id = span_of(s->agent_id);
	a.hello_ack.conn_id = span_of(s->conn_id);
	a.hello_ack.epoch = (struct wire_uint){s->epoch, true};
	/* not ours: the agent reads expires_at by it, which is by the clock of Redis */
	a.hello_ack.server_time = (struct wire_time){redis_ms, true};
	a.hello_ack.supported = span_of(f->supported);
	a.hello_ack.heartbeat_s = (struct wire_uint){HEARTBEAT_S, true};
	a.hello_ack.max_frame_bytes =
	    (struct wire_uint){(uint64_t)f->cfg.settings->max_frame_bytes, true};
	if (session_send(s, &f->cfg.limits, &a) == 0)
		frames_release(f, s, boot_ms);
}

void frames_sent(struct frames *f, const struct session_frame *q)
{
	if (q->type == WIRE_COMMAND)
		CRASH_POINT("bridge.command_written");
	else if (q->type == WIRE_RESULT_ACK)
		CRASH_POINT("bridge.after_result_ack");
	metric_add(f->out[q->type], 1);
	metric_add(f->bytes_out, q->n);
}

int frames_send_command(struct frames *f, struct session *s, const struct dispatch_command *c)
{
	struct wire_frame w = {.type = WIRE_COMMAND};
	char nonce[UUID_LEN + 1];

	if (s->state != SESSION_READY)
		return -ENOENT;
	if (!session_has_room(s, &f->cfg.limits)) {
		s->starved = true;
		return -EAGAIN;
	}
	ident_uuid4(nonce);
	w.command.correlation_id = span_of(c->correlation_id);
	w.command.agent_id = span_of(c->agent_id);
	w.command.verb = span_of(c->verb);
	w.command.args = c->args;
	if (c->issued_at_ms > 0)
		w.command.issued_at = (struct wire_time){c->issued_at_ms, true};
	w.command.expires_at = (struct wire_time){c->expires_at_ms, true};
	w.command.ttl_remaining_ms =
	    (struct wire_uint){c->ttl_remaining_ms > 0 ? (uint64_t)c->ttl_remaining_ms : 0, true};
	w.command.nonce = span_of(nonce);
	w.command.issued_by = span_of(c->issued_by);
	w.command.signature = span_of(c->signature);
	return session_send(s, &f->cfg.limits, &w) == 0 ? 0 : -ENOENT;
}

int frames_send_cancel(struct frames *f, struct session *s, const char *correlation_id,
		       const char *reason)
{
	struct wire_frame w = {.type = WIRE_CANCEL};

	if (s->state != SESSION_READY)
		return -ENOENT;
	if (!session_has_room(s, &f->cfg.limits)) {
		s->starved = true;
		return -EAGAIN;
	}
	w.cancel.correlation_id = span_of(correlation_id);
	w.cancel.reason = span_of(reason);
	return session_send(s, &f->cfg.limits, &w) == 0 ? 0 : -ENOENT;
}

void frames_send_result_fate(struct frames *f, struct session *s, const char *correlation_id,
			     enum dispatch_result_fate fate)
{
	struct wire_frame w = {.type = WIRE_RESULT_ACK};

	if (!session_is_open(s))
		return;
	if (fate == DISPATCH_RESULT_NOT_YOURS) {
		violation(f, s, "not_yours", "this command was not sent to this agent",
			  span_of(correlation_id), clock_boot_ms());
		return;
	}
	if (fate == DISPATCH_RESULT_TOO_MANY) {
		violation(f, s, "unknown_command", "too many results of unknown commands: wait",
			  span_of(correlation_id), clock_boot_ms());
		return;
	}
	CRASH_POINT("bridge.before_result_ack");
	w.result_ack.correlation_id = span_of(correlation_id);
	(void)!session_send(s, &f->cfg.limits, &w);
}

/* ---- life ---- */

static void supported_write(struct frames *f)
{
	size_t n = 0;

	f->supported[n++] = '[';
	for (int t = 0; t < WIRE_TYPES; t++) {
		const char *word = wire_type_word((enum wire_type)t);
		size_t word_n = strlen(word);

		if (!handlers[t].handle || n + word_n + 4 > sizeof(f->supported))
			continue;
		if (n > 1)
			f->supported[n++] = ',';
		f->supported[n++] = '"';
		memcpy(f->supported + n, word, word_n);
		n += word_n;
		f->supported[n++] = '"';
	}
	f->supported[n++] = ']';
	f->supported[n] = '\0';
}

int frames_new(const struct frames_config *cfg, struct frames **ret)
{
	struct frames *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->cfg = *cfg;
	r = wire_decoder_new((size_t)cfg->settings->max_frame_bytes, &f->decoder);
	if (r == 0)
		r = ratelimit_new(KEPT_AGENTS, &f->kept);
	if (r < 0) {
		frames_free(f);
		return r;
	}
	for (int t = 0; t < WIRE_TYPES; t++) {
		const char *word = wire_type_word((enum wire_type)t);

		f->in[t] =
		    handlers[t].handle ? metrics_get(cfg->metrics, M_frames, word, "in") : NULL;
		f->out[t] = t < WIRE_HELPER_REQUEST && t >= WIRE_HEARTBEAT
				? metrics_get(cfg->metrics, M_frames, word, "out")
				: NULL;
	}
	f->bytes_in = metrics_get(cfg->metrics, M_frame_bytes, "in", NULL);
	f->bytes_out = metrics_get(cfg->metrics, M_frame_bytes, "out", NULL);
	supported_write(f);
	*ret = f;
	return 0;
}

void frames_free(struct frames *f)
{
	if (!f)
		return;
	wire_decoder_free(f->decoder);
	ratelimit_free(f->kept);
	free(f);
}
