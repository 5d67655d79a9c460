/*
 * The router. States: FOLLOWER (asks for the lease) → LEADER, which at any moment does one of
 *   READING  ROUTER READ under way
 *   ROUTING  ROUTE under way
 *   WAITING  blocked in XREAD on a connection of its own until there is something new
 *   PAUSED   a timer runs after an answer that was unknown or asked to wait
 * Only scripts that check the lease change anything; the blocked XREAD only looks. Whatever goes
 * wrong, the remedy is the same: read the pending entries again, since ROUTE may be repeated.
 * router_chores.c does what else a leader does: ending what is past its time, and trimming.
 */
#include "router_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crash.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "bridge_metrics.h"

#define LEASE_MS	  4000
#define LEASE_EVERY_MS	  1000
#define PAUSE_MS	  200
#define ROUTE_HEAD	  5
#define ROUTE_FIELDS	  13
#define FIRST_ROUTED	  2 /* in the answer */
#define WAIT_BLOCK_MS	  5000
#define PAYLOAD_MAX_BYTES 4096

static void read_next(struct router *r);

/* ---- calls ----
 *
 * Every answer still to come keeps the router's memory. One that was asked for under an earlier
 * lease is not used, since what it read may have been overtaken; it is read again as pending. */

struct call {
	struct router *r;
	void (*answered)(struct router *r, const struct redis_reply *reply);
	uint64_t term;
};

static void release(struct router *r)
{
	if (--r->calls == 0 && r->closed)
		free(r);
}

static void on_call(void *arg, const struct redis_reply *reply)
{
	struct call *c = arg;
	struct router *r = c->r;

	if (!r->closed && c->term == r->term)
		c->answered(r, reply);
	free(c);
	release(r);
}

static struct call *call_new(struct router *r,
			     void (*answered)(struct router *, const struct redis_reply *))
{
	struct call *c = malloc(sizeof(*c));

	if (!c)
		return NULL;
	*c = (struct call){r, answered, r->term};
	r->calls++;
	return c;
}

static int call_done(struct call *c, int error)
{
	if (error < 0) {
		release(c->r);
		free(c);
	}
	return error;
}

/* -errno: answered is not called. */
int router_eval(struct router *r, enum script s,
		void (*answered)(struct router *, const struct redis_reply *), size_t argc,
		const struct span *argv)
{
	struct call *c = call_new(r, answered);

	if (!c)
		return -ENOMEM;
	return call_done(
	    c, redis_eval(store_redis(r->store), script_get(s), on_call, c, 0, argc, argv));
}

bool router_is_fenced(const struct redis_reply *reply)
{
	return redis_type(reply) == REDIS_STR && span_eq(redis_str(reply), "FENCED");
}

/* ---- leading ---- */

void router_step_down(struct router *r, const char *why)
{
	if (!r->leader)
		return;
	r->leader = false;
	r->term++;
	r->lease_asked = r->expiring = r->trimming = r->wait_asked = false;
	r->token[0] = r->lease[0] = '\0';
	r->step = IDLE;
	loop_timer_stop(r->pause);
	loop_timer_stop(r->expire);
	loop_timer_stop(r->trim);
	metric_set(r->m_leader, 0);
	LOG_INFO(FIELDS(.event = "router_follows", .error = why), "no longer the router");
}

static void pause_then_read(struct router *r)
{
	r->step = PAUSED;
	r->pending = true;
	loop_timer_start(r->pause, PAUSE_MS, 0);
}

static void on_pause_over(void *arg)
{
	struct router *r = arg;

	if (r->leader && r->step == PAUSED)
		read_next(r);
}

static void group_answered(struct router *r, const struct redis_reply *reply)
{
	/* BUSYGROUP: it is there. Others: the next read will say so again. */
	store_note_passing(r->store, redis_error_class(reply));
	if (reply &&
	    (redis_type(reply) == REDIS_STATUS || redis_error_class(reply) == REDIS_E_BUSYGROUP))
		read_next(r);
	else
		pause_then_read(r);
}

