/*
 * Holdings: claimed on connect, released when gone. dispatch_check.c looks every few seconds
 * whether they are still ours, dispatch_offer.c makes the offers, dispatch_ledger.c repeats those
 * that wait for results-writer, dispatch_result.c stores the results.
 */
#include "dispatch_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/grow.h"
#include "bridge_metrics.h"
#include "masking.h"

#define RETRY_MS	   300
#define DEAD_LETTER_AGENTS 16384

/* ---- looking up ---- */

struct holding *dispatch_find(const struct dispatch *d, uint64_t sid)
{
	for (struct map_link *l = map_first(&d->by_sid, map_hash_u64(sid)); l; l = map_next(l)) {
		struct holding *s = CONTAINER_OF(l, struct holding, by_sid);

		if (s->sid == sid)
			return s;
	}
	return NULL;
}

/* The session that owns the agent; older ones of the same agent are not in this map. */
struct holding *dispatch_find_agent(const struct dispatch *d, const char *agent)
{
	for (struct map_link *l = map_first(&d->by_agent, map_hash_str(agent)); l;
	     l = map_next(l)) {
		struct holding *s = CONTAINER_OF(l, struct holding, by_agent);

		if (!strcmp(s->agent, agent))
			return s;
	}
	return NULL;
}

struct dispatch_call *dispatch_call_new(struct dispatch *d, uint64_t sid)
{
	struct dispatch_call *c = calloc(1, sizeof(*c));

	if (c) {
		dispatch_hold(d);
		c->d = d;
		c->sid = sid;
		c->sent_ms = loop_now_ms(d->loop);
	}
	return c;
}

void dispatch_call_free(struct dispatch_call *c)
{
	struct dispatch *d = c ? c->d : NULL;

	free(c);
	if (d)
		dispatch_unhold(d);
}

void dispatch_hold(struct dispatch *d)
{
	d->calls++;
}

void dispatch_unhold(struct dispatch *d)
{
	if (--d->calls == 0 && d->closed)
		free(d);
}

/* ---- holdings ---- */

static void holding_free(struct holding *s)
{
	free(s->slot);
	free(s->agent);
	free(s->conn);
	free(s->owner);
	free(s->journal);
	free(s);
}

static struct holding *holding_new(struct dispatch *d, uint64_t sid, const struct store_conn *c)
{
	struct holding *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->sid = sid;
	s->agent = strdup(c->agent_id);
	s->conn = strdup(c->conn_id);
	if (!s->agent || !s->conn || map_grow(&d->by_sid) < 0) {
		holding_free(s);
		return NULL;
	}
	map_put(&d->by_sid, &s->by_sid, map_hash_u64(sid));
	s->next = d->first;
	if (d->first)
		d->first->prev = s;
	d->first = s;
	return s;
}

void dispatch_set_left(struct dispatch *d, struct holding *s, uint64_t left)
{
	metric_set(d->m_waiting, metric_value(d->m_waiting) + (double)left - (double)s->left);
	s->left = left;
}

void dispatch_forget_agent(struct dispatch *d, struct holding *s)
{
	if (dispatch_find_agent(d, s->agent) == s)
		map_remove(&d->by_agent, &s->by_agent);
}

static void holding_drop(struct dispatch *d, struct holding *s)
{
	dispatch_forget_agent(d, s);
	map_remove(&d->by_sid, &s->by_sid);
	if (d->cursor == s)
		d->cursor = s->next;
	if (s->prev)
		s->prev->next = s->next;
	else
		d->first = s->next;
	if (s->next)
		s->next->prev = s->prev;
	dispatch_set_left(d, s, 0);
	metric_set(d->m_in_flight, metric_value(d->m_in_flight) - (double)s->slots);
	holding_free(s);
}

/* ---- slots ---- */

struct slot *dispatch_slot_find(struct holding *s, const char *cid)
{
	for (size_t i = 0; i < s->slots; i++)
		if (!strcmp(s->slot[i].cid, cid))
			return &s->slot[i];
	return NULL;
}

