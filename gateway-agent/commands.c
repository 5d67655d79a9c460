/* The agent's part of a command's life. See commands.h. Longer than most files here: every move of
 * a command's state is in it, to be read in one go. */
#include "commands.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "crypto/nonces.h"

#define RESEND_MS      15000
#define RESEND_CAP_MS  120000
#define POLL_MS	       250
#define POLL_CAP_MS    5000
#define CLOCK_SLACK_MS 1000
#define NONCE_KEEP_MS  600000
#define NONCES_MAX     16384
#define FRAME_MAX_SAFE 65536 /* before HELLO_ACK told more */

enum state { QUEUED, RUNNING, CHECKING, VOIDING, DONE, STATES };
static const char *const state_words[STATES] = {"queued", "running", "checking", "voiding", "done"};
/* Legal moves: [from] is a mask of to. */
static const unsigned legal[STATES] = {
    [QUEUED] = 1u << RUNNING | 1u << CHECKING | 1u << VOIDING | 1u << DONE,
    [RUNNING] = 1u << QUEUED | 1u << CHECKING | 1u << VOIDING | 1u << DONE,
    [CHECKING] = 1u << VOIDING | 1u << DONE,
    [VOIDING] = 1u << DONE,
    [DONE] = 0,
};

enum kind { KIND_UNKNOWN, KIND_ECHO, KIND_SHUTDOWN, KIND_READ_ONLY, KIND_EFFECTS };

struct command {
	struct command *next;
	char correlation_id[CORRELATION_ID_MAX + 1];
	char *verb; /* NULL: only a CANCEL was seen */
	char *args; /* JSON; may hold secrets: wiped */
	enum kind kind;
	enum state state;
	bool asked;	/* a request is at the helper */
	bool sent_once; /* the helper was asked to run it in this life */
	bool cancelled;
	enum wire_status cancel_status;
	int64_t deadline_ms; /* boot clock */
	int64_t retry_at_ms, pause_ms;
	const char *refusal; /* CHECKING: the code; static */
	char refusal_msg[200];
	struct buf result; /* DONE: the RESULT frame */
	int64_t resend_at_ms, resend_ms;
	commands_local_cb local_cb;
	void *local_arg;
};

struct commands {
	char *agent_id, *allowed_verbs;
	bool exec_enable, helper_configured;
	int64_t max_concurrency, cmd_timeout_ms;
	const struct commands_ops *ops;
	void *arg;
	struct nonces *nonces;
	struct command *first;
	unsigned count;
	bool session, draining, pumping, pump_again;
	size_t max_frame;
};

static void pump(struct commands *c);

static void move(struct commands *c, struct command *m, enum state to)
{
	assert(legal[m->state] & 1u << to);
	LOG_DEBUG(FIELDS(.event = "command_state", .agent_id = c->agent_id,
			 .correlation_id = m->correlation_id, .verb = m->verb),
		  "%s to %s", state_words[m->state], state_words[to]);
	m->state = to;
	m->asked = false;
	m->retry_at_ms = 0;
	m->pause_ms = 0;
}

static struct command *find(struct commands *c, struct span id)
{
	struct command *m;

	for (m = c->first; m; m = m->next) {
		if (span_eq(id, m->correlation_id))
			return m;
	}
	return NULL;
}

static void wipe_args(struct command *m)
{
	if (m->args)
		crypto_wipe(m->args, strlen(m->args));
	free(m->args);
	m->args = NULL;
}

static void drop(struct commands *c, struct command *m)
{
	struct command **at;

	for (at = &c->first; *at != m; at = &(*at)->next)
		;
	*at = m->next;
	c->count--;
	wipe_args(m);
	free(m->verb);
	buf_wipe(&m->result);
	buf_fini(&m->result);
	free(m);
}

static struct command *add(struct commands *c, struct span id)
{
	struct command *m, **at;

	if (c->count >= COMMANDS_MAX || id.n > CORRELATION_ID_MAX)
		return NULL;
	m = calloc(1, sizeof *m);
	if (!m)
		return NULL;
	memcpy(m->correlation_id, id.p, id.n);
	buf_init(&m->result, WIRE_MAX_FRAME_BYTES_DEFAULT * 8);
	for (at = &c->first; *at; at = &(*at)->next)
		;
	*at = m;
	c->count++;
	return m;
}

