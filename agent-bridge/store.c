/*
 * What the bridge writes to Redis. Two ways, by what a loss would mean: telemetry may be forgotten
 * (store_telemetry.c); everything else goes through ops.h and is repeated until it is stored.
 *
 * Health: down (no connection) · impaired (Redis answers OOM, READONLY, LOADING, MISCONF: one write
 * is tried every PROBE_MS until one succeeds) · up.
 */
#include "store_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "bridge_metrics.h"

#define KEEP_MAX_BYTES	    ((size_t)48 << 20)
#define BACKLOG_PAUSE_BYTES ((size_t)16 << 20)
/* Sent and unanswered: Redis stands still, or the frames are large. */
#define FLYING_MAX_BYTES      ((size_t)48 << 20)
#define FLYING_PAUSE_BYTES    ((size_t)12 << 20)
#define PROBE_MS	      250
#define READONLY_RECONNECT_MS 2000
#define LEASE_MS	      15000
#define LEASE_EVERY_MS	      5000
#define WAKE_BLOCK_S	      10
#define WAKE_AGAIN_MS	      1000
#define DRAIN_LOOK_MS	      20

/* ---- small things ---- */

const char *store_prefix(const struct store *s)
{
	return s->prefix;
}

const char *store_bridge_id(const struct store *s)
{
	return s->bridge_id;
}

struct redis *store_redis(struct store *s)
{
	return s->redis;
}

bool store_is_up(const struct store *s)
{
	return s->up && !s->impaired;
}

bool store_may_have_forgotten(const struct store *s)
{
	return s->forgets;
}

const char *store_down_reason(const struct store *s)
{
	return store_is_up(s) ? "" : s->reason;
}

struct span store_now_text(struct store *s)
{
	int64_t now = loop_now_ms(s->loop);

	if (now != s->now_ms) {
		s->now_ms = now;
		clock_format_rfc3339(clock_wall_ms(), s->now_text);
	}
	return (struct span){s->now_text, CLOCK_RFC3339_LEN};
}

struct span store_offers(const struct store *s)
{
	return span_of(s->offers_text);
}

void store_note_offers(struct store *s, const struct redis_reply *offers,
		       const struct redis_reply *lost)
{
	int64_t n = redis_int(offers);

	if (redis_int(lost) == 1)
		LOG_WARN(FIELDS(.event = "redis_lost_data", .has_count = true, .count = s->offers),
			 "Redis has forgotten offers it had recorded; for a while commands end "
			 "only by what their agents say");
	if (n > s->offers) {
		s->offers = n;
		(void)snprintf(s->offers_text, sizeof(s->offers_text), "%" PRId64, n);
	}
}

void store_join(struct store *s, struct store_part *p)
{
	p->next = s->parts;
	s->parts = p;
}

void store_leave(struct store *s, struct store_part *p)
{
	for (struct store_part **at = &s->parts; *at; at = &(*at)->next)
		if (*at == p) {
			*at = p->next;
			return;
		}
}

/* ---- health ---- */

static void tell_up(struct store *s)
{
	s->reason[0] = '\0';
	metric_set(s->m_up, 1);
	/* The router, which joined last, first: it tells Redis that it may have forgotten, before
	 * anything is offered. */
	for (struct store_part *p = s->parts; p; p = p->next)
		if (p->on_up)
			p->on_up(p->arg);
	s->forgets = false;
	if (s->socket && s->socket->on_up)
		s->socket->on_up(s->arg);
}

static void tell_down(struct store *s, const char *why)
{
	bool same = !strcmp(s->reason, why);

	(void)snprintf(s->reason, sizeof(s->reason), "%s", why);
	metric_set(s->m_up, 0);
	if (!same && s->socket && s->socket->on_down)
		s->socket->on_down(s->arg, s->reason);
}

