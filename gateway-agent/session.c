/* The conversation with a bridge. See session.h. */
#include "session_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "loop/loop.h"

#define WELCOME_MS	 15000
#define SILENT_MS	 60000 /* contract 1.2 */
#define TICK_MS		 5000
#define HEARTBEAT_MIN_S	 5
#define BAD_FRAMES_MAX	 10 /* a minute */
#define REFUSED_A_MINUTE 60 /* lines in the log */
#define STALE_EPOCH_MS	 60000
#define RING_MAX_BYTES	 4194304
#define STABLE_LOG_ENDS	 5 /* equal ends in a row logged in full; then every 50th */

static const char *const state_words[] = {"waiting", "dialling", "open", "ready", "closed"};

struct metric *session_metric(struct session *s, int id, const char *v1, const char *v2)
{
	return metrics_get(s->metrics, id, v1, v2);
}

static void changed(struct session *s)
{
	s->ops->on_change(s->arg);
}

/* ---- dialling ---- */

static void plan_dial(struct session *s)
{
	struct redial_next next = redial_next(&s->link, clock_boot_ms());

	s->state = WAITING;
	s->link.current = next.backend;
	s->next_dial_at_ms = clock_boot_ms() + next.wait_ms;
	loop_timer_start(s->dial, next.wait_ms, 0);
	changed(s);
}

static void on_dial(void *arg)
{
	struct session *s = arg;
	const struct redial_backend *b;

	/* A wait may have become shorter or longer by a reload. */
	s->link.current = redial_next(&s->link, clock_boot_ms()).backend;
	b = &s->link.backend[s->link.current];
	s->state = DIALLING;
	metric_add(session_metric(s, M_dials, NULL, NULL), 1);
	LOG_DEBUG(FIELDS(.event = "dial", .agent_id = s->cfg->id), "dialling %s", b->url);
	if (uplink_dial(s->uplink, b) < 0)
		plan_dial(s);
}

static void log_end(struct session *s, const struct redial_end *e, int64_t wait_ms)
{
	bool same = e->cause == s->last_end.cause && e->code == s->last_end.code &&
		    strcmp(e->detail, s->last_end.detail) == 0;

	s->same_ends = same ? s->same_ends + 1 : 0;
	if (s->same_ends >= STABLE_LOG_ENDS && s->same_ends % 50 != 0)
		return;
	LOG_WARN(FIELDS(.event = e->cause == REDIAL_PIN ? "pin_mismatch" : "disconnected",
			.agent_id = s->cfg->id, .conn_id = s->conn_id[0] ? s->conn_id : NULL,
			.error = redial_cause_word(e->cause),
			.detail = s->link.backend[s->link.current].url, .has_count = true,
			.count = s->same_ends + 1),
		 "%s; next try in %lld ms", e->detail[0] ? e->detail : redial_cause_word(e->cause),
		 (long long)wait_ms);
	if (redial_action_for(e) == REDIAL_HOURLY)
		LOG_ERROR(FIELDS(.event = "stopped_by_bridge", .agent_id = s->cfg->id),
			  "this agent is revoked or decommissioned; it asks again every hour");
}

static void on_uplink_end(void *arg, const struct redial_end *end)
{
	struct session *s = arg;
	int64_t now = clock_boot_ms();
	bool was_ready = s->state == READY;

	if (s->state == CLOSED)
		return;
	loop_timer_stop(s->welcome);
	loop_timer_stop(s->tick);
	redial_ended(&s->link, end, was_ready ? now - s->ready_at_ms : -1, now);
	log_end(s, end, redial_next(&s->link, now).wait_ms);
	s->last_end = *end;
	s->last_end_wall_ms = clock_wall_ms();
	metric_add(session_metric(s, M_ends, redial_cause_word(end->cause), NULL), 1);
	if (end->cause == REDIAL_PIN)
		metric_add(session_metric(s, M_pin_mismatch, NULL, NULL), 1);
	metric_set(session_metric(s, M_connected, NULL, NULL), 0);
	s->conn_id[0] = '\0';
	s->connected_wall_ms = 0;
	s->state = WAITING;
	if (was_ready)
		s->ops->on_end(s->arg);
	plan_dial(s);
}

/* ---- frames in ---- */