/* ---- outcomes ---- */

static void send_result(struct commands *c, struct command *m)
{
	if (!c->session || m->local_cb)
		return;
	m->resend_ms = m->resend_ms ? m->resend_ms * 2 : RESEND_MS;
	if (m->resend_ms > RESEND_CAP_MS)
		m->resend_ms = RESEND_CAP_MS;
	CRASH_POINT("agent.before_result_send");
	if (c->ops->send(c->arg, WIRE_RESULT, m->result.data, m->result.len) != 0)
		m->resend_ms = POLL_CAP_MS;
	CRASH_POINT("agent.after_result_send");
	m->resend_at_ms = clock_boot_ms() + m->resend_ms;
	c->ops->wake_at(c->arg, m->resend_at_ms);
}

/* Cuts a text to about half at a UTF-8 boundary. */
static void halve(struct span *s, bool *cut)
{
	s->n = utf8_valid_prefix(s->p, s->n / 2);
	*cut = true;
}

/* Encodes, cutting the longer output until the frame fits. */
static int encode_result(struct commands *c, struct command *m, struct wire_frame *f)
{
	struct wire_result *r = &f->result;
	int e;

	for (;;) {
		buf_clear(&m->result);
		e = wire_encode(f, &m->result);
		if (e == 0 && m->result.len <= c->max_frame)
			return 0;
		if ((e < 0 && e != -ENOBUFS) || (r->stdout.n < 2 && r->stderr.n < 2))
			return e < 0 ? e : -EMSGSIZE;
		r->truncated.set = true;
		if (r->stdout.n >= r->stderr.n)
			halve(&r->stdout, &r->truncated.out);
		else
			halve(&r->stderr, &r->truncated.err);
	}
}

static void finish(struct commands *c, struct command *m, struct wire_result r)
{
	struct wire_frame f = {.type = WIRE_RESULT};
	int e;

	r.agent_id = span_of(c->agent_id);
	r.correlation_id = span_of(m->correlation_id);
	r.command = span_of(m->verb);
	f.result = r;
	e = encode_result(c, m, &f);
	if (e < 0) {
		/* No memory: without an outcome in hand it stays held and is asked for again. */
		LOG_ERROR(FIELDS(.event = "result_not_kept", .correlation_id = m->correlation_id,
				 .error = strerror(-e)),
			  "the outcome could not be kept; the helper is asked again");
		if (m->state == RUNNING)
			move(c, m, QUEUED);
		m->asked = false;
		m->retry_at_ms = clock_boot_ms() + POLL_CAP_MS;
		c->ops->wake_at(c->arg, m->retry_at_ms);
		return;
	}
	move(c, m, DONE);
	wipe_args(m);
	LOG_INFO(FIELDS(.event = "command_finished", .agent_id = c->agent_id,
			.correlation_id = m->correlation_id, .verb = m->verb, .has_rc = r.rc.set,
			.rc = (int)r.rc.v, .has_duration_ms = r.duration_ms.set,
			.duration_ms = (int64_t)r.duration_ms.v),
		 "%s", wire_status_word(r.status));
	c->ops->finished(c->arg, wire_status_word(r.status));
	if (m->local_cb) {
		m->local_cb(m->local_arg, m->result.data, m->result.len);
		return; /* pump drops it */
	}
	send_result(c, m);
}

static void finish_error(struct commands *c, struct command *m, const char *code, const char *msg)
{
	finish(c, m,
	       (struct wire_result){
		   .status = WIRE_STATUS_ERROR,
		   .error = {.set = true, .code = span_of(code), .msg = span_of(msg)}});
}

static void finish_unknown(struct commands *c, struct command *m, const char *msg)
{
	finish(c, m,
	       (struct wire_result){
		   .status = WIRE_STATUS_UNKNOWN,
		   .error = {.set = true, .code = SPAN("outcome_unknown"), .msg = span_of(msg)}});
}

/* It never started and never will. */
static void finish_unstarted(struct commands *c, struct command *m)
{
	enum wire_status s = m->cancelled ? m->cancel_status : WIRE_STATUS_EXPIRED;

	finish(c, m, (struct wire_result){.status = s});
}