void store_note_passing(struct store *s, enum redis_error_class c)
{
	static const char *const words[] = {
	    [REDIS_E_OOM] = "Redis is out of memory (OOM)",
	    [REDIS_E_READONLY] = "Redis is a read-only replica (READONLY)",
	    [REDIS_E_LOADING] = "Redis is loading its data (LOADING)",
	    [REDIS_E_MISCONF] = "Redis cannot persist (MISCONF)",
	    [REDIS_E_BUSY] = "Redis is busy with a script (BUSY)",
	};

	s->forgets = s->forgets || c == REDIS_E_READONLY;
	if (!redis_error_is_passing(c) || s->impaired)
		return;
	s->impaired = true;
	s->readonly = c == REDIS_E_READONLY;
	loop_timer_start(s->probe, PROBE_MS, PROBE_MS);
	tell_down(s, words[c]);
	store_check_pressure(s);
}

void store_note_success(struct store *s)
{
	if (!s->impaired)
		return;
	s->impaired = s->readonly = false;
	loop_timer_stop(s->probe);
	if (s->up)
		tell_up(s);
	store_pump(s);
}

void store_check_pressure(struct store *s)
{
	size_t flying = redis_in_flight(s->redis), bytes = redis_in_flight_bytes(s->redis);
	bool high = s->ops.bytes > KEEP_MAX_BYTES / 2 || s->backlog.bytes > BACKLOG_PAUSE_BYTES ||
		    flying > 12000 || bytes > FLYING_PAUSE_BYTES;
	bool low = s->ops.bytes < KEEP_MAX_BYTES / 4 &&
		   s->backlog.bytes < BACKLOG_PAUSE_BYTES / 2 && flying < 6000 &&
		   bytes < FLYING_PAUSE_BYTES / 2;
	bool pressed = s->pressed ? !low : high;

	if (pressed == s->pressed)
		return;
	s->pressed = pressed;
	if (s->socket && s->socket->on_pressure)
		s->socket->on_pressure(s->arg, pressed);
}

/* ---- kept writes ---- */

void store_drain_check(struct store *s)
{
	void (*drained)(void *arg) = s->drained;
	bool busy = s->ops.count || s->backlog.first || (s->up && redis_in_flight(s->redis));

	if (!drained || (busy && loop_now_ms(s->loop) < s->drain_until_ms))
		return;
	if (s->ops.count)
		LOG_WARN(
		    FIELDS(.event = "drain", .has_count = true, .count = (int64_t)s->ops.count),
		    "stopping with writes Redis has not taken");
	s->drained = NULL;
	loop_timer_stop(s->drain);
	drained(s->drained_arg);
}

static void on_op_answer(void *arg)
{
	struct store *s = arg;

	store_note_success(s);
	store_pump(s);
	store_check_pressure(s);
	store_drain_check(s);
}

static void on_op_passing(void *arg, enum redis_error_class c)
{
	store_note_passing(arg, c);
}

int store_keep_script(struct store *s, enum script script, size_t argc, const struct span *argv,
		      redis_cb done, void *arg)
{
	int r = ops_add(&s->ops, script, argc, argv, done, arg);

	if (r == 0)
		store_pump(s);
	store_check_pressure(s);
	return r;
}

int store_keep_cmd(struct store *s, size_t argc, const struct span *argv, redis_cb done, void *arg)
{
	return store_keep_script(s, SCRIPT_NONE, argc, argv, done, arg);
}

void store_dead_letter(struct store *s, const char *stream, struct span entry_id,
		       const char *reason, struct span payload)
{
	char key[96];
	struct span argv[] = {
	    SPAN("XADD"),     {0},	SPAN("*"),	SPAN("stream"),	 span_of(stream),
	    SPAN("entry_id"), entry_id, SPAN("reason"), span_of(reason), SPAN("payload"),
	    payload};

	(void)snprintf(key, sizeof(key), "%s.dead_letters", s->prefix);
	argv[1] = span_of(key);
	if (store_keep_cmd(s, ARRAY_LEN(argv), argv, NULL, NULL) < 0)
		LOG_ERROR(FIELDS(.event = "dead_letter_lost", .stream = stream, .error = reason),
			  "too much waits for Redis; a dead letter is dropped");
}

