#include "bridge.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "bridge_metrics.h"
#include "endpoints.h"
#include "heartbeat.h"
#include "lifecycle.h"
#include "loop/loop.h"
#include "tls_dates.h"
#include "tls_watch.h"
#include "transport.h"

#define TICK_MS	      1000
#define TRIM_SESSIONS 500
#define TRIM_AFTER_S  2
#define SPARE_SOCKETS 256 /* HTTP requests and handshakes beside MAX_CONN */
#define KEPT_FILES    64  /* never for agents: Redis, files that are read anew */

/* ---- store ---- */

/* What was refused without the store being pressed (a full pipeline, say) has no other signal. */
static void release_held(struct bridge *b)
{
	struct session *next;

	for (struct session *s = b->sessions.first; s && b->sessions.held_bytes; s = next) {
		next = s->next;
		if (s->held.first)
			frames_release(b->frames, s, loop_now_ms(b->loop));
	}
}

static void on_store_up(void *arg)
{
	struct bridge *b = arg;

	LOG_INFO(FIELDS(.event = "redis_up"), "Redis answers");
	if (b->denylist)
		denylist_refresh(b->denylist);
	if (b->dispatch)
		bridge_send_events(b);
	if (b->frames)
		release_held(b);
}

static void on_store_down(void *arg UNUSED, const char *why)
{
	LOG_WARN(FIELDS(.event = "redis_down", .error = why), "Redis does not answer");
}

static void on_store_pressure(void *arg, bool pressed)
{
	struct bridge *b = arg;
	struct session *next;

	b->pressed = pressed;
	LOG_AT(pressed ? LOG_LEVEL_WARN : LOG_LEVEL_INFO,
	       FIELDS(.event = pressed ? "reading_paused" : "reading_resumed",
		      .error = pressed ? store_down_reason(b->store) : NULL),
	       pressed ? "Redis is behind: sockets are not read" : "sockets are read again");
	if (!pressed)
		bridge_send_events(b);
	/* Frames that are taken again may press the store again: that call has told everybody. */
	for (struct session *s = b->sessions.first; s && b->pressed == pressed; s = next) {
		next = s->next;
		if (pressed)
			s->pause |= SESSION_PAUSE_PRESSURE;
		else
			s->pause &= (uint8_t)~SESSION_PAUSE_PRESSURE;
		transport_pause(s);
		if (!pressed)
			frames_release(b->frames, s, loop_now_ms(b->loop));
	}
}

static const struct store_ops store_ops = {
    .on_up = on_store_up, .on_down = on_store_down, .on_pressure = on_store_pressure};

/* ---- dispatch ---- */

static const struct {
	int code;
	const char *reason;
} claim_closes[] = {
    [DISPATCH_NONCE_SEEN] = {SESSION_CLOSE_NONCE, "nonce_seen"},
    [DISPATCH_DECOMMISSIONED] = {SESSION_CLOSE_DENIED, "decommissioned"},
    [DISPATCH_REVOKED] = {SESSION_CLOSE_DENIED, "revoked"},
    [DISPATCH_UNAVAILABLE] = {SESSION_CLOSE_REDIS, "redis_away"},
};

static void on_claimed(void *arg, uint64_t sid, enum dispatch_claim result, uint64_t epoch,
		       int64_t redis_ms)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid), *old;
	struct store_conn c;

	if (!s || !session_is_open(s))
		return;
	if (result != DISPATCH_CLAIMED) {
		session_close(s, claim_closes[result].code, claim_closes[result].reason);
		return;
	}
	s->epoch = epoch;
	if (s->state != SESSION_CLAIMING)
		return; /* claimed anew after Redis lost it */
	old = sessions_claim(&b->sessions, s);
	if (old)
		session_close(old, SESSION_CLOSE_SUPERSEDED, "superseded");
	c = session_conn(s);
	if (store_event(b->store, &c, "connected", NULL, (struct span){0}) < 0) {
		session_close(s, SESSION_CLOSE_REDIS, "redis_behind");
		return;
	}
	LOG_INFO(FIELDS(.event = "connected", .agent_id = s->agent_id, .conn_id = s->conn_id,
			.ip = s->ip),
		 "agent connected");
	frames_greet(b->frames, s, loop_now_ms(b->loop), redis_ms);
}