static void create_group(struct router *r)
{
	struct call *c = call_new(r, group_answered);

	r->step = READING;
	if (!c || call_done(c, redis_cmdf(store_redis(r->store), on_call, c,
					  "XGROUP CREATE %s.commands agent-bridge 0 MKSTREAM",
					  store_prefix(r->store))) < 0)
		pause_then_read(r);
}

static void lead(struct router *r)
{
	r->leader = true;
	r->pending = true;
	r->step = IDLE;
	metric_set(r->m_leader, 1);
	LOG_INFO(FIELDS(.event = "router_leads", .detail = r->lease), "this bridge is the router");
	CRASH_POINT("router.after_lease");
	create_group(r);
	router_expire_in(r, 0);
	loop_timer_start(r->trim, ROUTER_TRIM_BUSY_MS, 0);
}

static void take_lease(struct router *r, const struct redis_reply *reply)
{
	struct span token = redis_str(redis_at(reply, 0)), word = redis_str(redis_at(reply, 1));
	int64_t held_ms = redis_int(redis_at(reply, 2));

	store_note_offers(r->store, redis_at(reply, 3), redis_at(reply, 4));
	if (token.n && span_eq(word, "kept"))
		return;
	if (token.n) {
		router_step_down(r, "the lease had lapsed");
		if (span_copy(token, r->token, sizeof(r->token)) < 0)
			return;
		(void)snprintf(r->lease, sizeof(r->lease), "%s|%s", store_bridge_id(r->store),
			       r->token);
		lead(r);
		return;
	}
	router_step_down(r, "another bridge holds the lease");
	if (held_ms >= 0 && held_ms + 10 < LEASE_EVERY_MS)
		loop_timer_start(r->tick, held_ms + 10, LEASE_EVERY_MS);
}

static void lease_answered(struct router *r, const struct redis_reply *reply)
{
	r->lease_asked = false;
	if (redis_type(reply) != REDIS_ARR) {
		store_tell_refused(r->store, STORE_REFUSED_LEADING, NULL, reply);
		return; /* every step is fenced: nothing to undo */
	}
	if (r->back_told)
		r->back = false;
	take_lease(r, reply);
	if (r->back) /* it was asked before */
		loop_timer_start(r->tick, 0, LEASE_EVERY_MS);
}

/* Nothing is routed or ended before Redis was told what it may have forgotten. */
bool router_must_tell(const struct router *r)
{
	return r->back || store_may_have_forgotten(r->store);
}

static void on_tick(void *arg)
{
	struct router *r = arg;
	char ttl[16];
	struct span argv[] = {span_of(store_prefix(r->store)),
			      span_of(store_bridge_id(r->store)),
			      span_of(r->token),
			      {0},
			      store_offers(r->store),
			      r->back ? SPAN("1") : SPAN("")};

	if (r->lease_asked || !redis_is_up(store_redis(r->store)))
		return;
	(void)snprintf(ttl, sizeof(ttl), "%d", LEASE_MS);
	argv[3] = span_of(ttl);
	r->back_told = r->back;
	r->lease_asked =
	    router_eval(r, SCRIPT_router_lease, lease_answered, ARRAY_LEN(argv), argv) == 0;
}

/* ---- waiting for something new ---- */

static void wait_answered(struct router *r, const struct redis_reply *reply)
{
	r->wait_asked = false;
	if (r->step != WAITING)
		return;
	/* Nothing came: a moment to look whether anything is left behind, or the group gone. */
	r->pending = r->pending || redis_type(reply) == REDIS_NIL;
	if (reply && redis_type(reply) != REDIS_ERR)
		read_next(r);
	else
		pause_then_read(r);
}

static void wait_for_more(struct router *r)
{
	struct call *c;

	r->step = WAITING;
	if (r->wait_asked)
		return;
	c = call_new(r, wait_answered);
	if (!c || call_done(c, redis_cmdf(r->wait, on_call, c,
					  "XREAD COUNT 1 BLOCK %d STREAMS %s.commands %s",
					  WAIT_BLOCK_MS, store_prefix(r->store), r->last_id)) < 0) {
		pause_then_read(r); /* without that connection: look every now and then */
		r->pending = false;
		return;
	}
	r->wait_asked = true;
}