static void on_hello_ack(struct session *s, const struct wire_hello_ack *f)
{
	int64_t now = clock_boot_ms();

	if (s->server_ms) {
		uplink_hang_up(s->uplink, 1008, REDIAL_PROTOCOL, "a second HELLO_ACK");
		return;
	}
	if (!span_eq(f->agent_id, s->cfg->id)) {
		uplink_hang_up(s->uplink, 1008, REDIAL_PROTOCOL,
			       "the bridge takes this agent for another one");
		return;
	}
	/* A bridge that is behind (cut off from Redis, restored) must not be obeyed; but a Redis
	 * that lost its clock and its data would lock us out for ever. */
	if (f->epoch.v < s->highest_epoch) {
		if (!s->stale_since_ms)
			s->stale_since_ms = now;
		if (now - s->stale_since_ms < STALE_EPOCH_MS) {
			uplink_hang_up(s->uplink, 1008, REDIAL_STALE,
				       "the bridge's epoch is older than one seen before");
			return;
		}
		LOG_ERROR(FIELDS(.event = "epoch_reset", .agent_id = s->cfg->id),
			  "epochs stay behind one seen before; taking the new ones");
	}
	s->stale_since_ms = 0;
	s->epoch = f->epoch.v;
	s->highest_epoch = f->epoch.v;
	s->server_ms = f->server_time.ms;
	s->server_boot_ms = now;
	s->max_frame_bytes = f->max_frame_bytes.v < 4096 ? 4096 : f->max_frame_bytes.v;
	if (s->max_frame_bytes > UPLINK_MAX_FRAME_BYTES)
		s->max_frame_bytes = UPLINK_MAX_FRAME_BYTES;
	s->heartbeat_ms = 1000 * (int64_t)(f->heartbeat_s.v < HEARTBEAT_MIN_S ? HEARTBEAT_MIN_S
					   : f->heartbeat_s.v > 30	      ? 30
									      : f->heartbeat_s.v);
	if (span_copy(f->conn_id, s->conn_id, sizeof s->conn_id) < 0)
		s->conn_id[0] = '\0';
	if (session_hello(s, false) < 0)
		uplink_hang_up(s->uplink, 1000, REDIAL_LOCAL, "HELLO could not be sent");
}

static void on_welcome(struct session *s)
{
	if (s->state == READY || !s->server_ms)
		return;
	s->state = READY;
	s->ready_at_ms = clock_boot_ms();
	s->connected_wall_ms = clock_wall_ms();
	s->last_heartbeat_ms = s->ready_at_ms;
	loop_timer_stop(s->welcome);
	redial_welcomed(&s->link, s->ready_at_ms);
	s->same_ends = 0;
	s->last_end.detail[0] = '\0';
	metric_set(session_metric(s, M_connected, NULL, NULL), 1);
	if (s->welcomes++)
		metric_add(session_metric(s, M_reconnects, NULL, NULL), 1);
	LOG_INFO(FIELDS(.event = "connected", .agent_id = s->cfg->id, .conn_id = s->conn_id),
		 "welcomed by %s", s->link.backend[s->link.current].url);
	session_flush(s);
	s->ops->on_ready(s->arg, s->max_frame_bytes);
	changed(s);
}

static void on_ping(struct session *s, const struct wire_ping *f)
{
	struct wire_frame out = {.type = WIRE_PONG};

	out.pong.ts = f->ts;
	if (session_send_frame(s, &out) < 0)
		LOG_DEBUG(FIELDS(.event = "pong_not_sent"), "no room for PONG");
}

static void on_error(struct session *s, const struct wire_error *f)
{
	char id[CORRELATION_ID_MAX + 1] = "", code[65] = "";

	(void)!span_copy(f->correlation_id, id, sizeof id);
	(void)!span_copy(f->code, code, sizeof code);
	if (log_limit_pass(&s->refused, REFUSED_A_MINUTE) >= 0)
		LOG_WARN(FIELDS(.event = "frame_refused", .agent_id = s->cfg->id,
				.conn_id = s->conn_id, .correlation_id = id[0] ? id : NULL,
				.error = code),
			 "the bridge refused a frame: " SPAN_FMT, SPAN_ARG(f->msg));
	/* Not ours any more: repeating it would be refused for ever. */
	if (id[0] && strcmp(code, "not_yours") == 0)
		s->ops->on_result_ack(s->arg, f->correlation_id);
}

