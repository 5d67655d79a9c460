/* The agent's part of a command's life: the list, the pump that moves every command on, the
 * helper's answers. See commands.h. */
#include "commands_private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "crypto/nonces.h"

#define LINES_A_MINUTE 600
#define FRAME_MAX_SAFE 65536 /* before HELLO_ACK told more */

static const char *const state_words[STATES] = {"queued", "running", "checking", "voiding", "done"};
/* Legal moves: [from] is a mask of to. */
static const unsigned legal[STATES] = {
    [QUEUED] = 1u << RUNNING | 1u << CHECKING | 1u << VOIDING | 1u << DONE,
    [RUNNING] = 1u << QUEUED | 1u << CHECKING | 1u << VOIDING | 1u << DONE,
    [CHECKING] = 1u << VOIDING | 1u << DONE,
    [VOIDING] = 1u << DONE,
    [DONE] = 0,
};

void commands_move(struct commands *c, struct command *m, enum state to)
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

struct command *commands_find(struct commands *c, struct span id)
{
	struct command *m;

	for (m = c->first; m; m = m->next) {
		if (span_eq(id, m->correlation_id))
			return m;
	}
	return NULL;
}

void commands_wipe_args(struct command *m)
{
	if (m->args)
		crypto_wipe(m->args, strlen(m->args));
	free(m->args);
	m->args = NULL;
}

void commands_drop(struct commands *c, struct command *m)
{
	struct command **at;

	for (at = &c->first; *at != m; at = &(*at)->next)
		;
	*at = m->next;
	c->count--;
	commands_wipe_args(m);
	free(m->verb);
	buf_wipe(&m->result);
	buf_fini(&m->result);
	free(m);
}

struct command *commands_add(struct commands *c, struct span id, unsigned max)
{
	struct command *m, **at;

	if (c->count >= max || id.n > CORRELATION_ID_MAX)
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
	commands_finish(c, m,
			(struct wire_result){.status = WIRE_STATUS_SUCCESS,
					     .rc = {.v = 0, .set = true},
					     .stdout = out,
					     .started_at = {.ms = wall, .set = true},
					     .finished_at = {.ms = wall, .set = true},
					     .duration_ms = {.v = 0, .set = true}});
	buf_wipe(&text);
	buf_fini(&text);
}

void commands_ack(struct commands *c, struct command *m)
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
	commands_ack(c, m);
	if (m->kind == KIND_ECHO) {
		echo(c, m);
		return;
	}
	c->draining = true;
	commands_finish(
	    c, m, (struct wire_result){.status = WIRE_STATUS_SUCCESS, .rc = {.v = 0, .set = true}});
}

bool commands_may_log(struct commands *c)
{
	long left_out = log_limit_pass(&c->limit, LINES_A_MINUTE);

	if (left_out > 0)
		LOG_WARN(FIELDS(.event = "lines_left_out", .agent_id = c->agent_id,
				.has_count = true, .count = left_out),
			 "lines about commands that were not written");
	return left_out >= 0;
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
		commands_finish_error(c, m, "bad_args",
				      "the arguments are longer than the helper takes");
	} else if (r < 0) {
		pause_then_retry(c, m);
	} else {
		commands_move(c, m, RUNNING);
		m->sent_once = true;
		commands_ack(c, m);
	}
}

static void say_held(struct commands *c, struct command *m)
{
	if (!m->told_held && commands_may_log(c))
		LOG_WARN(FIELDS(.event = "command_held", .agent_id = c->agent_id,
				.correlation_id = m->correlation_id, .verb = m->verb),
			 "it waits for host-helper, which does not answer");
	m->told_held = true;
}

