#include "ws_server.h"

#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "heartbeat.h"
#include "http/http_lws.h"
#include "pace.h"
#include "transport.h"
#include "ws_server_upgrade.h"

#define WRITES_PER_TURN	  32 /* so that one agent's queue does not hold up the others */
#define DISCARD_MAX_BYTES (16u * 1024 * 1024)
#define PARTIAL_MAX_BYTES (256u * 1024 * 1024) /* half-received frames of all sockets */
/* lws keeps the time limits of closing sockets in one sorted list: with thousands in it each
 * further one costs a long walk. The next are closed as these are gone. */
#define CLOSING_MAX 1000

static_assert(SESSION_HEADROOM >= LWS_PRE, "queued frames need room for the WebSocket header");

struct sids { /* sessions to look at when the turn ends; by sid, since they may die before */
	uint64_t *item;
	size_t at, n, cap; /* at: the first that is left */
};

struct ws_server {
	struct ws_server_config cfg;
	struct loop *loop;
	struct http_lws *http;
	struct loop_later *later;
	struct sids writing, closing, pausing;
	size_t closing_now; /* sockets whose close frame is out, or on its way */
	size_t partial_bytes;
	struct pace pace;
	void (*on_closed)(void *arg);
	void *on_closed_arg;
};

/* lws' per-session data. */
struct ws_conn {
	struct session *s;
	char *rx; /* a frame that came in pieces */
	size_t rx_n, rx_cap;
	size_t dropped; /* bytes of a frame that is too big */
	bool too_big, closing;
	bool corked; /* the answer to the upgrade waits in the kernel for the first frame */
};

/* One bridge a process; transport.h has no room for an argument in struct session. */
static struct ws_server *the_server;

/* ---- transport.h ---- */

static bool sids_add(struct sids *l, uint64_t sid)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		uint64_t *item = realloc(l->item, cap * sizeof(*item));

		if (!item)
			return false;
		l->item = item;
		l->cap = cap;
	}
	l->item[l->n++] = sid;
	loop_later_ask(the_server->later);
	return true;
}

void transport_wake(struct session *s)
{
	if (!s->socket)
		return;
	if (!s->stuck_since_ms)
		s->stuck_since_ms = loop_now_ms(the_server->loop);
	if (!s->in_due_write)
		s->in_due_write = sids_add(&the_server->writing, s->sid);
}

void transport_pause(struct session *s)
{
	if (!s->in_due_pause && s->socket)
		s->in_due_pause = sids_add(&the_server->pausing, s->sid);
}

void transport_close(struct session *s)
{
	if (!s->in_due_close && s->socket)
		s->in_due_close = sids_add(&the_server->closing, s->sid);
}

/* ---- the end of a loop turn ---- */

/* lws sends its 101 at once, and HELLO_ACK comes when Redis has answered: held back (by Linux for
 * 200 ms at most) both leave in one segment. A send is a tenth of a handshake. */