/* A reply that is an outcome. Built-in verbs answer with data: it travels as stdout. */
static void finish_from_reply(struct commands *c, struct command *m,
			      const struct wire_helper_reply *r, bool data_is_output)
{
	struct wire_result out = {.status = WIRE_STATUS_SUCCESS,
				  .rc = r->rc,
				  .stdout = r->stdout,
				  .stderr = r->stderr,
				  .started_at = r->started_at,
				  .finished_at = r->finished_at,
				  .duration_ms = r->duration_ms,
				  .truncated = r->truncated};

	if (data_is_output && r->data.p && !r->stdout.n)
		out.stdout = r->data;
	if (!span_eq(r->status, "ok")) {
		out.status = span_eq(r->error.code, "outcome_unknown") ? WIRE_STATUS_UNKNOWN
								       : WIRE_STATUS_ERROR;
		out.error = r->error;
	}
	finish(c, m, out);
}

/* ---- policy ---- */

static bool csv_has(const char *csv, const char *word)
{
	size_t n = strlen(word);

	while (*csv) {
		size_t k;

		csv += strspn(csv, ", \t");
		k = strcspn(csv, ", \t");
		if (k == n && strncmp(csv, word, n) == 0)
			return true;
		csv += k;
	}
	return false;
}

bool commands_allows(const struct commands *c, const char *verb, bool effects)
{
	if (c->allowed_verbs && !csv_has(c->allowed_verbs, verb))
		return false;
	return !effects || c->exec_enable;
}

static enum kind kind_of(struct commands *c, const char *verb)
{
	const struct verb *v;

	if (strcmp(verb, "ECHO") == 0)
		return KIND_ECHO;
	if (strcmp(verb, "shutdown") == 0)
		return KIND_SHUTDOWN;
	v = c->ops->find_verb(c->arg, verb);
	if (!v)
		return KIND_UNKNOWN;
	return v->effects ? KIND_EFFECTS : KIND_READ_ONLY;
}

/* Sets the refusal, or leaves it NULL. */
static void judge(struct commands *c, struct command *m)
{
	bool effects = m->kind != KIND_ECHO && m->kind != KIND_READ_ONLY;
	const struct verb *v;
	struct verb_args a;

	m->refusal = NULL;
	if (c->allowed_verbs && !csv_has(c->allowed_verbs, m->verb)) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "not in this agent's VIW_AGENT_ALLOWED_VERBS");
	} else if (effects && !c->exec_enable &&
		   (m->kind != KIND_UNKNOWN || c->ops->verbs_known(c->arg))) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "this agent runs read-only verbs only; set "
			       "VIW_AGENT_FEATURE_EXEC_ENABLE=true to run verbs with effects");
	} else if (m->kind == KIND_UNKNOWN && c->ops->verbs_known(c->arg)) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "no manifest of the helper declares this verb");
	} else if (m->kind == KIND_READ_ONLY || m->kind == KIND_EFFECTS) {
		v = c->ops->find_verb(c->arg, m->verb);
		if (!v)
			return;
		if (verb_args_check(v, span_of(m->args), &a, m->refusal_msg,
				    sizeof m->refusal_msg) < 0)
			m->refusal = "bad_args";
		else
			verb_args_fini(&a, v);
	}
}

static void echo(struct commands *c, struct command *m)
{
	struct json_member mm;
	struct buf text;
	struct span out = span_of(m->args);
	int64_t wall = clock_wall_ms();

	buf_init(&text, WIRE_MAX_FRAME_BYTES_DEFAULT);
	if (json_find(out, "message", &mm) && mm.type == JSON_T_STR) {
		if (json_unescape(mm.raw, &text) == 0)
			out = (struct span){text.data ? text.data : "", text.len};
	}
	finish(c, m,
	       (struct wire_result){.status = WIRE_STATUS_SUCCESS,
				    .rc = {.v = 0, .set = true},
				    .stdout = out,
				    .started_at = {.ms = wall, .set = true},
				    .finished_at = {.ms = wall, .set = true},
				    .duration_ms = {.v = 0, .set = true}});
	buf_wipe(&text);
	buf_fini(&text);
}