static void step_queued(struct commands *c, struct command *m, int64_t now)
{
	if (m->kind == KIND_UNKNOWN) {
		m->kind = commands_kind_of(c, m->verb);
		if (m->kind != KIND_UNKNOWN || c->ops->verbs_known(c->arg))
			commands_judge(c, m);
		if (m->refusal) {
			commands_move(c, m, CHECKING);
			return;
		}
	}
	if (m->cancelled || now >= m->deadline_ms) {
		if (m->kind == KIND_EFFECTS || m->kind == KIND_UNKNOWN)
			commands_move(c, m, VOIDING);
		else
			commands_finish_unstarted(c, m);
		return;
	}
	if (m->kind == KIND_ECHO || m->kind == KIND_SHUTDOWN) {
		run_own(c, m);
		return;
	}
	c->ops->wake_at(c->arg, m->deadline_ms);
	if (!c->ops->helper_up(c->arg)) {
		if (m->kind == KIND_READ_ONLY)
			commands_finish_error(
			    c, m, "helper_unreachable",
			    "host-helper does not answer; see `gateway-agent check`");
		else
			say_held(c, m);
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
			commands_finish_unstarted(c, m);
		else
			commands_finish_error(c, m, m->refusal, m->refusal_msg);
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
		commands_send_result(c, m);
	if (m->state == DONE && m->local_cb) {
		bool stop = m->kind == KIND_SHUTDOWN && c->draining;

		commands_drop(c, m);
		if (stop)
			c->ops->shutdown(c->arg);
	}
}

void commands_pump(struct commands *c)
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
		commands_finish_from_reply(c, m, r, true);
	} else if (span_eq(code, "busy") || span_eq(code, "replayed")) {
		commands_move(c, m, QUEUED);
		pause_then_retry(c, m);
	} else if (m->kind != KIND_EFFECTS) {
		commands_finish_from_reply(c, m, r, false);
	} else if (span_eq(code, "expired") || span_eq(code, "cancelled")) {
		if (span_eq(code, "cancelled") && !m->cancelled &&
		    clock_boot_ms() < m->deadline_ms) {
			/* by a CANCEL that an earlier life of this agent was given */
			m->cancelled = true;
			m->cancel_status = WIRE_STATUS_CANCELLED;
		}
		/* Not started by this request; make that final, or learn what happened. */
		commands_move(c, m, VOIDING);
	} else if (span_eq(code, "internal") || span_eq(code, "bad_mac") ||
		   span_eq(code, "peer_not_allowed") || span_eq(code, "bad_request")) {
		m->refusal = "internal";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "host-helper could not start it: " SPAN_FMT " " SPAN_FMT,
			       SPAN_ARG(code), SPAN_ARG(r->error.msg));
		commands_move(c, m, CHECKING);
	} else {
		commands_finish_from_reply(c, m, r, false);
	}
}

static void on_run_lost(struct commands *c, struct command *m)
{
	if (m->kind == KIND_EFFECTS) {
		commands_move(c, m, QUEUED);
		pause_then_retry(c, m);
	} else if (c->ops->helper_up(c->arg)) {
		commands_finish_error(c, m, "timeout",
				      "host-helper gave no answer within "
				      "VIW_AGENT_CMD_TIMEOUT_SECS");
	} else {
		commands_finish_error(c, m, "helper_unreachable",
				      "the connection to host-helper broke");
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
		commands_finish_error(c, m, m->refusal, m->refusal_msg);
	} else if (span_eq(state.raw, "void")) {
		commands_finish_unstarted(c, m);
	} else if (span_eq(state.raw, "done")) {
		commands_finish_from_reply(c, m, r, false);
	} else if (span_eq(state.raw, "unknown") || span_eq(r->error.code, "outcome_unknown")) {
		commands_finish_unknown(
		    c, m, "it may have started; the helper's journal holds no outcome");
	} else if (span_eq(state.raw, "absent") && m->state == CHECKING &&
		   (m->cancelled || m->sent_once)) {
		/* What is told as not started must not start when Redis loses that telling. */
		commands_move(c, m, VOIDING);
	} else if (span_eq(state.raw, "absent") && m->state == CHECKING) {
		commands_finish_error(c, m, m->refusal, m->refusal_msg);
	} else if (m->state == VOIDING && m->refusal && !m->cancelled &&
		   span_eq(r->error.code, "internal")) {
		commands_finish_error(c, m, m->refusal, m->refusal_msg); /* its disk is full, say */
	} else {
		pause_then_retry(c, m); /* running, or an error: ask again */
	}
}

void commands_on_answer(struct commands *c, const char *correlation_id,
			const struct wire_helper_reply *reply)
{
	struct command *m = commands_find(c, span_of(correlation_id));

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
	commands_pump(c);
}

void commands_tick(struct commands *c)
{
	commands_pump(c);
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
		commands_drop(c, c->first);
	if (c->nonces)
		nonces_free(c->nonces);
	if (c->nonces_before)
		nonces_free(c->nonces_before);
	free(c->agent_id);
	free(c->allowed_verbs);
	free(c);
}