void store_pump(struct store *s)
{
	if (!s->up || s->impaired)
		return;
	ops_pump(&s->ops, 4096);
	/* Half the window stays free for what comes now. */
	if (s->backlog.first && redis_in_flight(s->redis) < 4096)
		store_telemetry_pump(s, 4096);
}

/* ---- hello, events ---- */

static int keep_frame(struct store *s, const char *stream, const struct store_conn *c,
		      const char *event, const char *reason, struct span frame)
{
	char key[96], epoch[24];
	struct span argv[24] = {SPAN("XADD"), {0}, SPAN("*"), SPAN("agent_id"), {0}};
	size_t n = 5;

	(void)snprintf(key, sizeof(key), "%s.%s", s->prefix, stream);
	(void)snprintf(epoch, sizeof(epoch), "%" PRIu64, c->epoch);
	argv[1] = span_of(key);
	argv[4] = span_of(c->agent_id);
#define ADD(name, value) (argv[n] = SPAN(name), argv[n + 1] = (value), n += 2)
	if (event)
		ADD("event", span_of(event));
	if (reason)
		ADD("reason", span_of(reason));
	if (frame.p)
		ADD("frame", frame);
	ADD("bridge_id", span_of(s->bridge_id));
	ADD("conn_id", span_of(c->conn_id));
	ADD("epoch", span_of(epoch));
	ADD("ip", span_of(c->ip));
	ADD("received_at", store_now_text(s));
#undef ADD
	return store_keep_cmd(s, n, argv, NULL, NULL);
}

int store_hello(struct store *s, const struct store_conn *c, struct span frame)
{
	return keep_frame(s, "agent_hello", c, NULL, NULL, frame);
}

int store_event(struct store *s, const struct store_conn *c, const char *event, const char *reason,
		struct span frame)
{
	return keep_frame(s, "agent_events", c, event, reason, frame);
}

/* ---- lease, hints, connections ---- */

static void on_lease(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;
	struct span other = redis_str(redis_at(reply, 1));

	/* else renewed again in five seconds, or at the reconnect */
	if (redis_type(reply) != REDIS_ARR) {
		store_tell_refused(s, STORE_REFUSED_LEASE, NULL, reply);
		return;
	}
	if (span_copy(redis_str(redis_at(reply, 0)), s->started, sizeof(s->started)) < 0)
		s->started[0] = '\0';
	if (other.n)
		LOG_WARN(FIELDS(.event = "bridge_id_shared", .detail = s->bridge_id),
			 "another process held this bridge's lease: it has just been restarted, or "
			 "two bridges have the same AGENT_BRIDGE_ID");
}

static void renew_lease(void *arg)
{
	struct store *s = arg;
	char ttl[16];
	struct span argv[] = {span_of(s->prefix),
			      span_of(s->bridge_id),
			      span_of(s->instance),
			      span_of(s->started),
			      {0}};

	(void)snprintf(ttl, sizeof(ttl), "%d", LEASE_MS);
	argv[4] = span_of(ttl);
	(void)!redis_eval(s->redis, script_get(SCRIPT_bridge_lease), on_lease, s, 0,
			  ARRAY_LEN(argv), argv);
}

static void on_info(void *arg, const struct redis_reply *reply)
{
	struct span text = redis_str(reply);

	(void)arg;
	if (redis_type(reply) != REDIS_STR)
		return;
	if (!memmem(text.p, text.n, "maxmemory_policy:noeviction", 27) &&
	    memmem(text.p, text.n, "maxmemory_policy:", 17))
		LOG_WARN(FIELDS(.event = "redis_config", .setting = "maxmemory-policy"),
			 "Redis may evict keys: set maxmemory-policy noeviction");
	if (memmem(text.p, text.n, "aof_enabled:0", 13))
		LOG_WARN(FIELDS(.event = "redis_config", .setting = "appendonly"),
			 "Redis keeps no AOF: set appendonly yes, or a restart loses commands");
}