/* ---- reading and routing ---- */

/* What a dead letter may show of an entry: everything but the parameters. */
static void drop_entry(struct router *r, const struct stream_entry *e, const char *reason)
{
	struct buf json;
	struct jsonw w;

	buf_init(&json, PAYLOAD_MAX_BYTES);
	jsonw_init(&w, &json);
	jsonw_obj(&w, NULL);
	for (size_t i = 0; i + 1 < redis_len(e->fields) && i < 40; i += 2) {
		struct span name = redis_str(redis_at(e->fields, i)),
			    value = redis_str(redis_at(e->fields, i + 1));
		char key[65];

		if (span_copy((struct span){name.p, name.n < 64 ? name.n : 64}, key, sizeof(key)) <
		    0)
			continue;
		if (!strcmp(key, "params") || !strcmp(key, "signature"))
			value = SPAN("***");
		jsonw_strn(&w, key, value.p, value.n < 128 ? value.n : 128);
	}
	jsonw_obj_end(&w);
	store_dead_letter(r->store, "commands", e->id, reason,
			  w.err ? SPAN("{}") : (struct span){json.data, json.len});
	buf_fini(&json);
}

static size_t put_command(const struct command *c, struct span id, struct span *at, char *exp,
			  size_t exp_cap)
{
	static const char *const kinds[] = {[COMMAND_RUN] = "run",
					    [COMMAND_CANCEL] = "cancel",
					    [COMMAND_REJECT] = "reject",
					    [COMMAND_DROP] = "drop"};
	bool reject = c->kind == COMMAND_REJECT;

	(void)snprintf(exp, exp_cap, "%" PRId64, c->expires_at_ms);
	at[0] = id;
	at[1] = span_of(kinds[c->kind]);
	at[2] = span_of(c->cid);
	at[3] = span_of(c->agent);
	at[4] = span_of(c->digest);
	at[5] = reject ? span_of(c->code) : c->verb;
	at[6] = reject ? SPAN("") : c->params; /* which may be what is wrong, and large */
	at[7] = span_of(exp);
	at[8] = span_of(c->expires_at);
	at[9] = span_of(c->issued_at);
	at[10] = c->by;
	at[11] = reject ? SPAN("") : c->signature;
	at[12] = reject ? span_of(c->reason) : c->maybe_ran ? SPAN("1") : SPAN("");
	return ROUTE_FIELDS;
}

static void count_routed(struct router *r, const struct command *c, const char *id,
			 struct span what)
{
	char word[24];
	enum log_level level = LOG_LEVEL_DEBUG;

	if (span_copy(what, word, sizeof(word)) < 0)
		return;
	metric_add(metrics_get(r->metrics, M_commands_routed, word, NULL), 1);
	if (c->kind == COMMAND_REJECT || c->kind == COMMAND_DROP || !strcmp(word, "duplicate") ||
	    !strcmp(word, "mismatch") || !strcmp(word, "rejected"))
		level = LOG_LEVEL_WARN;
	LOG_AT(level,
	       FIELDS(.event = "routed", .agent_id = c->agent[0] ? c->agent : NULL,
		      .correlation_id = c->cid[0] ? c->cid : NULL, .error = c->code, .detail = word,
		      .stream = id),
	       "command %s%s%s", word, c->reason[0] ? ": " : "", c->reason);
}