struct slot *dispatch_slot_add(struct dispatch *d, struct holding *s, const char *cid)
{
	/* More than the window only when ids ended elsewhere: the oldest of those goes. */
	if (s->slots >= 2 * (size_t)d->cfg.max_in_flight + 8)
		dispatch_slot_remove(d, s, s->slot[0].cid);
	if (grow(&s->slot, s->slots, &s->slots_cap, 4, sizeof(*s->slot)) < 0)
		return NULL;
	s->slot[s->slots] = (struct slot){0};
	(void)snprintf(s->slot[s->slots].cid, sizeof(s->slot[0].cid), "%s", cid);
	metric_set(d->m_in_flight, metric_value(d->m_in_flight) + 1);
	return &s->slot[s->slots++];
}

void dispatch_slot_remove(struct dispatch *d, struct holding *s, const char *cid)
{
	struct slot *x = dispatch_slot_find(s, cid);
	size_t i;

	if (!x)
		return;
	i = (size_t)(x - s->slot);
	memmove(x, x + 1, (s->slots - i - 1) * sizeof(*x));
	s->slots--;
	metric_set(d->m_in_flight, metric_value(d->m_in_flight) - 1);
	if (!s->slots) { /* an idle agent holds no memory for commands */
		free(s->slot);
		s->slot = NULL;
		s->slots_cap = 0;
	}
}

/* ---- claim ---- */

static void release(struct dispatch *d, const char *agent, const char *owner)
{
	struct span argv[] = {span_of(d->cfg.prefix), span_of(agent), span_of(owner)};

	/* At the cap the owner stays behind, which harms nobody: the next CLAIM replaces it. */
	(void)!store_keep_script(d->store, SCRIPT_release, ARRAY_LEN(argv), argv, NULL, NULL);
}

static enum dispatch_claim claim_verdict(const struct redis_reply *reply)
{
	struct span word = redis_str(redis_at(reply, 0));

	if (span_eq(word, "claimed"))
		return DISPATCH_CLAIMED;
	if (span_eq(word, "nonce_seen"))
		return DISPATCH_NONCE_SEEN;
	if (span_eq(word, "decommissioned"))
		return DISPATCH_DECOMMISSIONED;
	if (span_eq(word, "revoked"))
		return DISPATCH_REVOKED;
	return DISPATCH_UNAVAILABLE;
}

/* The newest connection of an agent on this bridge takes its place; the older one closes. */
static int become_owner(struct dispatch *d, struct holding *s, struct span epoch)
{
	struct holding *former = dispatch_find_agent(d, s->agent);
	char text[24];

	if (span_copy(epoch, text, sizeof(text)) < 0 || map_grow(&d->by_agent) < 0)
		return -ENOMEM;
	s->epoch = strtoull(text, NULL, 10);
	if (asprintf(&s->owner, "%s|%s|%s", d->cfg.bridge_id, text, s->conn) < 0) {
		s->owner = NULL;
		return -ENOMEM;
	}
	s->state = HOLDING_OWNED;
	if (former)
		map_remove(&d->by_agent, &former->by_agent);
	map_put(&d->by_agent, &s->by_agent, map_hash_str(s->agent));
	if (former)
		d->ops->close_session(d->arg, former->sid, DISPATCH_CLOSE_SUPERSEDED, "superseded");
	return 0;
}

static void claim_answered(struct dispatch *d, uint64_t sid, const struct redis_reply *reply)
{
	struct holding *s = dispatch_find(d, sid);
	enum dispatch_claim verdict = claim_verdict(reply);

	if (!s)
		return;
	CRASH_POINT("dispatch.after_claim");
	store_note_refused(d->store, STORE_REFUSED_CLAIM, s->agent, reply);
	if (verdict == DISPATCH_CLAIMED && become_owner(d, s, redis_str(redis_at(reply, 1))) < 0)
		verdict = DISPATCH_UNAVAILABLE;
	if (s->gone_while_claiming) {
		if (s->owner)
			release(d, s->agent, s->owner);
		holding_drop(d, s);
		return;
	}
	d->ops->on_claimed(d->arg, sid, verdict, s->epoch, redis_int(redis_at(reply, 3)));
	s = dispatch_find(d, sid);
	if (s && verdict != DISPATCH_CLAIMED)
		holding_drop(d, s);
}

