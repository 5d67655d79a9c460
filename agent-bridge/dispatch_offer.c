/*
 * Offers: one OFFER a session at a time. Its answer is used only while it is fresh, because a
 * bridge that was frozen may hold an answer that others have long overtaken; it then asks again.
 */
#include "dispatch_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"

#define FIELDS_A_COMMAND 10
#define FIRST_COMMAND	 5
#define FRESH_MS	 2000
#define CANCEL_AGAIN_MS	 25000

static void start_offer(struct dispatch *d, struct holding *s);

static int send_command(struct dispatch *d, struct holding *s, const char *cid,
			const struct redis_reply *const *f, int64_t elapsed_ms)
{
	char by[256], *signature = NULL, verb[129];
	struct dispatch_command c = {.correlation_id = cid, .agent_id = s->agent, .verb = verb};
	struct span signed_by = redis_str(f[8]);
	int64_t left = redis_int(f[4]) - elapsed_ms;
	int r;

	if (left <= 0)
		return 0; /* EXPIRE or the next OFFER ends it */
	if (span_copy(redis_str(f[2]), verb, sizeof(verb)) < 0 ||
	    span_copy(redis_str(f[7]), by, sizeof(by)) < 0)
		return 0;
	if (signed_by.n) {
		signature = span_dup(signed_by);
		if (!signature)
			return -EAGAIN;
	}
	c.signature = signature;
	c.issued_by = by[0] ? by : NULL;
	c.args = redis_str(f[3]);
	c.expires_at_ms = redis_int(f[5]);
	c.ttl_remaining_ms = left;
	if (clock_parse_rfc3339(redis_str(f[6]).p, redis_str(f[6]).n, &c.issued_at_ms) < 0)
		c.issued_at_ms = 0;
	r = d->ops->send_command(d->arg, s->sid, &c);
	free(signature);
	if (r == 0)
		metric_observe(d->m_dispatch, (double)(redis_int(f[9]) + elapsed_ms) / 1e3);
	return r;
}

/* One entry of the answer; -EAGAIN when the socket is full, -ENOENT when the session is gone. */
static int take_entry(struct dispatch *d, struct holding *s, const struct redis_reply *const *f,
		      int64_t elapsed_ms)
{
	char cid[CORRELATION_ID_MAX + 1];
	bool cancel = span_eq(redis_str(f[0]), "cancel");
	int64_t now = loop_now_ms(d->loop);
	uint64_t sid = s->sid;
	struct slot *slot;
	int r;

	if (span_copy(redis_str(f[1]), cid, sizeof(cid)) < 0)
		return 0;
	slot = dispatch_slot_find(s, cid);
	if (!slot)
		slot = dispatch_slot_add(d, s, cid);
	if (!slot)
		return -EAGAIN;
	slot->seen = true;
	if (cancel ? slot->cancelled_ms && now - slot->cancelled_ms < CANCEL_AGAIN_MS
		   : slot->commanded)
		return 0;
	if (cancel)
		r = d->ops->send_cancel(d->arg, sid, cid,
					redis_int(f[4]) == 0 ? "expired" : "cancelled");
	else
		r = send_command(d, s, cid, f, elapsed_ms);
	if (r < 0 || dispatch_find(d, sid) != s)
		return r < 0 ? r : -ENOENT;
	slot = dispatch_slot_find(s, cid);
	if (slot && cancel)
		slot->cancelled_ms = now;
	else if (slot)
		slot->commanded = true;
	return 0;
}

/* What a full OFFER did not name has ended elsewhere: another connection, the writer, an operator.
 */
static void drop_unseen(struct dispatch *d, struct holding *s)
{
	for (size_t i = s->slots; i-- > 0;)
		if (!s->slot[i].seen)
			dispatch_slot_remove(d, s, s->slot[i].cid);
}

static void take_answer(struct dispatch *d, struct holding *s, const struct redis_reply *reply,
			int64_t elapsed_ms, bool again)
{
	const struct redis_reply *f[FIELDS_A_COMMAND];
	bool more = redis_int(redis_at(reply, 4)) == 1;
	uint64_t sid = s->sid;

	dispatch_set_left(d, s, (uint64_t)redis_int(redis_at(reply, 0)));
	for (size_t i = 0; i < s->slots; i++)
		s->slot[i].seen = false;
	for (size_t i = FIRST_COMMAND; i + FIELDS_A_COMMAND <= redis_len(reply);
	     i += FIELDS_A_COMMAND) {
		int r;

		for (size_t k = 0; k < FIELDS_A_COMMAND; k++)
			f[k] = redis_at(reply, i + k);
		CRASH_POINT("dispatch.after_offer");
		r = take_entry(d, s, f, elapsed_ms);
		if (r == -ENOENT)
			return;
		if (r < 0) { /* dispatch_writable asks again for what is missing */
			s->blocked = true;
			s->wanted = s->again = true;
			break;
		}
	}
	if (dispatch_find(d, sid) != s)
		return;
	if (more) {
		s->wanted = true;
		s->again = s->again || again;
	} else if (again && !s->blocked) {
		drop_unseen(d, s);
	}
	if (s->wanted && !s->blocked)
		start_offer(d, s);
}