static void route_answered(struct router *r, const struct redis_reply *reply)
{
	int64_t soonest = INT64_MAX;
	size_t n = r->batch_n;

	CRASH_POINT("router.after_route");
	if (router_is_fenced(reply)) {
		router_step_down(r, "fenced");
		return;
	}
	if (redis_type(reply) != REDIS_ARR || redis_len(reply) != FIRST_ROUTED + 2 * n) {
		store_note_refused(r->store, STORE_REFUSED_ROUTING, NULL, reply);
		pause_then_read(r);
		return;
	}
	store_note_offers(r->store, redis_at(reply, 0), redis_at(reply, 1));
	for (size_t i = 0; i < n; i++) {
		const struct redis_reply *what = redis_at(reply, FIRST_ROUTED + 2 * i),
					 *owner = redis_at(reply, FIRST_ROUTED + 2 * i + 1);
		const struct command *c = &r->batch[i];
		int64_t ms = 0;

		count_routed(r, c, r->batch_id[i], redis_str(what));
		if (r->dispatch && span_eq(redis_str(owner), store_bridge_id(r->store)))
			dispatch_poke(r->dispatch, c->agent);
		if (c->kind == COMMAND_RUN && stream_entry_ms(span_of(r->batch_id[i]), &ms) == 0 &&
		    c->expires_at_ms - ms < soonest)
			soonest = c->expires_at_ms - ms;
	}
	if (soonest < ROUTER_EXPIRE_MAX_WAIT_MS)
		router_expire_in(r, soonest);
	if (r->pending || n == ROUTER_BATCH)
		read_next(r);
	else
		wait_for_more(r);
}

static void route(struct router *r, const struct redis_reply *entries)
{
	static struct span argv[ROUTE_HEAD + ROUTER_BATCH * ROUTE_FIELDS];
	static char exp[ROUTER_BATCH][24];
	size_t n = ROUTE_HEAD;

	argv[0] = span_of(store_prefix(r->store));
	argv[1] = span_of(r->lease);
	argv[2] = span_of(store_bridge_id(r->store));
	argv[3] = store_now_text(r->store);
	argv[4] = store_offers(r->store);
	r->batch_n = 0;
	for (size_t i = 0; i < redis_len(entries) && i < ROUTER_BATCH; i++) {
		struct command *c = &r->batch[r->batch_n];
		struct stream_entry e;

		if (stream_entry_parse(redis_at(entries, i), &e) < 0 ||
		    span_copy(e.id, r->batch_id[r->batch_n], sizeof(r->batch_id[0])) < 0)
			continue;
		command_parse(&e, &r->allowed, c);
		if (!e.fields) {
			LOG_ERROR(
			    FIELDS(.event = "commands_lost", .detail = r->batch_id[r->batch_n]),
			    "an entry of the command stream was deleted before it was routed");
			(void)snprintf(c->reason, sizeof(c->reason),
				       "deleted before it was routed");
		}
		if (c->kind == COMMAND_DROP)
			drop_entry(r, &e, c->code);
		n += put_command(c, e.id, argv + n, exp[r->batch_n], sizeof(exp[0]));
		r->batch_n++;
	}
	if (loop_now_ms(r->loop) >= r->trim_busy_until_ms && !r->trimming)
		loop_timer_start(r->trim, ROUTER_TRIM_BUSY_MS, 0);
	r->trim_busy_until_ms = loop_now_ms(r->loop) + ROUTER_TRIM_BUSY_FOR_MS;
	CRASH_POINT("router.before_route");
	r->step = ROUTING;
	if (router_eval(r, SCRIPT_route, route_answered, n, argv) < 0)
		pause_then_read(r);
}

static void read_answered(struct router *r, const struct redis_reply *reply)
{
	const struct redis_reply *entries = redis_at(reply, 1);

	CRASH_POINT("router.after_read");
	if (router_is_fenced(reply)) {
		router_step_down(r, "fenced");
	} else if (redis_error_class(reply) == REDIS_E_NOGROUP) {
		LOG_WARN(FIELDS(.event = "group_missing", .stream = "commands"),
			 "the consumer group agent-bridge is gone; it is made anew from the start");
		r->pending = true;
		create_group(r);
	} else if (redis_type(reply) != REDIS_ARR) {
		store_note_refused(r->store, STORE_REFUSED_ROUTING, NULL, reply);
		pause_then_read(r);
	} else if (redis_len(entries)) {
		if (!r->pending &&
		    span_copy(redis_str(redis_at(reply, 0)), r->last_id, sizeof(r->last_id)) < 0)
			r->last_id[0] = '\0';
		route(r, entries);
	} else if (r->pending) {
		r->pending = false;
		read_next(r);
	} else if (span_copy(redis_str(redis_at(reply, 0)), r->last_id, sizeof(r->last_id)) < 0) {
		pause_then_read(r);
	} else {
		wait_for_more(r);
	}
}

