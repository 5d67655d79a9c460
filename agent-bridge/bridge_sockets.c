/*
 * What the agents' sockets call: from the handshake that is judged to the socket that is gone, and
 * the disconnect that is told to Redis, if not now then when there is room.
 */
#include "bridge.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "bridge_metrics.h"
#include "heartbeat.h"
#include "loop/loop.h"
#include "transport.h"

struct bridge_event { /* a disconnect that waits for room in the store */
	struct bridge_event *next;
	uint64_t epoch;
	const char *reason;
	char agent_id[AGENT_ID_MAX + 1], conn_id[UUID_LEN + 1], ip[NETADDR_TEXT_MAX];
};

/* ---- events to Redis ---- */

static int event_offer(struct bridge *b, const struct bridge_event *e)
{
	struct store_conn c = {
	    .agent_id = e->agent_id, .conn_id = e->conn_id, .ip = e->ip, .epoch = e->epoch};

	return store_event(b->store, &c, "disconnected", e->reason, (struct span){0});
}

void bridge_send_events(struct bridge *b)
{
	while (b->unsent && event_offer(b, b->unsent) == 0) {
		struct bridge_event *e = b->unsent;

		b->unsent = e->next;
		free(e);
	}
}

void bridge_drop_events(struct bridge *b)
{
	while (b->unsent) {
		struct bridge_event *e = b->unsent;

		b->unsent = e->next;
		free(e);
	}
}

static void send_disconnected(struct bridge *b, const struct session *s)
{
	struct store_conn c = session_conn(s);
	struct bridge_event *e;

	if (!s->epoch)
		return; /* never claimed: nobody was told it was connected */
	if (!b->unsent &&
	    store_event(b->store, &c, "disconnected", s->close_reason, (struct span){0}) == 0)
		return;
	e = calloc(1, sizeof(*e));
	if (!e)
		return;
	e->epoch = s->epoch;
	e->reason = s->close_reason;
	memcpy(e->agent_id, s->agent_id, sizeof(e->agent_id));
	memcpy(e->conn_id, s->conn_id, sizeof(e->conn_id));
	memcpy(e->ip, s->ip, sizeof(e->ip));
	if (b->unsent)
		b->unsent_last->next = e;
	else
		b->unsent = e;
	b->unsent_last = e;
}

/* ---- sockets ---- */

static bool is_connected(void *arg, const char *agent_id)
{
	struct bridge *b = arg;

	return sessions_by_agent(&b->sessions, agent_id) != NULL;
}

static bool is_denied(void *arg, enum handshake_denied list, const char *key)
{
	struct bridge *b = arg;

	return list == HANDSHAKE_REVOKED ? denylist_has_fingerprint(b->denylist, key)
					 : denylist_has_agent(b->denylist, key);
}

static void on_judge(void *arg, const struct handshake_request *q, struct handshake_verdict *v)
{
	struct bridge *b = arg;
	struct handshake_world w = {
	    .now_ms = clock_wall_ms(),
	    .uptime_ms = clock_boot_ms(),
	    .draining = b->phase != BRIDGE_OPEN,
	    .redis_away = !store_is_up(b->store),
	    .connections = b->sessions.all,
	    .max_conn = b->max_conn,
	    .is_connected = is_connected,
	    .is_denied = is_denied,
	    .arg = b,
	};

	handshake_judge(b->handshake, q, &w, v);
	if (!v->status)
		return;
	metric_add(metrics_get(b->metrics, M_handshake_refused, v->code, NULL), 1);
	LOG_WARN(FIELDS(.event = "handshake_refused",
			.agent_id = v->agent_id[0] ? v->agent_id : NULL, .ip = v->ip,
			.error = v->code),
		 "%s", v->msg);
}

static void on_bad_head(void *arg, const char *ip, const char *code, const char *why)
{
	struct bridge *b = arg;

	metric_add(metrics_get(b->metrics, M_handshake_refused, code, NULL), 1);
	LOG_WARN(FIELDS(.event = "handshake_refused", .ip = ip, .error = code), "%s", why);
}

static void on_tls_refused(void *arg, const char *ip, const char *why)
{
	struct bridge *b = arg;

	metric_add(metrics_get(b->metrics, M_handshake_refused, "tls", NULL), 1);
	LOG_WARN(FIELDS(.event = "handshake_refused", .ip = ip, .error = "tls", .detail = why),
		 "TLS handshake refused");
}

static void on_evicted(void *arg, const char *ip, size_t n)
{
	struct bridge *b = arg;

	metric_add(metrics_get(b->metrics, M_handshake_refused, "crowded", NULL), n);
	LOG_WARN(FIELDS(.event = "handshake_refused", .ip = ip, .error = "crowded",
			.has_count = true, .count = (int64_t)n),
		 "no socket is free: %zu unfinished handshakes of this address were cut", n);
}

static struct session *on_open(void *arg, const struct handshake_verdict *v)
{
	struct bridge *b = arg;
	struct store_conn c;
	struct session *s;

	if (sessions_add(&b->sessions, v->agent_id, v->ip, &s) < 0)
		return NULL;
	s->connected_ms = s->seen_ms = clock_wall_ms();
	s->rx_at_ms = loop_now_ms(b->loop);
	s->ping_due_ms = heartbeat_first_ping_ms(s);
	if (b->pressed)
		s->pause |= SESSION_PAUSE_PRESSURE;
	metric_add(metrics_get(b->metrics, M_connections, NULL, NULL), 1);
	c = session_conn(s);
	if (session_set_text(&s->fingerprint,
			     v->fingerprint[0] ? span_of(v->fingerprint) : (struct span){0}) < 0 ||
	    dispatch_claim(b->dispatch, s->sid, &c, v->nonce, v->nonce_until_ms, s->fingerprint) <
		0)
		session_close(s, SESSION_CLOSE_REDIS, "redis_away");
	return s;
}

static void on_frame(void *arg, struct session *s, const char *json, size_t n)
{
	struct bridge *b = arg;

	frames_receive(b->frames, s, json, n, loop_now_ms(b->loop));
}

static void on_sent(void *arg, const struct session_frame *q)
{
	struct bridge *b = arg;

	frames_sent(b->frames, q);
}

static void on_room(void *arg, struct session *s)
{
	struct bridge *b = arg;

	dispatch_writable(b->dispatch, s->sid);
}

static void on_close(void *arg, struct session *s)
{
	struct bridge *b = arg;

	session_move(s, SESSION_GONE);
	metric_add(metrics_get(b->metrics, M_disconnects, s->close_reason, NULL), 1);
	LOG_INFO(FIELDS(.event = "disconnected", .agent_id = s->agent_id, .conn_id = s->conn_id,
			.ip = s->ip, .detail = s->close_reason, .has_rc = s->close_code != 0,
			.rc = s->close_code, .has_duration_ms = true,
			.duration_ms = clock_wall_ms() - s->connected_ms),
		 "agent disconnected");
	dispatch_gone(b->dispatch, s->sid);
	send_disconnected(b, s);
	sessions_remove(&b->sessions, s);
}

const struct ws_server_ops bridge_socket_ops = {
    .judge = on_judge,
    .on_open = on_open,
    .on_bad_head = on_bad_head,
    .on_tls_refused = on_tls_refused,
    .on_evicted = on_evicted,
    .on_frame = on_frame,
    .on_sent = on_sent,
    .on_room = on_room,
    .on_close = on_close,
};
