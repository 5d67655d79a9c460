/* Outcomes of commands: the RESULT, cut to the bridge's frame, kept and sent until acknowledged. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "base/utf8.h"
#include "commands_private.h"

#define RESEND_MS     15000
#define RESEND_CAP_MS 120000

void commands_send_result(struct commands *c, struct command *m)
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

/* With the code and text of an error: they name parameters, never values. */
static void log_finished(const struct commands *c, const struct command *m,
			 const struct wire_result *r)
{
	char code[65] = "";

	if (r->error.set)
		(void)!span_copy(r->error.code, code, sizeof code);
	LOG_INFO(FIELDS(.event = "command_finished", .agent_id = c->agent_id,
			.correlation_id = m->correlation_id, .verb = m->verb,
			.error = code[0] ? code : NULL, .has_rc = r->rc.set, .rc = (int)r->rc.v,
			.has_duration_ms = r->duration_ms.set,
			.duration_ms = (int64_t)r->duration_ms.v),
		 "%s%s" SPAN_FMT, wire_status_word(r->status), code[0] ? ": " : "",
		 SPAN_ARG(r->error.set ? r->error.msg : SPAN("")));
}

void commands_finish(struct commands *c, struct command *m, struct wire_result r)
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
			commands_move(c, m, QUEUED);
		m->asked = false;
		m->retry_at_ms = clock_boot_ms() + POLL_CAP_MS;
		c->ops->wake_at(c->arg, m->retry_at_ms);
		return;
	}
	buf_fit(&m->result); /* it may wait for long, and so may 63 others */
	commands_move(c, m, DONE);
	commands_wipe_args(m);
	if (commands_may_log(c))
		log_finished(c, m, &r);
	c->ops->finished(c->arg, wire_status_word(r.status));
	if (m->local_cb) {
		m->local_cb(m->local_arg, m->result.data, m->result.len);
		return; /* pump drops it */
	}
	commands_send_result(c, m);
}

void commands_finish_error(struct commands *c, struct command *m, const char *code, const char *msg)
{
	commands_finish(c, m,
			(struct wire_result){
			    .status = WIRE_STATUS_ERROR,
			    .error = {.set = true, .code = span_of(code), .msg = span_of(msg)}});
}

void commands_finish_unknown(struct commands *c, struct command *m, const char *msg)
{
	commands_finish(
	    c, m,
	    (struct wire_result){
		.status = WIRE_STATUS_UNKNOWN,
		.error = {.set = true, .code = SPAN("outcome_unknown"), .msg = span_of(msg)}});
}

void commands_finish_unstarted(struct commands *c, struct command *m)
{
	enum wire_status s = m->cancelled ? m->cancel_status : WIRE_STATUS_EXPIRED;

	commands_finish(c, m, (struct wire_result){.status = s});
}

void commands_finish_from_reply(struct commands *c, struct command *m,
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
	commands_finish(c, m, out);
}