static void ack(struct commands *c, struct command *m)
{
	struct wire_frame f = {.type = WIRE_COMMAND_ACK};
	struct buf b;

	if (!c->session || m->local_cb)
		return;
	f.command_ack.agent_id = span_of(c->agent_id);
	f.command_ack.correlation_id = span_of(m->correlation_id);
	buf_init(&b, 1024);
	/* Not sent is no harm: the RESULT says more. */
	if (wire_encode(&f, &b) == 0 && c->ops->send(c->arg, f.type, b.data, b.len) != 0)
		LOG_DEBUG(FIELDS(.event = "ack_not_sent", .correlation_id = m->correlation_id),
			  "no room for COMMAND_ACK");
	buf_fini(&b);
}

/* The two verbs that need no helper. shutdown takes effect when its RESULT is acknowledged. */
static void run_own(struct commands *c, struct command *m)
{
	ack(c, m);
	if (m->kind == KIND_ECHO) {
		echo(c, m);
		return;
	}
	c->draining = true;
	finish(c, m,
	       (struct wire_result){.status = WIRE_STATUS_SUCCESS, .rc = {.v = 0, .set = true}});
}

/* ---- the pump: one step of every command that can take one ---- */

static unsigned running(const struct commands *c)
{
	const struct command *m;
	unsigned n = 0;

	for (m = c->first; m; m = m->next)
		n += m->state == RUNNING;
	return n;
}

static void pause_then_retry(struct commands *c, struct command *m)
{
	m->asked = false;
	m->pause_ms = m->pause_ms ? m->pause_ms * 2 : POLL_MS;
	if (m->pause_ms > POLL_CAP_MS)
		m->pause_ms = POLL_CAP_MS;
	m->retry_at_ms = clock_boot_ms() + m->pause_ms;
	c->ops->wake_at(c->arg, m->retry_at_ms);
}

static void start(struct commands *c, struct command *m, int64_t now)
{
	struct helper_ask ask = {.op = HELPER_RUN,
				 .correlation_id = m->correlation_id,
				 .verb = m->verb,
				 .args = span_of(m->args)};
	int r;

	if (m->kind == KIND_EFFECTS)
		ask.deadline_ms = clock_wall_ms() + (m->deadline_ms - now);
	else
		ask.give_up_ms = c->cmd_timeout_ms;
	CRASH_POINT("agent.before_helper_send");
	r = c->ops->ask(c->arg, &ask);
	CRASH_POINT("agent.after_helper_send");
	if (r == -EMSGSIZE) {
		finish_error(c, m, "bad_args", "the arguments are longer than the helper takes");
	} else if (r < 0) {
		pause_then_retry(c, m);
	} else {
		move(c, m, RUNNING);
		m->sent_once = true;
		ack(c, m);
	}
}

static void step_queued(struct commands *c, struct command *m, int64_t now)
{
	if (m->kind == KIND_UNKNOWN) {
		m->kind = kind_of(c, m->verb);
		if (m->kind != KIND_UNKNOWN || c->ops->verbs_known(c->arg))
			judge(c, m);
		if (m->refusal) {
			move(c, m, CHECKING);
			return;
		}
	}
	if (m->cancelled || now >= m->deadline_ms) {
		if (m->kind == KIND_EFFECTS || m->kind == KIND_UNKNOWN)
			move(c, m, VOIDING);
		else
			finish_unstarted(c, m);
		return;
	}
	if (m->kind == KIND_ECHO || m->kind == KIND_SHUTDOWN) {
		run_own(c, m);
		return;
	}
	c->ops->wake_at(c->arg, m->deadline_ms);
	if (!c->ops->helper_up(c->arg)) {
		if (m->kind == KIND_READ_ONLY)
			finish_error(c, m, "helper_unreachable",
				     "host-helper does not answer; see `gateway-agent check`");
		return;
	}
	if (m->kind == KIND_UNKNOWN || running(c) >= c->max_concurrency || now < m->retry_at_ms)
		return;
	start(c, m, now);
}