static int on_send_command(void *arg, uint64_t sid, const struct dispatch_command *c)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid);

	return s ? frames_send_command(b->frames, s, c) : -ENOENT;
}

static int on_send_cancel(void *arg, uint64_t sid, const char *correlation_id, const char *reason)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid);

	return s ? frames_send_cancel(b->frames, s, correlation_id, reason) : -ENOENT;
}

static void on_result_stored(void *arg, uint64_t sid, const char *correlation_id,
			     enum dispatch_result_fate fate)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid);

	if (s)
		frames_send_result_fate(b->frames, s, correlation_id, fate);
}

static void on_result_masked(void *arg, uint64_t sid, struct span json)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid);

	if (s)
		ring_add(&b->sessions.results, &s->result, json.p, json.n);
}

static void on_close_session(void *arg, uint64_t sid, int code, const char *reason)
{
	struct bridge *b = arg;
	struct session *s = sessions_find(&b->sessions, sid);

	if (s)
		session_close(s, code, reason);
}

static const struct dispatch_ops dispatch_ops = {
    .on_claimed = on_claimed,
    .send_command = on_send_command,
    .send_cancel = on_send_cancel,
    .on_result_stored = on_result_stored,
    .on_result_masked = on_result_masked,
    .close_session = on_close_session,
};

/* ---- time ---- */

/* glibc keeps what thousands of closed sessions freed unless it is told. A walk over the heap takes
 * a millisecond per 10 MiB or so: only once a quarter of many agents has left and for the next
 * seconds no more do. */
static void give_back_memory(struct bridge *b)
{
	size_t now = b->sessions.all;
	bool falling = now < b->last_sessions;

	b->last_sessions = now;
	if (now > b->most_sessions)
		b->most_sessions = now;
	if (b->most_sessions - now < TRIM_SESSIONS || now > b->most_sessions / 4 * 3)
		return;
	b->trim_in_s = falling || !b->trim_in_s ? TRIM_AFTER_S : b->trim_in_s - 1;
	if (b->trim_in_s)
		return;
	b->most_sessions = now;
	(void)malloc_trim(0);
}

static void on_tick(void *arg)
{
	struct bridge *b = arg;

	give_back_memory(b);
	store_check_pressure(b->store);
	release_held(b);
}

static void on_beat(void *arg)
{
	struct bridge *b = arg;

	loop_timer_start(b->beat, loop_part_ms(b->sessions.all, HEARTBEAT_PART, HEARTBEAT_EVERY_MS),
			 0);
	heartbeat_tick(&b->sessions, b->metrics, loop_now_ms(b->loop));
}

static void on_denylist_change(void *arg)
{
	struct bridge *b = arg;

	for (struct session *s = b->sessions.first, *next; s; s = next) {
		next = s->next;
		if (denylist_has_agent(b->denylist, s->agent_id))
			session_close(s, SESSION_CLOSE_DENIED, "decommissioned");
		else if (s->fingerprint && denylist_has_fingerprint(b->denylist, s->fingerprint))
			session_close(s, SESSION_CLOSE_DENIED, "revoked");
	}
}

/* ---- open ---- */

static struct handshake_config handshake_config_of(const struct bridge *b)
{
	const struct bridge_settings *c = b->settings;

	return (struct handshake_config){
	    .secret = c->shared_secret,
	    .trusted_proxies = c->trusted_proxies,
	    .allowed_agent_ids = c->allowed_agent_ids,
	    .dn_policy = c->client_dn_policy,
	    .max_skew_s = c->max_skew_s,
	    .rate_per_ip = c->rate_per_ip,
	    .rate_per_agent = c->rate_per_agent,
	    .cert_required = c->tls_client_ca != NULL,
	    .nonce_capacity = (size_t)c->nonces_max,
	};
}