static void cork(struct lws *wsi, int on)
{
	(void)setsockopt(lws_get_socket_fd(wsi), IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
}

static void uncork(struct lws *wsi, struct ws_conn *c)
{
	if (c->corked)
		cork(wsi, 0);
	c->corked = false;
}

static int write_frame(struct ws_server *w, struct lws *wsi, struct session_frame *q)
{
	int r = lws_write(wsi, (unsigned char *)q->bytes + SESSION_HEADROOM, q->n, LWS_WRITE_TEXT);

	if (q->type == WIRE_COMMAND)
		loop_hurry_for(w->loop, LOOP_ANSWER_MS);
	if (r >= 0)
		w->cfg.ops->on_sent(w->cfg.arg, q);
	free(q);
	return r < 0 ? -1 : 0;
}

/* An ERROR that explains the close should arrive before it. */
static void flush(struct ws_server *w, struct lws *wsi, struct session *s)
{
	while (s->out.first && !lws_partial_buffered(wsi) && !lws_send_pipe_choked(wsi))
		if (write_frame(w, wsi, session_next(s)) < 0)
			return;
}

static void close_now(struct ws_server *w, struct session *s)
{
	struct lws *wsi = s->socket;
	struct ws_conn *c;

	s->in_due_close = false;
	if (!wsi)
		return;
	c = lws_wsi_user(wsi);
	c->closing = true;
	w->closing_now++;
	uncork(wsi, c);
	flush(w, wsi, s);
	if (s->pause_applied) { /* the peer's close frame must be read */
		s->pause_applied = false;
		lws_rx_flow_control(wsi, 1);
	}
	lws_close_reason(wsi, (enum lws_close_status)s->close_code,
			 (unsigned char *)(uintptr_t)s->close_reason, strlen(s->close_reason));
	/* Sends the close frame and waits for the peer's; -1 from WRITEABLE would not. */
	lws_set_timeout(wsi, PENDING_TIMEOUT_CLOSE_SEND, LWS_TO_KILL_SYNC);
}

static void pause_now(struct ws_server *w, struct session *s)
{
	bool want = s->pause != 0;

	s->in_due_pause = false;
	if (want == s->pause_applied || !s->socket || !session_is_open(s))
		return;
	s->pause_applied = want;
	heartbeat_unheard(s, loop_now_ms(w->loop));
	lws_rx_flow_control(s->socket, want ? 0 : 1);
}

/* The next session that is still there, or NULL: the list is empty again. */
static struct session *sids_next(struct ws_server *w, struct sids *l)
{
	while (l->at < l->n) {
		struct session *s = sessions_find(w->cfg.sessions, l->item[l->at++]);

		if (s)
			return s;
	}
	free(l->item);
	*l = (struct sids){0};
	return NULL;
}

static int write_some(struct ws_server *w, struct lws *wsi, struct ws_conn *c);

/* At once, if the socket takes it: asking lws for a WRITEABLE costs about five epoll_ctl. */
static void write_now(struct ws_server *w, struct session *s)
{
	struct lws *wsi = s->socket;

	s->in_due_write = false;
	if (wsi && write_some(w, wsi, lws_wsi_user(wsi)) < 0)
		lws_set_timeout(wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_SYNC);
}

static void on_turn_end(void *arg)
{
	struct ws_server *w = arg;
	struct session *s;

	while ((s = sids_next(w, &w->writing)))
		write_now(w, s);
	while ((s = sids_next(w, &w->pausing)))
		pause_now(w, s);
	while (w->closing_now < CLOSING_MAX && (s = sids_next(w, &w->closing)))
		close_now(w, s);
}

/* ---- handshake ---- */

static int on_upgrade(void *arg, struct lws *wsi, const char *uri)
{
	struct ws_server *w = arg;
	struct handshake_verdict v, *kept;
	struct ws_upgrade u;

	if (ws_upgrade_read(&u, wsi, uri, http_lws_repeated(w->http)) < 0)
		return -1;
	w->cfg.ops->judge(w->cfg.arg, &u.request, &v);
	ws_upgrade_fini(&u);
	if (v.status)
		return http_lws_refuse(wsi, v.status, v.code, v.msg, v.retry_after_s);
	kept = malloc(sizeof(*kept));
	if (!kept)
		return -1;
	*kept = v;
	cork(wsi, 1);
	loop_hurry_for(w->loop, LOOP_ANSWER_MS);
	lws_set_opaque_user_data(wsi, kept); /* taken by on_established, or freed with the wsi */
	return 0;
}

/* ---- one socket ---- */

static int on_established(struct ws_server *w, struct lws *wsi, struct ws_conn *c)
{
	struct handshake_verdict *v = lws_get_opaque_user_data(wsi);

	memset(c, 0, sizeof(*c));
	if (!v)
		return -1;
	lws_set_opaque_user_data(wsi, NULL);
	c->s = w->cfg.ops->on_open(w->cfg.arg, v);
	free(v);
	c->corked = true;
	if (!c->s)
		return -1;
	c->s->socket = wsi;
	if (c->s->pause)
		transport_pause(c->s);
	if (c->s->out.first)
		transport_wake(c->s);
	if (!session_is_open(c->s))
		transport_close(c->s);
	return 0;
}

static void rx_free(struct ws_server *w, struct ws_conn *c)
{
	w->partial_bytes -= c->rx_cap;
	free(c->rx);
	c->rx = NULL;
	c->rx_n = c->rx_cap = 0;
}

static bool rx_append(struct ws_server *w, struct ws_conn *c, const char *bytes, size_t n)
{
	if (c->rx_n + n > c->rx_cap) {
		size_t cap = c->rx_cap ? c->rx_cap * 2 : 4096;
		char *rx;

		while (cap < c->rx_n + n)
			cap *= 2;
		if (w->partial_bytes + cap - c->rx_cap > PARTIAL_MAX_BYTES)
			return false;
		rx = realloc(c->rx, cap);
		if (!rx)
			return false;
		w->partial_bytes += cap - c->rx_cap;
		c->rx = rx;
		c->rx_cap = cap;
	}
	if (n) /* a fragment may be empty, and the first one then has no buffer */
		memcpy(c->rx + c->rx_n, bytes, n);
	c->rx_n += n;
	return true;
}

/* Read on to the frame's end: closing amid it would lose the close frame. */
static void drop(struct ws_conn *c, size_t n, bool final)
{
	c->dropped += n;
	if (final || c->dropped > DISCARD_MAX_BYTES)
		session_close(c->s, SESSION_CLOSE_TOO_BIG, "too_big");
}

static void on_receive(struct ws_server *w, struct lws *wsi, struct ws_conn *c, const char *in,
		       size_t n)
{
	bool final = lws_is_final_fragment(wsi), whole = final && c->rx_n == 0 && !c->too_big;
	size_t remaining = lws_remaining_packet_payload(wsi);
	struct session *s = c->s;
	unsigned pace_us;

	s->rx_at_ms = loop_now_ms(w->loop);
	if (pace_on_read(&w->pace, s, n, s->rx_at_ms))
		loop_hurry_once(w->loop);
	if (!session_is_open(s))
		return;
	if (lws_frame_is_binary(wsi)) {
		session_close(s, SESSION_CLOSE_BINARY, "binary");
		return;
	}
	if (final)
		s->partial_since_ms = 0;
	else if (!s->partial_since_ms)
		s->partial_since_ms = s->rx_at_ms;
	if (final && (pace_us = pace_on_frame(&w->pace, s->rx_at_ms)) > 0) {
		loop_pace(w->loop, pace_us, PACE_FOR_MS);
		loop_pace_hurried(w->loop, w->pace.hurried_us);
	}
	if (whole && n <= w->cfg.max_frame_bytes) {
		w->cfg.ops->on_frame(w->cfg.arg, s, in, n);
		return;
	}
	if (!c->too_big && (remaining > w->cfg.max_frame_bytes ||
			    c->rx_n + n + remaining > w->cfg.max_frame_bytes)) {
		c->too_big = true;
		rx_free(w, c);
	}
	if (c->too_big) {
		drop(c, n, final);
		return;
	}
	if (!rx_append(w, c, in, n)) {
		session_close(s, SESSION_CLOSE_REDIS, "overloaded");
		return;
	}
	if (!final)
		return;
	w->cfg.ops->on_frame(w->cfg.arg, s, c->rx, c->rx_n);
	rx_free(w, c);
}

/* What the socket takes; asks for a WRITEABLE when there is more. -1: the socket is broken. */
static int write_some(struct ws_server *w, struct lws *wsi, struct ws_conn *c)
{
	/* Empty pongs are not reported by lws, so the ping carries a byte. */
	unsigned char ping[LWS_PRE + 1] = {[LWS_PRE] = 'v'};
	struct session *s = c->s;
	struct session_frame *q;

	if (!session_is_open(s))
		return 0;
	/* Not lws_send_pipe_choked: that is a poll(2). Of a frame that does not fit lws keeps the
	 * rest, and gets no other until that has gone. */
	if (lws_partial_buffered(wsi)) {
		lws_callback_on_writable(wsi);
		return 0;
	}
	if (s->want_ping) {
		s->want_ping = false;
		if (lws_write(wsi, ping + LWS_PRE, 1, LWS_WRITE_PING) < 0)
			return -1;
	}
	for (int i = 0; i < WRITES_PER_TURN && s->out.first && !lws_partial_buffered(wsi); i++) {
		q = session_next(s);
		if (write_frame(w, wsi, q) < 0)
			return -1;
	}
	uncork(wsi, c);
	s->stuck_since_ms = 0;
	if (s->out.first || lws_partial_buffered(wsi)) {
		s->stuck_since_ms = loop_now_ms(w->loop);
		lws_callback_on_writable(wsi);
	}
	if (s->starved && !s->out.first) {
		s->starved = false;
		w->cfg.ops->on_room(w->cfg.arg, s);
	}
	return 0;
}

static void on_peer_close(struct session *s, const unsigned char *in, size_t n)
{
	if (!session_is_open(s))
		return;
	s->close_code = n >= 2 ? in[0] << 8 | in[1] : 1005;
	s->close_reason = "peer_closed";
	session_move(s, SESSION_CLOSING);
}

/* The socket is about to end. Where lws itself refused what was read (a reserved opcode or bit, a
 * control frame in pieces, a message amid another), its close frame is ready: 1002. It prepares
 * none for a control frame or a message that is too long. */
static void on_ending(struct lws *wsi, struct session *s)
{
	const unsigned char *code = lws_get_close_payload(wsi);

	if (!session_is_open(s))
		return;
	if (lws_get_close_length(wsi) < 2 && !lws_partial_buffered(wsi) &&
	    http_lws_peer_is_there(wsi))
		lws_close_reason(wsi, LWS_CLOSE_STATUS_PROTOCOL_ERR, NULL, 0);
	if (lws_get_close_length(wsi) < 2)
		return;
	s->close_code = code[0] << 8 | code[1];
	s->close_reason = "protocol_error";
	session_move(s, SESSION_CLOSING);
}

static void on_closed(struct ws_server *w, struct ws_conn *c)
{
	struct session *s = c->s;

	rx_free(w, c);
	c->s = NULL;
	if (c->closing) {
		w->closing_now--;
		if (w->closing.at < w->closing.n)
			loop_later_ask(w->later);
	}
	if (!s)
		return;
	s->socket = NULL;
	if (!s->close_reason)
		s->close_reason = "connection_lost";
	w->cfg.ops->on_close(w->cfg.arg, s);
}

static int on_ws(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
		 size_t len)
{
	struct ws_server *w = http_lws_arg(http_lws_of(wsi));
	struct ws_conn *c = user;

	switch (reason) {
	case LWS_CALLBACK_ESTABLISHED:
		return on_established(w, wsi, c);
	case LWS_CALLBACK_RECEIVE:
		if (c && c->s)
			on_receive(w, wsi, c, in, len);
		return 0;
	case LWS_CALLBACK_RECEIVE_PONG:
		if (c && c->s)
			c->s->rx_at_ms = loop_now_ms(w->loop);
		return 0;
	case LWS_CALLBACK_SERVER_WRITEABLE:
		return c && c->s ? write_some(w, wsi, c) : 0;
	case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
		if (c && c->s)
			on_peer_close(c->s, in, len);
		return 0;
	case LWS_CALLBACK_WS_SERVER_DROP_PROTOCOL:
		if (c && c->s)
			on_ending(wsi, c->s);
		return 0;
	case LWS_CALLBACK_CLOSED:
		if (c)
			on_closed(w, c);
		return 0;
	case LWS_CALLBACK_WSI_DESTROY:
		free(lws_get_opaque_user_data(wsi));
		lws_set_opaque_user_data(wsi, NULL);
		return 0;
	default:
		return 0;
	}
}

/* ---- open and close ---- */

static const struct lws_protocols ws_protocol = {
    .name = HANDSHAKE_SUBPROTOCOL,
    .callback = on_ws,
    .per_session_data_size = sizeof(struct ws_conn),
    .rx_buffer_size = PACE_READ_BYTES, /* per connection; larger frames are put together in rx */
};
static const char *const ws_paths[] = {"/agent/ws", "/ws/agent", NULL};

static struct http_lws_tls tls_of(const struct ws_server_config *cfg, char *msg, size_t msg_cap)
{
	msg[0] = '\0';
	return (struct http_lws_tls){.cert_path = cfg->tls_cert,
				     .key_path = cfg->tls_key,
				     .client_ca_path = cfg->tls_client_ca,
				     .crl_path = cfg->tls_crl,
				     .msg = msg,
				     .msg_cap = msg_cap};
}

static void on_bad_head(void *arg, const char *ip, const char *code, const char *why)
{
	struct ws_server *w = arg;

	w->cfg.ops->on_bad_head(w->cfg.arg, ip, code, why);
}

static void on_tls_refused(void *arg, const char *ip, const char *why)
{
	struct ws_server *w = arg;

	w->cfg.ops->on_tls_refused(w->cfg.arg, ip, why);
}

static void on_evicted(void *arg, const char *ip, size_t n)
{
	struct ws_server *w = arg;

	w->cfg.ops->on_evicted(w->cfg.arg, ip, n);
}

int ws_server_open(struct loop *l, const struct ws_server_config *cfg, struct ws_server **ret,
		   char *msg, size_t msg_cap)
{
	struct ws_server *w = calloc(1, sizeof(*w));
	struct http_lws_tls tls = tls_of(cfg, msg, msg_cap);
	struct http_lws_config http = {
	    .bind = cfg->bind,
	    .table = cfg->table,
	    .max_conns = cfg->max_conns,
	    .many = true,
	    .ws = &ws_protocol,
	    .on_upgrade = on_upgrade,
	    .ws_paths = ws_paths,
	    .once = handshake_header_name,
	    .arg = w,
	    .tls = cfg->tls_cert ? &tls : NULL,
	    .on_bad_head = on_bad_head,
	    .on_tls_refused = on_tls_refused,
	    .on_evicted = on_evicted,
	};
	int r;

	if (!w)
		return -ENOMEM;
	w->cfg = *cfg;
	w->loop = l;
	r = loop_later_new(l, on_turn_end, w, &w->later);
	if (r == 0) {
		the_server = w;
		r = http_lws_open(l, &http, &w->http);
	}
	if (r < 0) {
		if (w->later)
			loop_later_close(w->later);
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

int ws_server_reload_tls(struct ws_server *w, char *msg, size_t msg_cap)
{
	struct http_lws_tls tls = tls_of(&w->cfg, msg, msg_cap);

	return w->cfg.tls_cert ? http_lws_reload_tls(w->http, &tls) : 0;
}

uint16_t ws_server_port(const struct ws_server *w)
{
	return http_lws_port(w->http);
}

size_t ws_server_close_queue(const struct ws_server *w)
{
	return w->closing.n - w->closing.at;
}

size_t ws_server_answering(const struct ws_server *w)
{
	return http_lws_answering(w->http);
}

void ws_server_set_token(struct ws_server *w, const char *token)
{
	http_lws_set_token(w->http, token);
}

static void on_http_closed(void *arg)
{
	struct ws_server *w = arg;
	void (*done)(void *) = w->on_closed;
	void *done_arg = w->on_closed_arg;

	loop_later_close(w->later);
	free(w->writing.item);
	free(w->closing.item);
	free(w->pausing.item);
	free(w);
	the_server = NULL;
	done(done_arg);
}

void ws_server_close(struct ws_server *w, void (*done)(void *arg), void *arg)
{
	w->on_closed = done;
	w->on_closed_arg = arg;
	http_lws_close_then(w->http, on_http_closed, w);
}
