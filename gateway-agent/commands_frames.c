/* What the bridge, this host or a change of the helper brings to commands. */
#include <errno.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "commands_private.h"
#include "crypto/nonces.h"

#define CLOCK_SLACK_MS 1000
#define NONCE_KEEP_MS  600000
#define NONCES_MAX     8192
#define LOCAL_MAX      8 /* places that a bridge cannot take */

static int64_t remaining_ms(const struct wire_command *f, int64_t server_now_ms)
{
	int64_t left = f->ttl_remaining_ms.v > 86400000 ? 86400000 : (int64_t)f->ttl_remaining_ms.v;

	/* The frame may have waited in a buffer: the absolute time is a second check. */
	if (server_now_ms && f->expires_at.set &&
	    f->expires_at.ms - server_now_ms + CLOCK_SLACK_MS < left)
		left = f->expires_at.ms - server_now_ms + CLOCK_SLACK_MS;
	return left > 0 ? left : 0;
}

static int remember(struct nonces *in, struct span nonce, int64_t until_ms, int64_t now)
{
	return in ? nonces_add(in, "command", nonce.p, nonce.n, until_ms, now) : -ENOSPC;
}

/* Remembers the latest nonces, for ten minutes at most. It must not refuse what is new because it
 * has seen much: the same id again is held off by the list here and the helper's journal. */
static bool nonce_is_new(struct commands *c, const struct wire_command *f)
{
	int64_t now = clock_wall_ms();
	int r;

	if (!f->nonce.p)
		return true;
	if (c->nonces_before &&
	    nonces_has(c->nonces_before, "command", f->nonce.p, f->nonce.n, now))
		return false;
	r = remember(c->nonces, f->nonce, now + NONCE_KEEP_MS, now);
	if (r == -ENOSPC) {
		if (c->nonces_before)
			nonces_free(c->nonces_before);
		c->nonces_before = TAKE(c->nonces);
		if (nonces_new(NONCES_MAX, &c->nonces) == 0)
			r = remember(c->nonces, f->nonce, now + NONCE_KEEP_MS, now);
	}
	return r != -EEXIST;
}

/* Fills a new command and lets it go. */
static void take(struct commands *c, struct command *m, struct span verb, struct span args,
		 int64_t left_ms)
{
	m->verb = span_dup(verb);
	m->args = span_dup(args);
	if (!m->verb || !m->args) {
		commands_drop(c, m);
		return;
	}
	m->deadline_ms = clock_boot_ms() + left_ms;
	m->kind = commands_kind_of(c, m->verb);
	commands_judge(c, m);
	if (m->refusal && (m->kind == KIND_EFFECTS || m->kind == KIND_UNKNOWN)) {
		commands_move(c, m, CHECKING);
	} else if (m->refusal) {
		commands_finish_error(c, m, m->refusal, m->refusal_msg);
	}
	commands_pump(c);
}

/* It is offered again on the next connection, unless it ends before. */
static void log_dropped(struct commands *c, struct span correlation_id, const char *why)
{
	char id[CORRELATION_ID_MAX + 1] = "";

	(void)!span_copy(correlation_id, id, sizeof id);
	if (commands_may_log(c))
		LOG_WARN(FIELDS(.event = "command_refused", .agent_id = c->agent_id,
				.correlation_id = id, .error = why),
			 "a COMMAND was dropped");
}

void commands_on_command(struct commands *c, const struct wire_command *f, int64_t server_now_ms)
{
	struct command *m = commands_find(c, f->correlation_id);

	CRASH_POINT("agent.command_received");
	if (!span_eq(f->agent_id, c->agent_id) || !nonce_is_new(c, f)) {
		log_dropped(c, f->correlation_id,
			    span_eq(f->agent_id, c->agent_id) ? "replayed nonce"
							      : "another agent's id");
		return;
	}
	if (m) {
		if (m->state == DONE)
			commands_send_result(c, m);
		else if (m->sent_once)
			commands_ack(c, m);
		return;
	}
	if (c->draining) {
		log_dropped(c, f->correlation_id, "stopping");
		return;
	}
	m = commands_add(c, f->correlation_id, COMMANDS_MAX);
	if (!m) {
		log_dropped(c, f->correlation_id, "too many commands are held");
		return;
	}
	CRASH_POINT("agent.command_received");
	take(c, m, f->verb, f->args, remaining_ms(f, server_now_ms));
}

int commands_local(struct commands *c, const char *correlation_id, const char *verb,
		   struct span args, int64_t ttl_ms, commands_local_cb cb, void *arg)
{
	struct command *m;

	if (commands_find(c, span_of(correlation_id)))
		return -EEXIST;
	if (c->draining)
		return -EBUSY;
	m = commands_add(c, span_of(correlation_id), COMMANDS_MAX + LOCAL_MAX);
	if (!m)
		return -EBUSY;
	m->local_cb = cb;
	m->local_arg = arg;
	take(c, m, span_of(verb), args, ttl_ms);
	return 0;
}

void commands_leave_local(struct commands *c)
{
	struct command *m, *next;

	for (m = c->first; m; m = next) {
		next = m->next;
		if (!m->local_cb)
			continue;
		if (m->state != DONE)
			m->local_cb(m->local_arg, NULL, 0);
		commands_drop(c, m);
	}
}

void commands_on_cancel(struct commands *c, const struct wire_cancel *f)
{
	struct command *m = commands_find(c, f->correlation_id);

	if (m && m->local_cb)
		return; /* given on this host: none of the bridge's business */
	if (m && m->state == DONE) {
		commands_send_result(c, m);
		return;
	}
	if (!m) {
		m = commands_add(c, f->correlation_id, COMMANDS_MAX);
		if (!m)
			return;
		m->kind = KIND_EFFECTS; /* as far as we know */
		commands_move(c, m, VOIDING);
	}
	CRASH_POINT("agent.cancel_received");
	m->cancelled = true;
	m->cancel_status =
	    span_eq(f->reason, "expired") ? WIRE_STATUS_EXPIRED : WIRE_STATUS_CANCELLED;
	commands_pump(c);
}

void commands_on_result_ack(struct commands *c, struct span correlation_id)
{
	struct command *m = commands_find(c, correlation_id);
	bool stop;

	CRASH_POINT("agent.result_acked");
	if (!m || m->state != DONE || m->local_cb)
		return;
	stop = m->kind == KIND_SHUTDOWN && c->draining;
	CRASH_POINT("agent.result_acked");
	commands_drop(c, m);
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
	commands_pump(c);
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
	commands_pump(c);
}

void commands_forget_unstarted(struct commands *c)
{
	struct command *m, *next;

	for (m = c->first; m; m = next) {
		next = m->next;
		if (m->state == QUEUED && !m->sent_once && !m->local_cb)
			commands_drop(c, m);
	}
}

void commands_on_journal_changed(struct commands *c)
{
	struct command *m, *next;

	for (m = c->first; m; m = next) {
		next = m->next;
		if (m->state == DONE || m->kind == KIND_READ_ONLY)
			continue;
		if (m->sent_once)
			commands_finish_unknown(c, m,
						"the helper's journal was replaced while it ran");
		else if (m->local_cb)
			commands_finish_error(c, m, "internal",
					      "the helper's journal was replaced");
		else
			commands_drop(c, m); /* the bridge offers it again, or ends it */
	}
}