void bridge_configure(struct bridge *b)
{
	struct handshake_config c = handshake_config_of(b);

	if (handshake_configure(b->handshake, &c) < 0 ||
	    router_set_allowed(b->router, b->settings->allowed_agent_ids) < 0)
		LOG_ERROR(FIELDS(.event = "reload_failed"), "out of memory: old settings stay");
	if (b->ws)
		ws_server_set_token(b->ws, b->settings->admin_token);
	if (b->internal)
		http_server_set_token(b->internal, b->settings->admin_token);
}

static int open_redis_side(struct bridge *b)
{
	const struct bridge_settings *c = b->settings;
	struct store_config store = {.redis_url = c->redis_url,
				     .prefix = c->stream_prefix,
				     .bridge_id = b->id,
				     .telemetry_maxlen = c->telemetry_maxlen,
				     .telemetry_max_bytes = c->telemetry_max_bytes};
	struct dispatch_config dispatch = {.prefix = c->stream_prefix,
					   .bridge_id = b->id,
					   .verbs_dir = c->verbs_dir,
					   .max_in_flight = c->max_in_flight,
					   .max_skew_s = c->max_skew_s};
	struct router_config router = {.redis_url = c->redis_url,
				       .prefix = c->stream_prefix,
				       .bridge_id = b->id,
				       .allowed_agent_ids = c->allowed_agent_ids};
	int r = store_open(b->loop, b->metrics, &store, &store_ops, b, &b->store);

	if (r == 0)
		r = denylist_open(b->loop, store_redis(b->store), c->stream_prefix,
				  on_denylist_change, b, &b->denylist);
	if (r == 0)
		r = dispatch_open(b->loop, b->metrics, b->store, &dispatch, &dispatch_ops, b,
				  &b->dispatch);
	router.dispatch = b->dispatch;
	if (r == 0)
		r = router_open(b->loop, b->metrics, b->store, &router, &b->router);
	return r;
}

static int open_logic(struct bridge *b)
{
	const struct bridge_settings *c = b->settings;
	struct handshake_config handshake = handshake_config_of(b);
	struct frames_config frames = {
	    .metrics = b->metrics,
	    .sessions = &b->sessions,
	    .store = b->store,
	    .dispatch = b->dispatch,
	    .settings = c,
	    .limits = {.send_msgs = (size_t)c->send_queue_msgs,
		       .send_bytes = (size_t)c->send_queue_bytes,
		       .held_bytes = (size_t)c->max_frame_bytes + (1 << 20)},
	};
	int r = handshake_new(&handshake, &b->handshake);

	if (r == 0)
		r = frames_new(&frames, &b->frames);
	if (r == 0)
		r = endpoints_new(b, &b->endpoints);
	return r;
}

static void on_tls_files(void *arg)
{
	struct bridge *b = arg;

	if (b->phase == BRIDGE_OPEN)
		(void)lifecycle_reload_tls(b);
}

static int open_tls_watch(struct bridge *b)
{
	const struct bridge_settings *c = b->settings;
	const char *const paths[] = {c->tls_cert, c->tls_key, c->tls_client_ca, c->tls_crl};

	return c->tls_cert ? tls_watch_open(b->loop, paths, ARRAY_LEN(paths), on_tls_files, b,
					    &b->tls_watch)
			   : 0;
}

/* Where fewer files may be open than MAX_CONN needs, agents that come again and again must not take
 * the one that Redis is to be reached with anew. */