static void read_next(struct router *r)
{
	char count[8];
	struct span argv[] = {span_of(store_prefix(r->store)),
			      span_of(r->lease),
			      r->pending ? SPAN("0") : SPAN(">"),
			      {0}};

	(void)snprintf(count, sizeof(count), "%d", ROUTER_BATCH);
	argv[3] = span_of(count);
	r->step = READING;
	if (router_must_tell(r) ||
	    router_eval(r, SCRIPT_router_read, read_answered, ARRAY_LEN(argv), argv) < 0)
		pause_then_read(r);
}

/* ---- life ---- */

static void on_store_up(void *arg)
{
	struct router *r = arg;

	if (store_may_have_forgotten(r->store))
		r->back = !span_eq(store_offers(r->store), "-1"); /* else it has never been there */
	on_tick(r);
}

static void on_store_moved(void *arg)
{
	struct router *r = arg;

	redis_reconnect(r->wait, "Redis has moved");
}

static void on_wait_up(void *arg)
{
	struct router *r = arg;

	if (r->leader && r->step == PAUSED && !r->pending)
		read_next(r);
}

static int make_timers(struct router *r)
{
	int error = loop_timer_new(r->loop, on_tick, r, &r->tick);

	if (error == 0)
		error = loop_timer_new(r->loop, on_pause_over, r, &r->pause);
	if (error == 0)
		error = loop_timer_new(r->loop, router_on_expire_timer, r, &r->expire);
	if (error == 0)
		error = loop_timer_new(r->loop, router_on_trim_timer, r, &r->trim);
	return error;
}

static const struct redis_ops wait_ops = {on_wait_up, NULL};

int router_open(struct loop *l, struct metrics *m, struct store *s, const struct router_config *cfg,
		struct router **ret)
{
	const struct redis_limits limits = {.timeout_ms = 3 * WAIT_BLOCK_MS, .urgent = true};
	struct router *r = calloc(1, sizeof(*r));
	int error;

	if (!r)
		return -ENOMEM;
	r->loop = l;
	r->store = s;
	r->dispatch = cfg->dispatch;
	r->metrics = m;
	r->m_leader = metrics_get(m, M_router_leads, NULL, NULL);
	error = allowlist_parse(cfg->allowed_agent_ids, &r->allowed);
	if (error == 0)
		error = make_timers(r);
	if (error == 0)
		error = redis_open(l, cfg->redis_url, &limits, &wait_ops, r, &r->wait);
	if (error < 0) {
		router_close(r);
		return error;
	}
	r->part = (struct store_part){.on_up = on_store_up, .on_moved = on_store_moved, .arg = r};
	store_join(s, &r->part);
	loop_timer_start(r->tick, 0, LEASE_EVERY_MS);
	*ret = r;
	return 0;
}

void router_close(struct router *r)
{
	struct span argv[2];

	if (!r || r->closed)
		return;
	argv[0] = span_of(store_prefix(r->store));
	argv[1] = span_of(r->lease);
	if (r->leader)
		(void)!redis_eval(store_redis(r->store), script_get(SCRIPT_router_yield), NULL,
				  NULL, 0, 2, argv);
	router_step_down(r, "closing");
	if (r->part.arg)
		store_leave(r->store, &r->part);
	loop_timer_close(r->tick);
	loop_timer_close(r->pause);
	loop_timer_close(r->expire);
	loop_timer_close(r->trim);
	r->closed = true;
	r->calls++;
	redis_close(r->wait);
	allowlist_fini(&r->allowed);
	release(r);
}

int router_set_allowed(struct router *r, const char *csv)
{
	struct allowlist fresh;
	int error = allowlist_parse(csv, &fresh);

	if (error < 0)
		return error;
	allowlist_fini(&r->allowed);
	r->allowed = fresh;
	return 0;
}

bool router_is_leader(const struct router *r)
{
	return r->leader;
}