static void on_frame(struct session *s, const struct wire_frame *f)
{
	int64_t server_now = s->server_ms + (clock_boot_ms() - s->server_boot_ms);

	switch (f->type) {
	case WIRE_HELLO_ACK:
		on_hello_ack(s, &f->hello_ack);
		return;
	case WIRE_WELCOME:
		on_welcome(s);
		return;
	case WIRE_COMMAND:
		if (s->state == READY)
			s->ops->on_command(s->arg, &f->command, server_now);
		return;
	case WIRE_CANCEL:
		if (s->state == READY)
			s->ops->on_cancel(s->arg, &f->cancel);
		return;
	case WIRE_RESULT_ACK:
		s->ops->on_result_ack(s->arg, f->result_ack.correlation_id);
		return;
	case WIRE_PING:
		on_ping(s, &f->ping);
		return;
	case WIRE_ERROR:
		on_error(s, &f->error);
		return;
	default:
		return; /* HEARTBEAT, PONG: that something came is what counts */
	}
}

static void on_bad_frame(struct session *s, const struct wire_refusal_info *info)
{
	int64_t now = clock_boot_ms();

	metric_add(session_metric(s, M_frames_refused, wire_refusal_code(info->code), NULL), 1);
	if (info->code == WIRE_BAD_TYPE)
		return; /* a newer bridge's frame */
	LOG_WARN(FIELDS(.event = "bad_frame", .agent_id = s->cfg->id, .conn_id = s->conn_id,
			.error = wire_refusal_code(info->code)),
		 "a frame of the bridge was dropped: %s", info->msg);
	if (now - s->bad_since_ms > 60000) {
		s->bad_since_ms = now;
		s->bad_frames = 0;
	}
	if (++s->bad_frames >= BAD_FRAMES_MAX)
		uplink_hang_up(s->uplink, 1008, REDIAL_PROTOCOL,
			       "too many frames that break the protocol");
}

static void on_uplink_text(void *arg, const char *text, size_t n)
{
	struct session *s = arg;
	struct wire_refusal_info info = {0};
	struct wire_frame f;

	s->last_rx_ms = clock_boot_ms();
	if (wire_decode(s->decoder, WIRE_FROM_BRIDGE, text, n, &f, &info) != WIRE_OK) {
		on_bad_frame(s, &info);
		return;
	}
	metric_add(session_metric(s, M_frames, wire_type_word(f.type), "in"), 1);
	on_frame(s, &f);
}

/* ---- uplink and time ---- */

static void on_uplink_open(void *arg)
{
	struct session *s = arg;

	s->state = OPEN;
	s->server_ms = 0;
	s->last_rx_ms = clock_boot_ms();
	s->bad_frames = 0;
	loop_timer_start(s->welcome, WELCOME_MS, 0);
	loop_timer_start(s->tick, TICK_MS, TICK_MS);
	changed(s);
}

static void on_uplink_drained(void *arg)
{
	session_flush(arg);
}

static void on_welcome_timeout(void *arg)
{
	struct session *s = arg;

	uplink_hang_up(s->uplink, 1002, REDIAL_TIMEOUT, "no WELCOME in time");
}

static void on_tick(void *arg)
{
	struct session *s = arg;
	int64_t now = clock_boot_ms();

	if (now - s->last_rx_ms >= SILENT_MS)
		uplink_hang_up(s->uplink, 0, REDIAL_SILENT, "nothing heard for 60 s");
	else if (s->state == READY && now - s->last_heartbeat_ms >= s->heartbeat_ms)
		session_heartbeat(s);
}

void session_set_journal(struct session *s, const char *journal_id)
{
	if (!journal_id || strcmp(s->journal_id, journal_id) == 0)
		return;
	(void)snprintf(s->journal_id, sizeof s->journal_id, "%s", journal_id);
	if (s->state == READY || (s->state == OPEN && s->server_ms))
		uplink_hang_up(s->uplink, 1000, REDIAL_LOCAL, "the helper's journal became known");
}

static const struct uplink_ops uplink_ops = {.on_open = on_uplink_open,
					     .on_text = on_uplink_text,
					     .on_drained = on_uplink_drained,
					     .on_end = on_uplink_end};