/* So that even the last call before a stop, which nobody waits for, finds its script. */
static void load_scripts(struct store *s)
{
	struct span argv[3] = {SPAN("SCRIPT"), SPAN("LOAD")};

	for (int i = 0; i < SCRIPT_NONE; i++) {
		argv[2] = span_of(script_get((enum script)i)->body);
		(void)!redis_cmd(s->redis, NULL, NULL, 3, argv);
	}
}

static void on_redis_up(void *arg)
{
	struct store *s = arg;

	s->up = true;
	s->up_since_ms = loop_now_ms(s->loop);
	s->impaired = s->readonly; /* until a write has succeeded */
	if (!s->impaired)
		loop_timer_stop(s->probe);
	load_scripts(s);
	renew_lease(s);
	if (!s->first_up_done) {
		s->first_up_done = true;
		(void)!redis_cmdf(s->redis, on_info, s, "INFO memory");
		(void)!redis_cmdf(s->redis, on_info, s, "INFO persistence");
	}
	store_pump(s);
	if (!s->impaired)
		tell_up(s);
	store_check_pressure(s);
}

static void on_redis_down(void *arg, const char *why)
{
	struct store *s = arg;

	s->up = false;
	s->forgets = true;
	if (!s->readonly) {
		s->impaired = false;
		loop_timer_stop(s->probe);
		tell_down(s, why);
	}
	store_check_pressure(s);
}

static void on_wake_reply(void *arg, const struct redis_reply *reply);

static void ask_wake(struct store *s)
{
	(void)!redis_cmdf(s->wake, on_wake_reply, s, "BLMPOP %d 1 %s.wake.%s LEFT COUNT 256",
			  WAKE_BLOCK_S, s->prefix, s->bridge_id);
}

static void on_wake_reply(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;
	const struct redis_reply *hints = redis_at(reply, 1);

	if (!reply)
		return; /* asked again when it is up */
	for (size_t i = 0; i < redis_len(hints); i++)
		for (struct store_part *p = s->parts; p; p = p->next)
			if (p->on_hint)
				p->on_hint(p->arg, redis_str(redis_at(hints, i)));
	if (redis_type(reply) == REDIS_ERR) {
		store_tell_refused(s, STORE_REFUSED_WAKE, NULL, reply);
		/* until then the periodic check finds what hints would have told */
		loop_timer_start(s->wake_again, WAKE_AGAIN_MS, 0);
		return;
	}
	ask_wake(s);
}

static void on_wake_again(void *arg)
{
	ask_wake(arg); /* not up: on_wake_up asks */
}

static void on_wake_up(void *arg)
{
	struct store *s = arg;

	loop_timer_stop(s->wake_again);
	ask_wake(s);
}

/* The writable server may be another one by now, under the same name. */
static void connect_anew(struct store *s)
{
	redis_reconnect(s->wake, s->reason);
	for (struct store_part *p = s->parts; p; p = p->next)
		if (p->on_moved)
			p->on_moved(p->arg);
	redis_reconnect(s->redis, s->reason);
}

static void on_probe_write(void *arg, const struct redis_reply *reply)
{
	if (redis_type(reply) == REDIS_STATUS)
		store_note_success(arg);
}

/* While impaired: one write at a time shows whether it has passed. */
static void on_probe(void *arg)
{
	struct store *s = arg;

	if (!s->up || !s->impaired)
		return;
	if (s->readonly && loop_now_ms(s->loop) - s->up_since_ms > READONLY_RECONNECT_MS) {
		connect_anew(s);
		return;
	}
	if (s->ops.again.first || s->ops.fresh.first)
		ops_pump(&s->ops, 1);
	else if (s->backlog.first)
		store_telemetry_pump(s, 1);
	else
		(void)!redis_cmdf(s->redis, on_probe_write, s, "SET %s.probe.%s 1 PX 1000",
				  s->prefix, s->bridge_id);
}