static void on_claim(void *arg, const struct redis_reply *reply)
{
	struct dispatch_call *c = arg;

	claim_answered(c->d, c->sid, reply);
	dispatch_call_free(c);
}

int dispatch_claim(struct dispatch *d, uint64_t sid, const struct store_conn *c, const char *nonce,
		   int64_t nonce_until_ms, const char *fingerprint)
{
	struct holding *s = holding_new(d, sid, c);
	struct dispatch_call *call = dispatch_call_new(d, sid);
	char keep[24];
	struct span argv[] = {span_of(d->cfg.prefix),
			      span_of(c->agent_id),
			      span_of(d->cfg.bridge_id),
			      span_of(c->conn_id),
			      span_of(nonce ? nonce : ""),
			      {0},
			      span_of(fingerprint ? fingerprint : "")};
	int64_t keep_ms = nonce_until_ms - clock_wall_ms();
	int r = -ENOMEM;

	(void)snprintf(keep, sizeof(keep), "%" PRId64, keep_ms > 1 ? keep_ms : 1);
	argv[5] = span_of(keep);
	CRASH_POINT("dispatch.before_claim");
	if (s && call)
		r = store_is_up(d->store)
			? redis_eval(store_redis(d->store), script_get(SCRIPT_claim), on_claim,
				     call, 0, ARRAY_LEN(argv), argv)
			: -ENOTCONN;
	if (r < 0) {
		dispatch_call_free(call);
		if (s)
			holding_drop(d, s);
	}
	return r;
}

void dispatch_ready(struct dispatch *d, uint64_t sid, const char *journal_id)
{
	struct holding *s = dispatch_find(d, sid);
	char *journal = journal_id ? strdup(journal_id) : NULL;

	if (!s || s->state == HOLDING_CLAIMING || (journal_id && !journal)) {
		free(journal);
		return;
	}
	free(s->journal);
	s->journal = journal;
	s->state = HOLDING_READY;
	dispatch_want_offer(d, s, true);
}

void dispatch_gone(struct dispatch *d, uint64_t sid)
{
	struct holding *s = dispatch_find(d, sid);

	if (!s)
		return;
	if (s->state == HOLDING_CLAIMING) {
		s->gone_while_claiming = true; /* on_claim releases what it may have taken */
		return;
	}
	if (dispatch_find_agent(d, s->agent) == s)
		release(d, s->agent, s->owner);
	holding_drop(d, s);
}

/* ---- again ---- */

static void on_retry(void *arg)
{
	struct dispatch *d = arg;
	struct holding *next;

	for (struct holding *s = d->first; s; s = next) {
		next = s->next;
		if (s->wanted && !s->offering)
			dispatch_want_offer(d, s, s->again);
	}
}

void dispatch_retry_soon(struct dispatch *d)
{
	if (!loop_timer_active(d->retry))
		loop_timer_start(d->retry, RETRY_MS, 0);
}

/* ---- from the store ---- */

/* Redis may have forgotten answers that were stored: what it holds as open is offered again. */
static void on_store_up(void *arg)
{
	struct dispatch *d = arg;

	for (struct holding *s = d->first; s; s = s->next)
		s->again = true;
	on_retry(arg);
	dispatch_check_all(d);
}

