/*
 * Whether this bridge still owns its agents: asked every few seconds, a batch at a time so that
 * neither this loop nor Redis stands still for the others, and when Redis is reached anew. What
 * another connection owns by now is closed; what Redis has forgotten is claimed again under the
 * epoch it had.
 */
#include "dispatch_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/crash.h"

#define CHECK_EVERY_MS	     5000
#define CHECK_BATCH	     250 /* a millisecond of Redis */
#define CLOSE_DECOMMISSIONED 4003

void dispatch_close_superseded(struct dispatch *d, struct holding *s)
{
	if (CRASH_OFF("fencing"))
		return;
	dispatch_forget_agent(d, s);
	d->ops->close_session(d->arg, s->sid, DISPATCH_CLOSE_SUPERSEDED, "superseded");
}

static void close_decommissioned(struct dispatch *d, struct holding *s)
{
	dispatch_forget_agent(d, s);
	d->ops->close_session(d->arg, s->sid, CLOSE_DECOMMISSIONED, "decommissioned");
}

static void reclaim_answered(struct dispatch *d, uint64_t sid, const struct redis_reply *reply)
{
	struct holding *s = dispatch_find(d, sid);
	struct span word = redis_str(redis_at(reply, 0));

	if (!s)
		return;
	s->reclaiming = false;
	store_note_refused(d->store, STORE_REFUSED_CLAIM, s->agent, reply);
	if (span_eq(word, "superseded")) {
		dispatch_close_superseded(d, s);
	} else if (span_eq(word, "decommissioned")) {
		close_decommissioned(d, s);
	} else if (span_eq(word, "kept")) {
		if (s->state == HOLDING_READY)
			dispatch_want_offer(d, s, true);
	}
}

static void on_reclaim(void *arg, const struct redis_reply *reply)
{
	struct dispatch_call *c = arg;

	reclaim_answered(c->d, c->sid, reply);
	dispatch_call_free(c);
}

void dispatch_reclaim(struct dispatch *d, struct holding *s)
{
	char epoch[24];
	struct span argv[] = {span_of(d->cfg.prefix),
			      span_of(s->agent),
			      span_of(d->cfg.bridge_id),
			      span_of(s->conn),
			      {0}};
	struct dispatch_call *c;

	if (s->reclaiming || dispatch_find_agent(d, s->agent) != s)
		return;
	c = dispatch_call_new(d, s->sid);
	(void)snprintf(epoch, sizeof(epoch), "%" PRIu64, s->epoch);
	argv[4] = span_of(epoch);
	if (!c || redis_eval(store_redis(d->store), script_get(SCRIPT_reclaim), on_reclaim, c, 0,
			     ARRAY_LEN(argv), argv) < 0)
		dispatch_call_free(c);
	else
		s->reclaiming = true;
}

struct check {
	struct dispatch *d;
	size_t n;
	uint64_t sid[CHECK_BATCH];
};

static void on_checked(struct dispatch *d, uint64_t sid, struct span what)
{
	struct holding *s = dispatch_find(d, sid);

	if (!s || dispatch_find_agent(d, s->agent) != s)
		return;
	if (span_eq(what, "superseded"))
		dispatch_close_superseded(d, s);
	else if (span_eq(what, "decommissioned"))
		close_decommissioned(d, s);
	else if (span_eq(what, "ownerless"))
		dispatch_reclaim(d, s);
	else if (s->state == HOLDING_READY)
		dispatch_want_offer(d, s, false);
}

static void on_check(void *arg, const struct redis_reply *reply)
{
	struct check *c = arg;
	struct dispatch *d = c->d;

	if (!d->closed)
		store_tell_refused(d->store, STORE_REFUSED_CHECK, NULL, reply);
	for (size_t i = 0; !d->closed && i + 1 < redis_len(reply); i += 2) {
		int64_t at = redis_int(redis_at(reply, i));

		if (at >= 0 && (size_t)at < c->n)
			on_checked(d, c->sid[at], redis_str(redis_at(reply, i + 1)));
	}
	free(c);
	dispatch_unhold(d);
}

/* One script for up to CHECK_BATCH sessions, from d->cursor on. */
static void check_batch(struct dispatch *d)
{
	static struct span argv[1 + 2 * CHECK_BATCH];
	struct check *c = calloc(1, sizeof(*c));
	size_t n = 0;

	if (!c)
		return;
	c->d = d;
	argv[n++] = span_of(d->cfg.prefix);
	for (; d->cursor && c->n < CHECK_BATCH; d->cursor = d->cursor->next) {
		struct holding *s = d->cursor;

		if (s->state == HOLDING_CLAIMING || dispatch_find_agent(d, s->agent) != s)
			continue;
		c->sid[c->n++] = s->sid;
		argv[n++] = span_of(s->agent);
		argv[n++] = span_of(s->owner);
	}
	dispatch_hold(d);
	if (!c->n || redis_eval(store_redis(d->store), script_get(SCRIPT_check), on_check, c, 0, n,
				argv) < 0) {
		free(c);
		dispatch_unhold(d);
	}
}

void dispatch_check_all(struct dispatch *d)
{
	if (!store_is_up(d->store))
		return;
	d->cursor = d->first;
	while (d->cursor)
		check_batch(d);
}

void dispatch_check_next(void *arg)
{
	struct dispatch *d = arg;

	loop_timer_start(d->check, loop_part_ms(d->by_sid.count, CHECK_BATCH, CHECK_EVERY_MS), 0);
	if (!store_is_up(d->store))
		return;
	if (!d->cursor)
		d->cursor = d->first;
	check_batch(d);
}