static void find_room(struct bridge *b)
{
	const struct bridge_settings *c = b->settings;
	size_t kept = KEPT_FILES + (c->internal_bind ? SPARE_SOCKETS : 0), spare = SPARE_SOCKETS;
	struct rlimit l;

	b->max_conn = (size_t)c->max_conn;
	b->max_sockets = b->max_conn + spare;
	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || l.rlim_cur >= b->max_sockets + kept)
		return;
	b->max_sockets = l.rlim_cur > 2 * kept ? l.rlim_cur - kept : l.rlim_cur / 2;
	if (spare > b->max_sockets / 4)
		spare = b->max_sockets / 4;
	if (b->max_conn <= b->max_sockets - spare)
		return;
	b->max_conn = b->max_sockets - spare;
	LOG_WARN(
	    FIELDS(.event = "descriptor_limit", .has_count = true, .count = (int64_t)l.rlim_cur),
	    "only %llu files may be open: %zu agents fit, fewer than AGENT_BRIDGE_MAX_CONN",
	    (unsigned long long)l.rlim_cur, b->max_conn);
}

static int open_listeners(struct bridge *b)
{
	const struct bridge_settings *c = b->settings;
	struct http_table all = endpoints_table(b->endpoints, false),
			  outer = endpoints_table(b->endpoints, true);
	struct ws_server_config ws = {
	    .bind = c->bind,
	    .table = c->internal_bind ? &outer : &all,
	    .sessions = &b->sessions,
	    .max_conns = b->max_sockets,
	    .max_frame_bytes = (size_t)c->max_frame_bytes,
	    .tls_cert = c->tls_cert,
	    .tls_key = c->tls_key,
	    .tls_client_ca = c->tls_client_ca,
	    .tls_crl = c->tls_crl,
	    .ops = &bridge_socket_ops,
	    .arg = b,
	};
	const char *at = c->bind;
	char why[256] = "";
	int r = ws_server_open(b->loop, &ws, &b->ws, why, sizeof(why));

	if (r == 0 && c->internal_bind) {
		at = c->internal_bind;
		r = http_server_open(b->loop, at, &all, &b->internal);
	}
	if (r == -EPROTO) {
		LOG_ERROR(FIELDS(.event = "tls_refused", .error = why), "cannot use the TLS files");
		return PROGRAM_CONFIG;
	}
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "bind_failed", .detail = at, .error = strerror(-r)),
			  "cannot listen on %s: %s", at, strerror(-r));
		return PROGRAM_SYSTEM;
	}
	LOG_INFO(FIELDS(.event = "listening", .detail = c->bind, .has_count = true,
			.count = ws_server_port(b->ws)),
		 "listening on %s", c->bind);
	tls_dates_warn(c->tls_cert);
	return PROGRAM_OK;
}

int bridge_open(struct loop *l, struct bridge_settings *settings, struct bridge **ret)
{
	struct bridge *b = calloc(1, sizeof(*b));
	int r = b ? 0 : -ENOMEM;

	if (r == 0) {
		*ret = b; /* even on failure: closed by lifecycle, freed by the caller */
		b->loop = l;
		b->settings = settings;
		b->started_ms = clock_boot_ms();
		if (settings->id)
			memcpy(b->id, settings->id, strlen(settings->id) + 1);
		else
			gethostname(b->id, sizeof(b->id) - 1);
		r = metrics_new(bridge_metric_table, M_BRIDGE_METRICS, &b->metrics);
	}
	if (r == 0)
		r = sessions_init(&b->sessions, (size_t)settings->ring_frames,
				  (size_t)settings->ring_bytes);
	if (r == 0)
		r = open_redis_side(b);
	if (r == 0)
		r = open_logic(b);
	if (r == 0)
		r = loop_timer_new(l, on_tick, b, &b->tick);
	if (r == 0)
		r = loop_timer_new(l, on_beat, b, &b->beat);
	if (r == 0)
		r = open_tls_watch(b);
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-r)), "cannot start");
		return PROGRAM_SYSTEM;
	}
	find_room(b);
	loop_timer_start(b->tick, TICK_MS, TICK_MS);
	on_beat(b);
	return open_listeners(b);
}

void bridge_free(struct bridge *b)
{
	if (!b)
		return;
	bridge_drop_events(b);
	endpoints_free(b->endpoints);
	frames_free(b->frames);
	handshake_free(b->handshake);
	sessions_fini(&b->sessions);
	metrics_free(b->metrics);
	free(b);
}