static void offer_answered(struct dispatch *d, uint64_t sid, int64_t sent_ms, bool again,
			   const struct redis_reply *reply)
{
	struct holding *s = dispatch_find(d, sid);
	int64_t elapsed_ms = loop_now_ms(d->loop) - sent_ms;

	if (!s)
		return;
	s->offering = false;
	if (redis_type(reply) == REDIS_ARR && elapsed_ms <= FRESH_MS) {
		bool waits = redis_int(redis_at(reply, 3)) == 1;
		take_answer(d, s, reply, elapsed_ms, again);
		dispatch_ledger_waits(d, sid, waits);
		return;
	}
	if (redis_type(reply) == REDIS_STR) {
		dispatch_reclaim(d, s); /* FENCED: overtaken, or Redis forgot us */
		return;
	}
	/* Unknown, refused or stale: what it offered must be offered again. */
	store_note_refused(d->store, STORE_REFUSED_OFFER, s->agent, reply);
	s->wanted = s->again = true;
	dispatch_retry_soon(d);
}

static void on_offer(void *arg, const struct redis_reply *reply)
{
	struct dispatch_call *c = arg;

	if (redis_type(reply) == REDIS_ARR)
		store_note_offers(c->d->store, redis_at(reply, 1), redis_at(reply, 2));
	offer_answered(c->d, c->sid, c->sent_ms, c->again, reply);
	dispatch_call_free(c);
}

static void start_offer(struct dispatch *d, struct holding *s)
{
	char epoch[24];
	struct span argv[] = {span_of(d->cfg.prefix),
			      span_of(s->agent),
			      span_of(s->owner),
			      span_of(s->journal ? s->journal : ""),
			      span_of(d->window),
			      s->again ? SPAN("1") : SPAN("0"),
			      span_of(d->cfg.bridge_id),
			      span_of(s->conn),
			      {0},
			      store_now_text(d->store),
			      store_offers(d->store)};
	struct dispatch_call *c = dispatch_call_new(d, s->sid);

	(void)snprintf(epoch, sizeof(epoch), "%" PRIu64, s->epoch);
	argv[8] = span_of(epoch);
	if (c)
		c->again = s->again;
	CRASH_POINT("dispatch.before_offer");
	if (!c || redis_eval(store_redis(d->store), script_get(SCRIPT_offer), on_offer, c, 0,
			     ARRAY_LEN(argv), argv) < 0) {
		dispatch_call_free(c);
		s->wanted = true;
		dispatch_retry_soon(d);
		return;
	}
	s->offering = true;
	s->wanted = s->again = false;
}

void dispatch_want_offer(struct dispatch *d, struct holding *s, bool again)
{
	s->wanted = true;
	s->again = s->again || again;
	/* While Redis is away nothing is tried; on_store_up comes back to `wanted`. */
	if (s->state == HOLDING_READY && !s->offering && !s->blocked && store_is_up(d->store) &&
	    dispatch_find_agent(d, s->agent) == s)
		start_offer(d, s);
}

void dispatch_writable(struct dispatch *d, uint64_t sid)
{
	struct holding *s = dispatch_find(d, sid);

	if (!s || !s->blocked)
		return;
	s->blocked = false;
	if (s->wanted)
		dispatch_want_offer(d, s, s->again);
}

void dispatch_accepted(struct dispatch *d, uint64_t sid, const char *correlation_id)
{
	struct holding *s = dispatch_find(d, sid);
	struct slot *slot = s ? dispatch_slot_find(s, correlation_id) : NULL;
	char key[96], epoch[24];
	struct span argv[] = {SPAN("XADD"),
			      {0},
			      SPAN("*"),
			      SPAN("correlation_id"),
			      span_of(correlation_id),
			      SPAN("agent_id"),
			      {0},
			      SPAN("event"),
			      SPAN("accepted"),
			      SPAN("bridge_id"),
			      span_of(d->cfg.bridge_id),
			      SPAN("conn_id"),
			      {0},
			      SPAN("epoch"),
			      {0},
			      SPAN("received_at"),
			      store_now_text(d->store)};

	/* An ack of something that was not sent on this connection says nothing. */
	if (!slot || slot->accepted)
		return;
	slot->accepted = true;
	(void)snprintf(key, sizeof(key), "%s.command_events", d->cfg.prefix);
	(void)snprintf(epoch, sizeof(epoch), "%" PRIu64, s->epoch);
	argv[1] = span_of(key);
	argv[6] = span_of(s->agent);
	argv[12] = span_of(s->conn);
	argv[14] = span_of(epoch);
	CRASH_POINT("dispatch.before_event");
	/* At the cap the event is lost, the command is not. */
	(void)!store_keep_cmd(d->store, ARRAY_LEN(argv), argv, NULL, NULL);
}