/* CHECKING asks `query`, VOIDING `void`. */
static void step_asking(struct commands *c, struct command *m, int64_t now)
{
	struct helper_ask ask = {.op = m->state == VOIDING ? HELPER_VOID : HELPER_QUERY,
				 .correlation_id = m->correlation_id};

	if (m->asked || now < m->retry_at_ms)
		return;
	if (!c->helper_configured) {
		/* There is no helper that could have run it. */
		if (m->state == VOIDING)
			finish_unstarted(c, m);
		else
			finish_error(c, m, m->refusal, m->refusal_msg);
		return;
	}
	if (!c->ops->helper_up(c->arg))
		return;
	if (c->ops->ask(c->arg, &ask) == 0)
		m->asked = true;
	else
		pause_then_retry(c, m);
}

static void step(struct commands *c, struct command *m)
{
	int64_t now = clock_boot_ms();

	if (m->state == QUEUED)
		step_queued(c, m, now);
	if (m->state == CHECKING || m->state == VOIDING)
		step_asking(c, m, now);
	if (m->state == DONE && c->session && !m->local_cb && now >= m->resend_at_ms)
		send_result(c, m);
	if (m->state == DONE && m->local_cb)
		drop(c, m);
}

static void pump(struct commands *c)
{
	struct command *m, *next;

	c->pump_again = true;
	if (c->pumping)
		return;
	c->pumping = true;
	while (c->pump_again) {
		c->pump_again = false;
		for (m = c->first; m; m = next) {
			next = m->next;
			step(c, m);
		}
	}
	c->pumping = false;
}

/* ---- answers of the helper ---- */

static void on_run_answer(struct commands *c, struct command *m, const struct wire_helper_reply *r)
{
	struct span code = r->error.code;

	if (span_eq(r->status, "ok")) {
		finish_from_reply(c, m, r, true);
	} else if (span_eq(code, "busy") || span_eq(code, "replayed")) {
		move(c, m, QUEUED);
		pause_then_retry(c, m);
	} else if (m->kind != KIND_EFFECTS) {
		finish_from_reply(c, m, r, false);
	} else if (span_eq(code, "expired") || span_eq(code, "cancelled")) {
		/* Not started by this request; make that final, or learn what happened. */
		move(c, m, VOIDING);
	} else if (span_eq(code, "internal") || span_eq(code, "bad_mac") ||
		   span_eq(code, "peer_not_allowed") || span_eq(code, "bad_request")) {
		m->refusal = "internal";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "host-helper could not start it: " SPAN_FMT " " SPAN_FMT,
			       SPAN_ARG(code), SPAN_ARG(r->error.msg));
		move(c, m, CHECKING);
	} else {
		finish_from_reply(c, m, r, false);
	}
}

static void on_run_lost(struct commands *c, struct command *m)
{
	if (m->kind == KIND_EFFECTS) {
		move(c, m, QUEUED);
		pause_then_retry(c, m);
	} else if (c->ops->helper_up(c->arg)) {
		finish_error(c, m, "timeout",
			     "host-helper gave no answer within "
			     "VIW_AGENT_CMD_TIMEOUT_SECS");
	} else {
		finish_error(c, m, "helper_unreachable", "the connection to host-helper broke");
	}
}

static void on_state_answer(struct commands *c, struct command *m,
			    const struct wire_helper_reply *r)
{
	struct json_member state = {0};

	m->asked = false;
	if (r->data.p)
		(void)!json_find(r->data, "state", &state);
	if (span_eq(state.raw, "void") && m->state == VOIDING && m->refusal && !m->cancelled) {
		finish_error(c, m, m->refusal, m->refusal_msg);
	} else if (span_eq(state.raw, "void")) {
		finish_unstarted(c, m);
	} else if (span_eq(state.raw, "done")) {
		finish_from_reply(c, m, r, false);
	} else if (span_eq(state.raw, "unknown") || span_eq(r->error.code, "outcome_unknown")) {
		finish_unknown(c, m, "it may have started; the helper's journal holds no outcome");
	} else if (span_eq(state.raw, "absent") && m->state == CHECKING &&
		   (m->cancelled || m->sent_once)) {
		/* What is told as not started must not start when Redis loses that telling. */
		move(c, m, VOIDING);
	} else if (span_eq(state.raw, "absent") && m->state == CHECKING) {
		finish_error(c, m, m->refusal, m->refusal_msg);
	} else if (m->state == VOIDING && m->refusal && !m->cancelled &&
		   span_eq(r->error.code, "internal")) {
		finish_error(c, m, m->refusal, m->refusal_msg); /* its disk is full, say */
	} else {
		pause_then_retry(c, m); /* running, or an error: ask again */
	}
}

