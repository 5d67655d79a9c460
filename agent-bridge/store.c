/*
 * What the bridge writes to Redis. Three ways, by what a loss would mean: telemetry goes straight
 * into the connection's buffer or, while Redis is away, into a ring that forgets the oldest;
 * everything else goes through ops.h and is repeated until it is stored.
 *
 * Health: down (no connection) · impaired (Redis answers OOM, READONLY, LOADING, MISCONF: one write
 * is tried every PROBE_MS until one succeeds) · up.
 */
#include "store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "base/log.h"
#include "bridge_metrics.h"
#include "loop/loop.h"
#include "ops.h"

#define KEEP_MAX_BYTES ((size_t)48 << 20)
/* Much more than where pausing begins: sockets go on for a moment after it, by tens of KiB each. */
#define RING_MAX_BYTES	 ((size_t)128 << 20)
#define RING_PAUSE_BYTES ((size_t)16 << 20)
/* Sent and unanswered: Redis stands still, or the frames are large. */
#define FLYING_MAX_BYTES      ((size_t)48 << 20)
#define FLYING_PAUSE_BYTES    ((size_t)12 << 20)
#define PROBE_MS	      250
#define READONLY_RECONNECT_MS 2000
#define LEASE_MS	      15000
#define LEASE_EVERY_MS	      5000
#define WAKE_BLOCK_S	      10
#define DRAIN_LOOK_MS	      20
#define LARGE_FRAME_BYTES     8192 /* looked at one by one, small ones every 256 */
#define TRIM_EVERY	      100 /* telemetry entries; each MAXLEN costs Redis a tenth of an XADD */
#define SAMPLE_EVERY	      64  /* telemetry replies whose time is measured */

struct ring_entry {
	struct ring_entry *next;
	size_t n;
	char bytes[];
};

struct store {
	struct loop *loop;
	const struct store_ops *socket;
	void *arg;
	struct redis *redis, *wake;
	struct ops ops;
	struct store_part *parts;
	char prefix[64], bridge_id[128], instance[UUID_LEN + 1], started[24];
	int64_t offers; /* -1: not told yet */
	char offers_text[24];

	bool up, impaired, pressed, first_up_done;
	bool readonly; /* impaired by it: a failover may have moved the writable server */
	bool forgets;  /* since it was up last */
	int64_t up_since_ms;
	char reason[192];
	struct loop_timer *probe, *lease, *drain;
	void (*drained)(void *arg);
	void *drained_arg;
	int64_t drain_until_ms;

	struct head { /* telemetry's XADD up to the agent's id */
		char text[256];
		size_t n;
	} head, head_trim; /* the second with MAXLEN */
	uint64_t heads_put;
	char telemetry_key[96];
	struct ring_entry *ring_first, *ring_last;
	size_t ring_bytes;
	uint64_t telemetry_sent, sample_us; /* sample_us 0: none under way */
	size_t samples_skipped;

	int64_t now_ms;
	char now_text[CLOCK_RFC3339_LEN + 1];

	struct metric *m_up, *m_reply, *m_drop_away, *m_drop_full;
};

static void check_pressure(struct store *s);
static void pump(struct store *s);

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
	int64_t now = clock_wall_ms();

	if (now != s->now_ms) {
		s->now_ms = now;
		clock_format_rfc3339(now, s->now_text);
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
	check_pressure(s);
}

/* A write has succeeded. */
static void note_success(struct store *s)
{
	if (!s->impaired)
		return;
	s->impaired = s->readonly = false;
	loop_timer_stop(s->probe);
	if (s->up)
		tell_up(s);
	pump(s);
}

static void check_pressure(struct store *s)
{
	size_t flying = redis_in_flight(s->redis), bytes = redis_in_flight_bytes(s->redis);
	bool high = s->ops.bytes > KEEP_MAX_BYTES / 2 || s->ring_bytes > RING_PAUSE_BYTES ||
		    flying > 12000 || bytes > FLYING_PAUSE_BYTES;
	bool low = s->ops.bytes < KEEP_MAX_BYTES / 4 && s->ring_bytes < RING_PAUSE_BYTES / 2 &&
		   flying < 6000 && bytes < FLYING_PAUSE_BYTES / 2;
	bool pressed = s->pressed ? !low : high;

	if (pressed == s->pressed)
		return;
	s->pressed = pressed;
	if (s->socket && s->socket->on_pressure)
		s->socket->on_pressure(s->arg, pressed);
}

/* ---- kept writes ---- */