/* "o|<agent>": look into its mailbox. "s|<agent>|<epoch>": a later connection owns it. */
static void on_hint(void *arg, struct span hint)
{
	struct dispatch *d = arg;
	char text[AGENT_ID_MAX + 40];
	struct holding *s;
	char *epoch;

	if (span_copy(hint, text, sizeof(text)) < 0 || strlen(text) < 3)
		return;
	epoch = strchr(text + 2, '|');
	if (epoch)
		*epoch++ = '\0';
	s = dispatch_find_agent(d, text + 2);
	if (!s)
		return;
	if (text[0] == 'o' && s->state == HOLDING_READY)
		dispatch_want_offer(d, s, false);
	else if (text[0] == 's' && epoch && strtoull(epoch, NULL, 10) > s->epoch)
		dispatch_close_superseded(d, s);
}

void dispatch_poke(struct dispatch *d, const char *agent)
{
	struct holding *s = dispatch_find_agent(d, agent);

	if (s && s->state == HOLDING_READY)
		dispatch_want_offer(d, s, false);
}

/* ---- figures ---- */

struct dispatch_counts dispatch_counts_of(const struct dispatch *d, uint64_t sid)
{
	struct holding *s = dispatch_find(d, sid);
	struct dispatch_counts c = {0};

	if (s) {
		c.in_flight = s->slots;
		c.waiting = s->left > s->slots ? s->left - s->slots : 0;
	}
	return c;
}

/* ---- life ---- */

int dispatch_open(struct loop *l, struct metrics *m, struct store *s,
		  const struct dispatch_config *cfg, const struct dispatch_ops *ops, void *arg,
		  struct dispatch **ret)
{
	struct dispatch *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	d->loop = l;
	d->store = s;
	d->ops = ops;
	d->arg = arg;
	d->cfg = *cfg;
	d->cfg.prefix = store_prefix(s);
	d->cfg.bridge_id = store_bridge_id(s);
	(void)snprintf(d->window, sizeof(d->window), "%" PRId64, cfg->max_in_flight);
	d->ledger_ms = DISPATCH_LEDGER_FIRST_MS;
	d->m_in_flight = metrics_get(m, M_commands_in_flight, NULL, NULL);
	d->m_waiting = metrics_get(m, M_commands_waiting, NULL, NULL);
	d->m_dispatch = metrics_get(m, M_command_dispatch, NULL, NULL);
	d->part = (struct store_part){.on_up = on_store_up, .on_hint = on_hint, .arg = d};
	(void)!masking_load(d->cfg.verbs_dir, true, &d->verbs);
	r = wire_decoder_new(DISPATCH_RESULT_MAX_BYTES, &d->decoder);
	if (r == 0)
		r = ratelimit_new(DEAD_LETTER_AGENTS, &d->dead_letters);
	if (r == 0)
		r = loop_timer_new(l, dispatch_check_next, d, &d->check);
	if (r == 0)
		r = loop_timer_new(l, on_retry, d, &d->retry);
	if (r == 0)
		r = loop_timer_new(l, dispatch_ledger_ask_again, d, &d->ledger);
	if (r < 0) {
		dispatch_close(d);
		return r;
	}
	store_join(s, &d->part);
	dispatch_check_next(d);
	*ret = d;
	return 0;
}

bool dispatch_reload(struct dispatch *d)
{
	struct verbs *fresh = NULL;

	if (masking_load(d->cfg.verbs_dir, false, &fresh) < 0)
		return false;
	verbs_free(d->verbs);
	d->verbs = fresh;
	return true;
}

void dispatch_close(struct dispatch *d)
{
	if (!d)
		return;
	if (d->part.arg)
		store_leave(d->store, &d->part);
	loop_timer_close(d->check);
	loop_timer_close(d->retry);
	loop_timer_close(d->ledger);
	while (d->first)
		holding_drop(d, d->first);
	map_fini(&d->by_sid);
	map_fini(&d->by_agent);
	verbs_free(d->verbs);
	wire_decoder_free(d->decoder);
	ratelimit_free(d->dead_letters);
	d->closed = true;
	dispatch_hold(d);
	dispatch_unhold(d);
}
