/* One line from a peer: MAC, then JSON, then time, then nonce. Nothing is parsed that is not
 * authentic. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "helper.h"
#include "line.h"

static bool rate_allows(struct helper *h)
{
	int64_t now = clock_boot_ms();
	double rate = (double)h->cfg->rate;

	if (h->cfg->rate == 0)
		return true;
	h->rate_tokens += rate * (double)(now - h->rate_at_ms) / 1000;
	h->rate_at_ms = now;
	if (h->rate_tokens > rate)
		h->rate_tokens = rate;
	if (h->rate_tokens < 1)
		return false;
	h->rate_tokens -= 1;
	return true;
}

struct verdict {
	const char *code, *msg;
};

static struct verdict check_time(const struct wire_helper_request *m)
{
	int64_t now = clock_wall_ms(), issued = m->issued_at.ms, expires = m->expires_at.ms;

	if (expires - issued > HELPER_LIFETIME_MS)
		return (struct verdict){"bad_request",
					"expires_at: more than 60 s after issued_at"};
	if (expires <= issued)
		return (struct verdict){"expired", "expires_at: not after issued_at"};
	if (expires < now)
		return (struct verdict){"expired", "expires_at: is past"};
	if (issued > now + HELPER_SKEW_MS || issued < now - HELPER_SKEW_MS)
		return (struct verdict){"expired",
					"issued_at: more than 60 s from this host's clock"};
	return (struct verdict){0};
}

/* Remembered on disk too, so that a restart does not forget; not synced: it must outlive the
 * process. */
static struct verdict take_nonce(struct helper *h, const struct request *q)
{
	int64_t until = q->m->expires_at.ms + HELPER_SKEW_MS;
	char line[160];

	int r = nonces_add(h->nonces, q->agent_id, q->m->nonce.p, q->m->nonce.n, until,
			   clock_wall_ms());
	if (r == -EEXIST)
		return (struct verdict){"replayed", "nonce: was used before; use a fresh one"};
	if (r < 0)
		return (struct verdict){"busy", "too many requests are remembered; try again"};
	/* The newline comes first: a line cut short on a full disk must not swallow the next. */
	int n = snprintf(line, sizeof line, "\n%lld %s " SPAN_FMT, (long long)until, q->agent_id,
			 SPAN_ARG(q->m->nonce));
	if (write(h->nonce_log, line, (size_t)n) != n)
		return (struct verdict){"internal",
					"the nonce could not be kept; nothing was started"};
	return (struct verdict){0};
}

/* Not authentic: answered, and the connection ends. */
static void refuse_peer(struct helper *h, struct conn *c, const char *code, const char *msg)
{
	struct reply_to to = {
	    .conn_id = conn_id(c), .peer = *conn_peer(c), .received_boot_ms = clock_boot_ms()};

	reply_error(h, &to, code, msg);
	conn_close_after_reply(c);
}

void request_refuse_long(struct helper *h, struct conn *c)
{
	refuse_peer(h, c, "bad_request", "a request may be 64 KiB at most");
}

static void refuse_json(struct helper *h, struct conn *c, const struct wire_refusal_info *info)
{
	struct reply_to to = {
	    .conn_id = conn_id(c), .peer = *conn_peer(c), .received_boot_ms = clock_boot_ms()};

	if (!info->correlation_id.p ||
	    span_copy(info->correlation_id, to.correlation_id, sizeof to.correlation_id) < 0)
		to.correlation_id[0] = 0;
	reply_error(h, &to, "bad_request", info->msg);
}

static int copy_ids(struct request *q)
{
	struct span op = q->m->op.p ? q->m->op : SPAN("run");

	if (span_copy(q->m->correlation_id, q->correlation_id, sizeof q->correlation_id) < 0 ||
	    span_copy(q->m->agent_id, q->agent_id, sizeof q->agent_id) < 0 ||
	    span_copy(op, q->op, sizeof q->op) < 0)
		return -EINVAL;
	return q->m->verb.p ? span_copy(q->m->verb, q->verb, sizeof q->verb) : 0;
}

void request_handle(struct helper *h, struct conn *c, const char *line, size_t n)
{
	struct wire_refusal_info info = {0};
	struct wire_frame frame;
	struct reply_to to;
	struct span json;

	if (!line_open(&h->secret, line, n, &json)) {
		refuse_peer(h, c, "bad_mac", "the MAC is missing or wrong");
		return;
	}
	bool room = conn_begin(c);
	struct request q = {.conn = c, .m = &frame.helper_request};
	if (wire_decode_as(h->decoder, WIRE_HELPER_REQUEST, json.p, json.n, &frame, &info) !=
		WIRE_OK ||
	    copy_ids(&q) < 0) {
		refuse_json(h, c, &info);
		return;
	}
	reply_to_request(&q, &to);
	struct verdict v = check_time(q.m);
	if (!v.code)
		v = take_nonce(h, &q);
	if (!v.code && q.m->v.v != 1)
		v = (struct verdict){"bad_request", "v: only 1 is known"};
	if (!v.code && (!room || !rate_allows(h)))
		v = (struct verdict){"busy", "too many requests; try again later"};
	if (v.code)
		reply_error(h, &to, v.code, v.msg);
	else
		dispatch_request(h, &q);
}