/* The last thing its callers do: the owner closes the store. */
static void drain_check(struct store *s)
{
	void (*drained)(void *arg) = s->drained;
	bool busy = s->ops.count || s->ring_first || (s->up && redis_in_flight(s->redis));

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

	note_success(s);
	pump(s);
	check_pressure(s);
	drain_check(s);
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
		pump(s);
	check_pressure(s);
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

/* ---- telemetry ---- */

static char *put_bytes(char *at, const char *bytes, size_t n)
{
	memcpy(at, bytes, n);
	return at + n;
}

/* "$<n>\r\n<bytes>\r\n" */
static char *put_bulk(char *at, const char *bytes, size_t n)
{
	char digits[24];
	size_t v = n, d = sizeof(digits);

	do
		digits[--d] = (char)('0' + v % 10);
	while (v /= 10);
	*at++ = '$';
	at = put_bytes(at, digits + d, sizeof(digits) - d);
	at = put_bytes(at, "\r\n", 2);
	at = put_bytes(at, bytes, n);
	return put_bytes(at, "\r\n", 2);
}

#define PUT_LITERAL(at, text) put_bytes(at, text, sizeof(text) - 1)

static size_t put_u64(char *out, uint64_t v)
{
	char digits[24];
	size_t d = sizeof(digits);

	do
		digits[--d] = (char)('0' + v % 10);
	while (v /= 10);
	memcpy(out, digits + d, sizeof(digits) - d);
	return sizeof(digits) - d;
}

static size_t telemetry_room(const struct store *s, const struct store_conn *c, struct span frame)
{
	return sizeof(s->head_trim.text) + frame.n + strlen(c->agent_id) + strlen(c->conn_id) +
	       strlen(c->ip) + strlen(s->bridge_id) + 400; /* names, lengths, epoch, time */
}

static size_t put_telemetry(struct store *s, char *out, const struct store_conn *c,
			    struct span frame)
{
	const struct head *head = s->heads_put++ % TRIM_EVERY ? &s->head : &s->head_trim;
	char *at = put_bytes(out, head->text, head->n), epoch[24];
	struct span now = store_now_text(s);

	at = put_bulk(at, c->agent_id, strlen(c->agent_id));
	at = PUT_LITERAL(at, "$5\r\nframe\r\n");
	at = put_bulk(at, frame.p, frame.n);
	at = PUT_LITERAL(at, "$9\r\nbridge_id\r\n");
	at = put_bulk(at, s->bridge_id, strlen(s->bridge_id));
	at = PUT_LITERAL(at, "$7\r\nconn_id\r\n");
	at = put_bulk(at, c->conn_id, strlen(c->conn_id));
	at = PUT_LITERAL(at, "$5\r\nepoch\r\n");
	at = put_bulk(at, epoch, put_u64(epoch, c->epoch));
	at = PUT_LITERAL(at, "$2\r\nip\r\n");
	at = put_bulk(at, c->ip, strlen(c->ip));
	at = PUT_LITERAL(at, "$11\r\nreceived_at\r\n");
	at = put_bulk(at, now.p, now.n);
	return (size_t)(at - out);
}

static void on_telemetry(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;

	if (redis_type(reply) == REDIS_STR) {
		if (s->impaired)
			note_success(s);
	} else {
		metric_add(reply ? s->m_drop_full : s->m_drop_away, 1);
		store_note_passing(s, redis_error_class(reply));
	}
	if (s->pressed)
		check_pressure(s);
	if (s->ring_first)
		pump(s);
	if (s->drained)
		drain_check(s);
}

static void on_sampled_telemetry(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;

	if (reply)
		metric_observe(s->m_reply, (double)(clock_boot_us() - s->sample_us) / 1e6);
	s->sample_us = 0;
	on_telemetry(s, reply);
}

static void commit_telemetry(struct store *s, size_t n)
{
	if (++s->telemetry_sent % SAMPLE_EVERY == 0 && !s->sample_us) {
		s->sample_us = clock_boot_us();
		redis_commit(s->redis, n, on_sampled_telemetry, s);
		return;
	}
	redis_commit(s->redis, n, on_telemetry, s);
}

static void ring_drop_oldest(struct store *s)
{
	struct ring_entry *e = s->ring_first;

	s->ring_first = e->next;
	if (!e->next)
		s->ring_last = NULL;
	s->ring_bytes -= sizeof(*e) + e->n;
	free(e);
}

static int ring_add(struct store *s, const struct store_conn *c, struct span frame)
{
	size_t room = telemetry_room(s, c, frame);
	struct ring_entry *e = malloc(sizeof(*e) + room), *fit;

	if (!e)
		return -ENOMEM;
	e->next = NULL;
	e->n = put_telemetry(s, e->bytes, c, frame);
	fit = realloc(e, sizeof(*e) + e->n);
	e = fit ? fit : e;
	if (s->ring_last)
		s->ring_last->next = e;
	else
		s->ring_first = e;
	s->ring_last = e;
	s->ring_bytes += sizeof(*e) + e->n;
	while (s->ring_first && s->ring_bytes > RING_MAX_BYTES && s->ring_first != s->ring_last) {
		metric_add(s->up ? s->m_drop_full : s->m_drop_away, 1);
		ring_drop_oldest(s);
	}
	check_pressure(s);
	return 0;
}

static void ring_pump(struct store *s, size_t max)
{
	char *at;

	while (max-- && s->ring_first && redis_reserve(s->redis, s->ring_first->n, &at) == 0) {
		memcpy(at, s->ring_first->bytes, s->ring_first->n);
		commit_telemetry(s, s->ring_first->n);
		ring_drop_oldest(s);
	}
}

int store_telemetry(struct store *s, const struct store_conn *c, struct span frame)
{
	char *at;

	if (s->impaired || s->ring_first ||
	    redis_reserve(s->redis, telemetry_room(s, c, frame), &at) < 0)
		return ring_add(s, c, frame);
	commit_telemetry(s, put_telemetry(s, at, c, frame));
	if (!s->pressed && (!(s->telemetry_sent & 255) || frame.n > LARGE_FRAME_BYTES))
		check_pressure(s);
	return 0;
}

static void pump(struct store *s)
{
	if (!s->up || s->impaired)
		return;
	ops_pump(&s->ops, 4096);
	/* Half the window stays free for what comes now. */
	if (s->ring_first && redis_in_flight(s->redis) < 4096)
		ring_pump(s, 4096);
}

/* ---- hello, events ---- */

static int keep_frame(struct store *s, const char *stream, const struct store_conn *c,
		      const char *event, const char *reason, struct span frame)
{
	char key[96], epoch[24];
	struct span argv[24] = {SPAN("XADD"), {0}, SPAN("*"), SPAN("agent_id"), {0}};
	size_t n = 5;

	(void)snprintf(key, sizeof(key), "%s.%s", s->prefix, stream);
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
	ADD("epoch", ((struct span){epoch, put_u64(epoch, c->epoch)}));
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

	if (redis_type(reply) != REDIS_ARR)
		return; /* renewed again in five seconds, or at the reconnect */
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
	pump(s);
	if (!s->impaired)
		tell_up(s);
	check_pressure(s);
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
	check_pressure(s);
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
		LOG_DEBUG(FIELDS(.event = "wake", .error = redis_str(reply).p), "no hints");
		return; /* the periodic check finds what hints would have told */
	}
	ask_wake(s);
}