void commands_on_answer(struct commands *c, const char *correlation_id,
			const struct wire_helper_reply *reply)
{
	struct command *m = find(c, span_of(correlation_id));

	CRASH_POINT("agent.helper_reply");
	if (!m || m->state == DONE)
		return;
	CRASH_POINT("agent.helper_answered");
	if (m->state == RUNNING && reply)
		on_run_answer(c, m, reply);
	else if (m->state == RUNNING)
		on_run_lost(c, m);
	else if (reply)
		on_state_answer(c, m, reply);
	else
		pause_then_retry(c, m);
	pump(c);
}

/* ---- frames of the bridge ---- */

static int64_t remaining_ms(const struct wire_command *f, int64_t server_now_ms)
{
	int64_t left = f->ttl_remaining_ms.v > 86400000 ? 86400000 : (int64_t)f->ttl_remaining_ms.v;

	/* The frame may have waited in a buffer: the absolute time is a second check. */
	if (server_now_ms && f->expires_at.set &&
	    f->expires_at.ms - server_now_ms + CLOCK_SLACK_MS < left)
		left = f->expires_at.ms - server_now_ms + CLOCK_SLACK_MS;
	return left > 0 ? left : 0;
}

static bool nonce_is_new(struct commands *c, const struct wire_command *f)
{
	int64_t now = clock_wall_ms();

	return !f->nonce.p || nonces_add(c->nonces, "command", f->nonce.p, f->nonce.n,
					 now + NONCE_KEEP_MS, now) == 0;
}

/* Fills a new command and lets it go. */
static void take(struct commands *c, struct command *m, struct span verb, struct span args,
		 int64_t left_ms)
{
	m->verb = span_dup(verb);
	m->args = span_dup(args);
	if (!m->verb || !m->args) {
		drop(c, m);
		return;
	}
	m->deadline_ms = clock_boot_ms() + left_ms;
	m->kind = kind_of(c, m->verb);
	judge(c, m);
	if (m->refusal && (m->kind == KIND_EFFECTS || m->kind == KIND_UNKNOWN)) {
		move(c, m, CHECKING);
	} else if (m->refusal) {
		finish_error(c, m, m->refusal, m->refusal_msg);
	}
	pump(c);
}

void commands_on_command(struct commands *c, const struct wire_command *f, int64_t server_now_ms)
{
	struct command *m = find(c, f->correlation_id);

	CRASH_POINT("agent.command_received");
	if (!span_eq(f->agent_id, c->agent_id) || !nonce_is_new(c, f)) {
		LOG_WARN(FIELDS(.event = "command_refused", .agent_id = c->agent_id,
				.error = span_eq(f->agent_id, c->agent_id) ? "replayed nonce"
									   : "another agent's id"),
			 "a COMMAND was dropped");
		return;
	}
	if (m) {
		if (m->state == DONE)
			send_result(c, m);
		else if (m->sent_once)
			ack(c, m);
		return;
	}
	if (c->draining)
		return;
	m = add(c, f->correlation_id);
	if (!m) {
		LOG_ERROR(FIELDS(.event = "commands_full", .agent_id = c->agent_id),
			  "too many commands are held; it is offered again on the next connection");
		return;
	}
	CRASH_POINT("agent.command_received");
	take(c, m, f->verb, f->args, remaining_ms(f, server_now_ms));
}

int commands_local(struct commands *c, const char *correlation_id, const char *verb,
		   struct span args, int64_t ttl_ms, commands_local_cb cb, void *arg)
{
	struct command *m;

	if (find(c, span_of(correlation_id)))
		return -EEXIST;
	if (c->draining)
		return -EBUSY;
	m = add(c, span_of(correlation_id));
	if (!m)
		return -EBUSY;
	m->local_cb = cb;
	m->local_arg = arg;
	take(c, m, span_of(verb), args, ttl_ms);
	return 0;
}