static void on_drain_tick(void *arg)
{
	store_drain_check(arg);
}

void store_drain(struct store *s, int64_t wait_ms, void (*done)(void *arg), void *arg)
{
	s->drained = done;
	s->drained_arg = arg;
	s->drain_until_ms = loop_now_ms(s->loop) + wait_ms;
	loop_timer_start(s->drain, 0, DRAIN_LOOK_MS);
}

static const struct redis_ops data_ops = {on_redis_up, on_redis_down};
static const struct redis_ops wake_ops = {on_wake_up, NULL};

static int open_connections(struct store *s, const char *url)
{
	const struct redis_limits wake_limits = {.timeout_ms = (WAKE_BLOCK_S + 5) * 1000,
						 .urgent = true};
	/* Telemetry waits 16 ms for company: a write, a wake of Redis and an append to its log less
	 * for most frames. Whatever else is sent meanwhile takes it along at once. */
	const struct redis_limits data_limits = {.max_in_flight_bytes = FLYING_MAX_BYTES,
						 .gather_ms = 16};
	int r = redis_open(s->loop, url, &data_limits, &data_ops, s, &s->redis);

	if (r < 0)
		return r;
	s->ops.redis = s->redis;
	return redis_open(s->loop, url, &wake_limits, &wake_ops, s, &s->wake);
}

int store_open(struct loop *l, struct metrics *m, const struct store_config *cfg,
	       const struct store_ops *ops, void *arg, struct store **ret)
{
	struct store *s = calloc(1, sizeof(*s));
	int r = 0;

	if (!s)
		return -ENOMEM;
	s->loop = l;
	s->socket = ops;
	s->arg = arg;
	(void)snprintf(s->prefix, sizeof(s->prefix), "%s", cfg->prefix);
	(void)snprintf(s->bridge_id, sizeof(s->bridge_id), "%s", cfg->bridge_id);
	(void)snprintf(s->reason, sizeof(s->reason), "not connected to Redis yet");
	ident_uuid4(s->instance);
	s->offers = -1;
	(void)snprintf(s->offers_text, sizeof(s->offers_text), "-1");
	s->m_up = metrics_get(m, M_redis_up, NULL, NULL);
	s->m_reply = metrics_get(m, M_redis_reply, NULL, NULL);
	s->m_drop_away = metrics_get(m, M_frames_dropped, "redis_away", NULL);
	s->m_drop_full = metrics_get(m, M_frames_dropped, "redis_full", NULL);
	ops_init(&s->ops, KEEP_MAX_BYTES);
	s->ops.on_answer = on_op_answer;
	s->ops.on_passing = on_op_passing;
	s->ops.arg = s;
	store_telemetry_init(s, cfg);
	if (r == 0)
		r = loop_timer_new(l, on_probe, s, &s->probe);
	if (r == 0)
		r = loop_timer_new(l, renew_lease, s, &s->lease);
	if (r == 0)
		r = loop_timer_new(l, on_drain_tick, s, &s->drain);
	if (r == 0)
		r = loop_timer_new(l, on_wake_again, s, &s->wake_again);
	if (r == 0)
		r = open_connections(s, cfg->redis_url);
	if (r < 0) {
		store_close(s);
		return r;
	}
	loop_timer_start(s->lease, LEASE_EVERY_MS, LEASE_EVERY_MS);
	*ret = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	s->socket = NULL;
	s->parts = NULL;
	s->drained = NULL;
	loop_timer_close(s->probe);
	loop_timer_close(s->lease);
	loop_timer_close(s->drain);
	loop_timer_close(s->wake_again);
	/* The connections first: their callbacks still point to ops. */
	redis_close(s->wake);
	redis_close(s->redis);
	ops_fini(&s->ops);
	store_telemetry_fini(s);
	free(s);
}