static void on_wake_up(void *arg)
{
	ask_wake(arg);
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
		note_success(arg);
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
	else if (s->ring_first)
		ring_pump(s, 1);
	else
		(void)!redis_cmdf(s->redis, on_probe_write, s, "SET %s.probe.%s 1 PX 1000",
				  s->prefix, s->bridge_id);
}

static void on_drain_tick(void *arg)
{
	drain_check(arg);
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

static void make_head(struct head *h, const char *prefix, int64_t maxlen)
{
	char key[96], number[24];
	char *at = maxlen ? PUT_LITERAL(h->text, "*20\r\n$4\r\nXADD\r\n")
			  : PUT_LITERAL(h->text, "*17\r\n$4\r\nXADD\r\n");

	(void)snprintf(key, sizeof(key), "%s.telemetry", prefix);
	at = put_bulk(at, key, strlen(key));
	if (maxlen) {
		at = PUT_LITERAL(at, "$6\r\nMAXLEN\r\n$1\r\n~\r\n");
		at = put_bulk(at, number, put_u64(number, (uint64_t)maxlen));
	}
	at = PUT_LITERAL(at, "$1\r\n*\r\n$8\r\nagent_id\r\n");
	h->n = (size_t)(at - h->text);
}

static int open_connections(struct store *s, const char *url)
{
	const struct redis_limits wake_limits = {.timeout_ms = (WAKE_BLOCK_S + 5) * 1000};
	/* Telemetry waits 2 ms for company: a write, a wake of Redis and an append to its log less
	 * for most frames. Whatever else is sent meanwhile takes it along at once. */
	const struct redis_limits data_limits = {.max_in_flight_bytes = FLYING_MAX_BYTES,
						 .gather_ms = 2};
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
	make_head(&s->head, s->prefix, 0);
	make_head(&s->head_trim, s->prefix,
		  cfg->telemetry_maxlen > 0 ? cfg->telemetry_maxlen : 1000000);
	if (r == 0)
		r = loop_timer_new(l, on_probe, s, &s->probe);
	if (r == 0)
		r = loop_timer_new(l, renew_lease, s, &s->lease);
	if (r == 0)
		r = loop_timer_new(l, on_drain_tick, s, &s->drain);
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
	/* The connections first: their callbacks still point to ops. */
	redis_close(s->wake);
	redis_close(s->redis);
	ops_fini(&s->ops);
	while (s->ring_first)
		ring_drop_oldest(s);
	free(s);
}