void commands_on_cancel(struct commands *c, const struct wire_cancel *f)
{
	struct command *m = find(c, f->correlation_id);

	if (m && m->state == DONE) {
		send_result(c, m);
		return;
	}
	if (!m) {
		m = add(c, f->correlation_id);
		if (!m)
			return;
		m->kind = KIND_EFFECTS; /* as far as we know */
		move(c, m, VOIDING);
	}
	CRASH_POINT("agent.cancel_received");
	m->cancelled = true;
	m->cancel_status =
	    span_eq(f->reason, "expired") ? WIRE_STATUS_EXPIRED : WIRE_STATUS_CANCELLED;
	pump(c);
}

void commands_on_result_ack(struct commands *c, struct span correlation_id)
{
	struct command *m = find(c, correlation_id);
	bool stop;

	CRASH_POINT("agent.result_acked");
	if (!m || m->state != DONE || m->local_cb)
		return;
	stop = m->kind == KIND_SHUTDOWN && c->draining;
	CRASH_POINT("agent.result_acked");
	drop(c, m);
	if (stop)
		c->ops->shutdown(c->arg);
}

void commands_on_session(struct commands *c, uint64_t max_frame_bytes)
{
	struct command *m;

	c->session = true;
	if (max_frame_bytes)
		c->max_frame = max_frame_bytes;
	for (m = c->first; m; m = m->next) {
		m->resend_ms = 0;
		m->resend_at_ms = 0;
	}
	pump(c);
}

void commands_on_session_end(struct commands *c)
{
	c->session = false;
}

void commands_on_helper(struct commands *c)
{
	struct command *m;

	for (m = c->first; m; m = m->next) {
		if (m->state != DONE)
			m->retry_at_ms = 0;
	}
	pump(c);
}

void commands_on_journal_changed(struct commands *c)
{
	struct command *m, *next;

	for (m = c->first; m; m = next) {
		next = m->next;
		if (m->state == DONE || m->kind == KIND_READ_ONLY)
			continue;
		if (m->sent_once)
			finish_unknown(c, m, "the helper's journal was replaced while it ran");
		else if (m->local_cb)
			finish_error(c, m, "internal", "the helper's journal was replaced");
		else
			drop(c, m); /* the bridge offers it again, or ends it */
	}
}

void commands_tick(struct commands *c)
{
	pump(c);
}

void commands_drain(struct commands *c)
{
	c->draining = true;
}

struct commands_counts commands_counts_of(const struct commands *c)
{
	struct commands_counts n = {0};
	const struct command *m;

	for (m = c->first; m; m = m->next) {
		n.queued += m->state == QUEUED;
		n.running += m->state == RUNNING;
		n.results += m->state == DONE;
		n.held += m->state != DONE;
	}
	return n;
}

int commands_configure(struct commands *c, const struct commands_config *cfg)
{
	char *id = strdup(cfg->agent_id);
	char *allowed = cfg->allowed_verbs ? strdup(cfg->allowed_verbs) : NULL;

	if (!id || (cfg->allowed_verbs && !allowed)) {
		free(id);
		free(allowed);
		return -ENOMEM;
	}
	free(c->agent_id);
	free(c->allowed_verbs);
	c->agent_id = id;
	c->allowed_verbs = allowed;
	c->exec_enable = cfg->exec_enable;
	c->helper_configured = cfg->helper_configured;
	c->max_concurrency = cfg->max_concurrency;
	c->cmd_timeout_ms = cfg->cmd_timeout_ms;
	return 0;
}

int commands_new(const struct commands_config *cfg, const struct commands_ops *ops, void *arg,
		 struct commands **ret)
{
	struct commands *c = calloc(1, sizeof *c);
	int r;

	if (!c)
		return -ENOMEM;
	c->ops = ops;
	c->arg = arg;
	c->max_frame = FRAME_MAX_SAFE;
	r = nonces_new(NONCES_MAX, &c->nonces);
	if (r == 0)
		r = commands_configure(c, cfg);
	if (r < 0) {
		commands_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

void commands_free(struct commands *c)
{
	if (!c)
		return;
	while (c->first)
		drop(c, c->first);
	if (c->nonces)
		nonces_free(c->nonces);
	free(c->agent_id);
	free(c->allowed_verbs);
	free(c);
}
