/* Replies: one audit record and one framed message each. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "helper.h"

void reply_to_request(const struct request *q, struct reply_to *ret)
{
	*ret = (struct reply_to){.conn_id = conn_id(q->conn),
				 .peer = *conn_peer(q->conn),
				 .received_boot_ms = clock_boot_ms()};
	snprintf(ret->correlation_id, sizeof ret->correlation_id, "%s", q->correlation_id);
	snprintf(ret->agent_id, sizeof ret->agent_id, "%s", q->agent_id);
	snprintf(ret->verb, sizeof ret->verb, "%.64s", q->verb);
	snprintf(ret->op, sizeof ret->op, "%s", q->op);
}

static const char *or_null(const char *s)
{
	return s[0] ? s : NULL;
}

/* What is neither verb nor op is the sender's own text, which shall not fill the table. */
static const char *count_name(struct helper *h, const struct reply_to *to)
{
	static const char *const ops[] = {"hello", "query", "void"};

	if (strcmp(to->op, "run") == 0)
		return verbs_find(h->verbs, to->verb) ? to->verb : "*";
	for (size_t i = 0; i < ARRAY_LEN(ops); i++)
		if (strcmp(to->op, ops[i]) == 0)
			return ops[i];
	return "*";
}

static void record(struct helper *h, const struct reply_to *to, const char *code,
		   const struct outcome *o)
{
	struct audit_record rec = {.event = "request",
				   .agent_id = or_null(to->agent_id),
				   .correlation_id = or_null(to->correlation_id),
				   .verb = or_null(to->verb),
				   .op = or_null(to->op),
				   .args_hash = or_null(to->args_hash),
				   .code = code ? code : "ok",
				   .duration_ms = clock_boot_ms() - to->received_boot_ms,
				   .has_peer = true,
				   .uid = to->peer.uid,
				   .pid = to->peer.pid};

	if (o) {
		rec.has_rc = o->has_rc;
		rec.rc = o->rc;
		rec.has_output = true;
		rec.out_crc32 = audit_crc32(o->out.data, o->out.len);
		rec.err_crc32 = audit_crc32(o->err.data, o->err.len);
	}
	if (audit_write(&h->audit, &rec) < 0)
		LOG_ERROR(FIELDS(.event = "audit_failed", .correlation_id = rec.correlation_id),
			  "a request could not be recorded");
	bool failed = !code && rec.has_rc && rec.rc != 0;
	audit_counts_add(&h->audit_counts, count_name(h, to), failed ? "failed" : rec.code);
	LOG_AT(code ? LOG_LEVEL_WARN : LOG_LEVEL_INFO,
	       FIELDS(.event = "request", .agent_id = rec.agent_id,
		      .correlation_id = rec.correlation_id, .verb = rec.verb, .error = code,
		      .has_rc = rec.has_rc, .rc = rec.rc, .has_duration_ms = true,
		      .duration_ms = rec.duration_ms),
	       code ? "refused or failed" : "answered");
}

static void send_frame(struct helper *h, const struct reply_to *to, struct wire_frame *f)
{
	struct conn *c = conn_find(h, to->conn_id);
	struct wire_helper_reply *m = &f->helper_reply;
	struct buf out;

	if (!c)
		return; /* it hung up; the journal keeps what matters */
	conn_end(c);
	f->type = WIRE_HELPER_REPLY;
	if (to->correlation_id[0])
		m->correlation_id = span_of(to->correlation_id);
	buf_init(&out, WIRE_HELPER_REPLY_MAX - SHA256_HEX_LEN - 2);
	int r = wire_encode(f, &out);
	while (r == -ENOBUFS && (m->stdout.n || m->stderr.n)) {
		/* Escapes made it too long: halve what is longer, between characters. */
		bool cut_out = m->stdout.n >= m->stderr.n;
		struct span *s = cut_out ? &m->stdout : &m->stderr;
		s->n /= 2;
		while (s->n && ((unsigned char)s->p[s->n] & 0xc0) == 0x80)
			s->n--;
		m->truncated.set = true;
		*(cut_out ? &m->truncated.out : &m->truncated.err) = true;
		buf_clear(&out);
		r = wire_encode(f, &out);
	}
	CRASH_POINT("helper.before_reply");
	if (r == 0)
		conn_send(h, c, &out);
	CRASH_POINT("helper.after_reply");
	buf_fini(&out);
}

void reply_error(struct helper *h, const struct reply_to *to, const char *code, const char *msg)
{
	struct wire_frame f = {0};

	record(h, to, code, NULL);
	f.helper_reply.status = SPAN("error");
	f.helper_reply.error =
	    (struct wire_fault){.set = true, .code = span_of(code), .msg = span_of(msg)};
	send_frame(h, to, &f);
}

void reply_data(struct helper *h, const struct reply_to *to, const struct buf *data)
{
	struct wire_frame f = {0};

	record(h, to, NULL, NULL);
	f.helper_reply.status = SPAN("ok");
	f.helper_reply.data = (struct span){data->data, data->len};
	send_frame(h, to, &f);
}

/* {"state":"…"} with the members of a built-in verb's answer behind it. */
static int join_state(const char *state, const struct outcome *o, struct buf *out)
{
	int r = buf_appendf(out, "{\"state\":\"%s\"", state);

	if (r == 0 && o->data && o->out.len > 2) {
		r = buf_append_char(out, ',');
		return r == 0 ? buf_append(out, o->out.data + 1, o->out.len - 1) : r;
	}
	return r == 0 ? buf_append_char(out, '}') : r;
}

void reply_outcome(struct helper *h, const struct reply_to *to, const struct outcome *o,
		   bool replayed, const char *state)
{
	struct wire_frame f = {0};
	struct wire_helper_reply *m = &f.helper_reply;
	struct buf data;

	buf_init(&data, WIRE_HELPER_REPLY_MAX);
	record(h, to, or_null(o->code), o);
	m->status = o->code[0] ? SPAN("error") : SPAN("ok");
	if (o->code[0])
		m->error = (struct wire_fault){
		    .set = true, .code = span_of(o->code), .msg = span_of(o->msg)};
	if (o->has_rc)
		m->rc = (struct wire_int){.v = o->rc, .set = true};
	if (!o->data && o->started) {
		m->stdout = (struct span){o->out.data ? o->out.data : "", o->out.len};
		m->stderr = (struct span){o->err.data ? o->err.data : "", o->err.len};
		m->truncated =
		    (struct wire_truncated){.set = true, .out = o->out_cut, .err = o->err_cut};
	}
	if (o->started) {
		m->started_at = (struct wire_time){.ms = o->started_ms, .set = true};
		m->finished_at = (struct wire_time){.ms = o->finished_ms, .set = true};
		m->duration_ms = (struct wire_uint){.v = (uint64_t)o->duration_ms, .set = true};
	}
	if (replayed)
		m->replayed = (struct wire_bool){.v = true, .set = true};
	if (state && join_state(state, o, &data) == 0)
		m->data = (struct span){data.data, data.len};
	else if (!state && o->data && o->out.len)
		m->data = (struct span){o->out.data, o->out.len};
	send_frame(h, to, &f);
	buf_fini(&data);
}