void session_start(struct session *s)
{
	if (s->state == WAITING && !loop_timer_active(s->dial))
		loop_timer_start(s->dial, 0, 0);
}

int session_reload(struct session *s, const struct trust *t, bool dial_anew)
{
	struct redial fresh;
	char why[512];
	int r = redial_init(s->cfg->backend_url, &fresh, why, sizeof why);

	if (r < 0)
		return r;
	r = uplink_set_trust(s->uplink, t);
	if (r == 0)
		r = uplink_set_secret(s->uplink, s->cfg->shared_secret);
	if (r < 0 || !dial_anew) {
		redial_fini(&fresh);
		return r;
	}
	/* End what is open before the backend it points to goes away. */
	if (s->state != WAITING)
		uplink_hang_up(s->uplink, 1000, REDIAL_LOCAL, "settings changed");
	redial_adopt_health(&fresh, &s->link);
	redial_fini(&s->link);
	s->link = fresh;
	if (loop_timer_active(s->dial))
		plan_dial(s);
	return 0;
}

void session_view(const struct session *s, struct session_view *ret)
{
	*ret = (struct session_view){
	    .state = state_words[s->state],
	    .url = s->link.backend[s->link.current].url,
	    .conn_id = s->conn_id,
	    .journal_id = s->journal_id,
	    .epoch = s->epoch,
	    .reconnects = s->welcomes > 1 ? s->welcomes - 1 : 0,
	    .seq = s->seq,
	    .max_frame_bytes = s->max_frame_bytes,
	    .connected_ms = s->connected_wall_ms,
	    .next_dial_in_ms = s->state == WAITING ? s->next_dial_at_ms - clock_boot_ms() : -1,
	    .last_end = s->last_end,
	    .last_end_ms = s->last_end_wall_ms,
	    .ring_frames = s->ring.count,
	    .peer = uplink_peer(s->uplink),
	    .link = &s->link,
	};
}

void session_tell_changes(struct session *s)
{
	if (s->state == READY && session_hello(s, true) < 0)
		uplink_hang_up(s->uplink, 1000, REDIAL_LOCAL, "HELLO could not be sent");
}

bool session_is_ready(const struct session *s)
{
	return s->state == READY;
}

int session_open(struct loop *l, struct metrics *m, const struct agent_settings *cfg,
		 const struct trust *t, const struct session_ops *ops, void *arg,
		 struct session **ret)
{
	struct session *s = calloc(1, sizeof *s);
	char why[512];
	int r;

	if (!s)
		return -ENOMEM;
	*s = (struct session){.loop = l,
			      .metrics = m,
			      .cfg = cfg,
			      .ops = ops,
			      .arg = arg,
			      .state = WAITING,
			      .max_frame_bytes = UPLINK_MAX_FRAME_BYTES};
	ident_uuid4(s->boot_id);
	r = redial_init(cfg->backend_url, &s->link, why, sizeof why);
	if (r == 0)
		r = ring_init(&s->ring, (size_t)cfg->ring_frames, RING_MAX_BYTES);
	if (r == 0)
		r = wire_decoder_new(UPLINK_MAX_FRAME_BYTES, &s->decoder);
	if (r == 0)
		r = loop_timer_new(l, on_dial, s, &s->dial);
	if (r == 0)
		r = loop_timer_new(l, on_welcome_timeout, s, &s->welcome);
	if (r == 0)
		r = loop_timer_new(l, on_tick, s, &s->tick);
	if (r == 0)
		r = uplink_open(l,
				&(struct uplink_config){.agent_id = cfg->id,
							.shared_secret = cfg->shared_secret},
				&uplink_ops, s, &s->uplink);
	if (r == 0)
		r = uplink_set_trust(s->uplink, t);
	if (r < 0) {
		session_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

void session_close(struct session *s)
{
	if (!s)
		return;
	s->state = CLOSED;
	uplink_close(s->uplink);
	loop_timer_close(s->dial);
	loop_timer_close(s->welcome);
	loop_timer_close(s->tick);
	if (s->decoder)
		wire_decoder_free(s->decoder);
	ring_fini(&s->ring);
	redial_fini(&s->link);
	free(s);
}
