/*
 * The lws context, its one vhost, and our listening socket. States of a server: open → (accepting
 * paused at the cap or without descriptors) → closing → freed by its own timer, after lws' second
 * destroy call.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/ssl.h>

#include "base/log.h"
#include "http/http_head.h"
#include "http/http_internal.h"

#define ACCEPT_BATCH	64  /* per turn, so that other sockets get their turn in a storm */
#define ACCEPT_PAUSE_MS 100 /* after EMFILE */
#define DESTROY_STEP_MS 20
#define BACKLOG		4096
/* TLS handshakes at work at once: more would only make each slower, until they time out. Those
 * older than two ticks wait for their client and do not count, so that silent ones stop nobody. */
#define HANDSHAKES_MAX	  200
#define HANDSHAKE_TICK_MS 1000
#define HEAD_MAX	  8192 /* of which lws has to make do with too */
#define HEAD_TIMEOUT_MS	  20000
#define DEFER_ACCEPT_S	  5
#define HANDSHAKE_TICKS	  4 /* a power of two, for the ring of counts */

/* A plain socket whose first request head has not come whole. It is only peeked at, so that lws
 * finds it untouched. */
struct waiting {
	struct http_lws *server;
	struct waiting *prev, *next;
	struct loop_poll *poll;
	int fd;
	int64_t until_ms;
	size_t had;
	unsigned repeated;
	bool drop;
};

struct http_lws {
	struct loop *loop;
	struct http_table table;
	struct http_lws_config cfg;
	struct lws_protocols protocols[3];
	struct lws_context *context;
	struct lws_vhost *vhost;
	int fd;
	uint16_t port;
	struct loop_poll *poll;
	struct loop_timer *timer; /* resumes accepting; later drives the destroy steps */
	size_t conns;
	SSL_CTX *tls;			      /* lws' own; NULL: plain */
	unsigned handshakes[HANDSHAKE_TICKS]; /* unfinished ones, by the tick they began in */
	unsigned tick;
	struct waiting *waiting;
	struct loop_timer *waiting_timer;
	unsigned repeated; /* of the upgrade being judged */
	bool paused, closing;
	int destroy_step;
	loop_cb on_closed;
	void *on_closed_arg;
};

const struct http_table *http_lws_table(const struct http_lws *h)
{
	return &h->table;
}

const char *const *http_lws_ws_paths(const struct http_lws *h)
{
	return h->cfg.ws_paths;
}

uint16_t http_lws_port(const struct http_lws *h)
{
	return h->port;
}

void *http_lws_arg(struct http_lws *h)
{
	return h->cfg.arg;
}

struct lws_vhost *http_lws_vhost(struct http_lws *h)
{
	return h->vhost;
}

struct loop *http_lws_loop(struct http_lws *h)
{
	return h->loop;
}

unsigned http_lws_repeated(const struct http_lws *h)
{
	return h->tls ? 0 : h->repeated;
}

size_t http_lws_conns(const struct http_lws *h)
{
	return h->conns;
}

struct http_lws *http_lws_of(struct lws *wsi)
{
	return lws_context_user(lws_get_context(wsi));
}

bool http_lws_peer(struct lws *wsi, struct netaddr *ret)
{
	int fd = lws_get_socket_fd(wsi);

	memset(ret, 0, sizeof(*ret));
	ret->len = sizeof(ret->ss);
	return fd >= 0 && getpeername(fd, (struct sockaddr *)&ret->ss, &ret->len) == 0;
}

void http_lws_set_token(struct http_lws *h, const char *token)
{
	h->table.token = token;
}

/* ---- accepting ---- */

/* A socket whose handshake is unfinished carries its tick in lws' opaque pointer, as an odd
 * number; what ws_server keeps there later is a pointer, and even. */
static unsigned tick_now(struct http_lws *h)
{
	unsigned tick = (unsigned)(loop_now_ms(h->loop) / HANDSHAKE_TICK_MS);

	/* Those of the ticks passed since are too old to count. */
	for (; h->tick != tick; h->tick++)
		h->handshakes[(h->tick + 2) % HANDSHAKE_TICKS] = 0;
	return tick;
}

static void handshake_begun(struct http_lws *h, struct lws *wsi)
{
	unsigned tick = tick_now(h);

	h->handshakes[tick % HANDSHAKE_TICKS]++;
	lws_set_opaque_user_data(wsi, (void *)((uintptr_t)tick << 1 | 1)); /* NOLINT */
}

static void accept_resume(struct http_lws *h);

static void handshake_over(struct http_lws *h, struct lws *wsi)
{
	uintptr_t tag = (uintptr_t)lws_get_opaque_user_data(wsi);
	unsigned began = (unsigned)(tag >> 1), now;

	if (!(tag & 1))
		return;
	lws_set_opaque_user_data(wsi, NULL);
	if (!h->tls)
		return;
	now = tick_now(h);
	if (now - began < 2 && h->handshakes[began % HANDSHAKE_TICKS])
		h->handshakes[began % HANDSHAKE_TICKS]--;
	accept_resume(h);
}

static bool has_room(struct http_lws *h)
{
	unsigned tick, young;

	if (h->conns >= h->cfg.max_conns)
		return false;
	if (!h->tls)
		return true;
	tick = tick_now(h);
	young = h->handshakes[tick % HANDSHAKE_TICKS] + h->handshakes[(tick - 1) % HANDSHAKE_TICKS];
	return young < HANDSHAKES_MAX;
}

static void accept_resume(struct http_lws *h)
{
	if (h->closing || !h->poll || !h->paused || !has_room(h))
		return;
	h->paused = false;
	if (loop_poll_set(h->poll, LOOP_READ) < 0)
		h->paused = true;
}

static void accept_pause(struct http_lws *h)
{
	h->paused = true;
	(void)!loop_poll_set(h->poll, 0);
	/* Mostly a socket that ends resumes; the timer is for descriptors and handshakes. */
	loop_timer_start(h->timer, ACCEPT_PAUSE_MS, 0);
}

static void count_conn(struct http_lws *h, int by)
{
	if (by > 0) {
		h->conns++;
	} else if (h->conns > 0) {
		h->conns--;
		accept_resume(h);
	}
}

/* On failure lws closes fd. */
static void adopt(struct http_lws *h, int fd, unsigned repeated)
{
	struct lws *wsi = lws_adopt_socket_vhost(h->vhost, fd);

	if (wsi && h->tls)
		handshake_begun(h, wsi);
	else if (wsi && h->cfg.once)
		lws_set_opaque_user_data(wsi, (void *)((uintptr_t)repeated << 1 | 1)); /* NOLINT */
}

static void on_waiting_closed(void *arg)
{
	struct waiting *w = arg;
	struct http_lws *h = w->server;
	int one = 1;

	if (w->prev)
		w->prev->next = w->next;
	else
		h->waiting = w->next;
	if (w->next)
		w->next->prev = w->prev;
	if (!w->drop && !h->closing) {
		(void)setsockopt(w->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
		adopt(h, w->fd, w->repeated);
	} else {
		close(w->fd);
	}
	count_conn(h, -1);
	free(w);
}

static void waiting_end(struct waiting *w, bool drop)
{
	if (!w->poll)
		return;
	w->drop = drop;
	loop_poll_close(TAKE(w->poll), on_waiting_closed, w);
}

/* 1: the head is there, or can never be; 0: more has to come; -1: the peer is gone. */
static int head_look(struct http_lws *h, int fd, size_t *had, unsigned *repeated)
{
	char bytes[HEAD_MAX];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
	size_t head;
	int low;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	if ((size_t)n == *had)
		return -1; /* woken, and nothing new: the end */
	*had = (size_t)n;
	head = http_head_length(bytes, *had);
	if (head == 0 && *had < sizeof(bytes)) {
		low = (int)*had + 1; /* wake when there is more than this */
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low));
		return 0;
	}
	*repeated = http_head_repeated(bytes, head, h->cfg.once);
	return 1;
}

static void on_waiting_ready(void *arg, int events UNUSED)
{
	struct waiting *w = arg;
	int r;

	if (!w->poll)
		return;
	r = head_look(w->server, w->fd, &w->had, &w->repeated);
	if (r)
		waiting_end(w, r < 0);
}

static void on_waiting_timer(void *arg)
{
	struct http_lws *h = arg;
	int64_t now_ms = loop_now_ms(h->loop);

	for (struct waiting *w = h->waiting; w; w = w->next)
		if (now_ms > w->until_ms)
			waiting_end(w, true);
	if (h->waiting && !h->closing)
		loop_timer_start(h->waiting_timer, HANDSHAKE_TICK_MS, 0);
}

static void wait_for_head(struct http_lws *h, int fd, size_t had)
{
	struct waiting *w = calloc(1, sizeof(*w));

	if (!w || loop_poll_new(h->loop, fd, on_waiting_ready, w, &w->poll) < 0) {
		free(w);
		close(fd);
		return;
	}
	w->server = h;
	w->fd = fd;
	w->had = had;
	w->until_ms = loop_now_ms(h->loop) + HEAD_TIMEOUT_MS;
	w->next = h->waiting;
	if (w->next)
		w->next->prev = w;
	h->waiting = w;
	count_conn(h, 1);
	if (loop_poll_set(w->poll, LOOP_READ) < 0)
		waiting_end(w, true);
	if (!loop_timer_active(h->waiting_timer))
		loop_timer_start(h->waiting_timer, HANDSHAKE_TICK_MS, 0);
}

static void on_accepted(struct http_lws *h, int fd)
{
	unsigned repeated = 0;
	size_t had = 0;
	int one = 1, r = 1;

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (h->cfg.once && !h->tls) {
		had = SIZE_MAX;
		r = head_look(h, fd, &had, &repeated);
	}
	if (r > 0)
		adopt(h, fd, repeated);
	else if (r == 0)
		wait_for_head(h, fd, had);
	else
		close(fd);
}

static void on_listener_ready(void *arg, int events UNUSED)
{
	struct http_lws *h = arg;

	for (int i = 0; i < ACCEPT_BATCH; i++) {
		int fd;

		if (!has_room(h)) {
			accept_pause(h);
			return;
		}
		fd = accept4(h->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			on_accepted(h, fd);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			accept_pause(h);
			return;
		}
		if (errno != EINTR && errno != ECONNABORTED)
			return; /* EAGAIN, or a fault of one peer */
	}
}

static int listener_open(struct http_lws *h, const char *bind_text)
{
	struct netaddr a;
	int one = 1, defer_s = DEFER_ACCEPT_S, r;

	r = netaddr_parse_hostport(bind_text, &a);
	if (r < 0)
		return r;
	h->fd = socket(a.ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (h->fd < 0)
		return -errno;
	(void)setsockopt(h->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	/* Who says nothing is the kernel's to keep for a while. */
	(void)setsockopt(h->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer_s, sizeof(defer_s));
	if (bind(h->fd, (struct sockaddr *)&a.ss, a.len) < 0 || listen(h->fd, BACKLOG) < 0)
		return -errno;
	a.len = sizeof(a.ss);
	if (getsockname(h->fd, (struct sockaddr *)&a.ss, &a.len) < 0)
		return -errno;
	h->port = netaddr_port(&a);
	r = loop_poll_new(h->loop, h->fd, on_listener_ready, h, &h->poll);
	return r < 0 ? r : loop_poll_set(h->poll, LOOP_READ);
}

/* ---- lws callbacks ---- */

static int on_confirm_upgrade(struct http_lws *h, struct lws *wsi)
{
	char upgrade[32], uri[512];

	/* Not `in`: it dangles after keep-alive followed by an unknown upgrade. */
	if (lws_hdr_total_length(wsi, WSI_TOKEN_UPGRADE) <= 0)
		return -1;
	if (lws_hdr_copy(wsi, upgrade, sizeof(upgrade), WSI_TOKEN_UPGRADE) <= 0 ||
	    strcasecmp(upgrade, "websocket") != 0)
		return http_lws_refuse(wsi, 400, "bad_upgrade", "only Upgrade: websocket is served",
				       0);
	if (lws_hdr_copy(wsi, uri, sizeof(uri), WSI_TOKEN_GET_URI) <= 0)
		return http_lws_refuse(wsi, 400, "bad_upgrade",
				       "an upgrade is a GET of a short path", 0);
	for (const char *const *p = h->cfg.ws_paths; p && *p; p++)
		if (strcmp(*p, uri) == 0)
			return h->cfg.on_upgrade(h->cfg.arg, wsi, uri);
	return http_lws_refuse(wsi, 404, "not_found", "no WebSocket on this path", 0);
}

/* lws made the SSL_CTX of the vhost; it is empty. */
static int tls_begin(struct http_lws *h, SSL_CTX *ctx)
{
	if (http_tls_apply(ctx, h->cfg.tls) < 0)
		return -1;
	SSL_CTX_set_app_data(ctx, h);
	SSL_CTX_set_info_callback(ctx, http_tls_on_info);
	h->tls = ctx;
	return 0;
}

void http_lws_tls_refused(struct http_lws *h, const char *ip, const char *why)
{
	if (h->cfg.on_tls_refused)
		h->cfg.on_tls_refused(h->cfg.arg, ip, why);
}

int http_lws_reload_tls(struct http_lws *h, const struct http_lws_tls *tls)
{
	int r = h->tls ? http_tls_check(tls) : -EPROTO;

	return r < 0 ? r : http_tls_apply(h->tls, tls);
}

static int on_http(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
		   size_t len)
{
	struct http_lws *h = http_lws_of(wsi);
	struct http_conn *c = user;

	switch (reason) {
	case LWS_CALLBACK_WSI_CREATE:
		count_conn(h, 1);
		return 0;
	case LWS_CALLBACK_WSI_DESTROY:
		handshake_over(h, wsi);
		count_conn(h, -1);
		return h->cfg.ws ? h->cfg.ws->callback(wsi, reason, user, in, len) : 0;
	case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
		h->repeated = (unsigned)((uintptr_t)lws_get_opaque_user_data(wsi) >> 1);
		handshake_over(h, wsi);
		return on_confirm_upgrade(h, wsi);
	case LWS_CALLBACK_HTTP:
		handshake_over(h, wsi);
		return http_on_request(h, wsi, c, in);
	case LWS_CALLBACK_HTTP_BODY:
		return http_on_body(c, in, len);
	case LWS_CALLBACK_HTTP_BODY_COMPLETION:
		return http_on_body_end(c);
	case LWS_CALLBACK_HTTP_WRITEABLE:
		return http_on_writable(wsi, c);
	case LWS_CALLBACK_CLOSED_HTTP:
	case LWS_CALLBACK_HTTP_DROP_PROTOCOL:
		if (c)
			http_on_gone(c);
		return 0;
	case LWS_CALLBACK_ESTABLISHED:
	case LWS_CALLBACK_RECEIVE:
	case LWS_CALLBACK_RECEIVE_PONG:
	case LWS_CALLBACK_SERVER_WRITEABLE:
	case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
	case LWS_CALLBACK_CLOSED:
		return h->cfg.ws ? h->cfg.ws->callback(wsi, reason, user, in, len) : -1;
	case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_SERVER_VERIFY_CERTS:
		return tls_begin(h, user);
	case LWS_CALLBACK_OPENSSL_PERFORM_CLIENT_CERT_VERIFICATION:
		return len ? 0 : 1; /* OpenSSL's verdict; lws ignores it otherwise */
	default:
		return 0;
	}
}

/* ---- open and close ---- */

static void on_lws_log(int level UNUSED, const char *line)
{
	LOG_DEBUG(FIELDS(.event = "libwebsockets"), "%.*s", (int)strcspn(line, "\n"), line);
}

static int context_open(struct http_lws *h)
{
	/* All zero: lws keeps no validity timers of its own (they are sorted lists). */
	static const lws_retry_bo_t no_validity;
	void *loops[1] = {loop_native(h->loop)};
	int r;
	struct lws_context_creation_info info = {
	    .port = CONTEXT_PORT_NO_LISTEN_SERVER,
	    .protocols = h->protocols,
	    .user = h,
	    .foreign_loops = loops,
	    .options = LWS_SERVER_OPTION_LIBUV | LWS_SERVER_OPTION_EXPLICIT_VHOSTS |
		       LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS,
	    .fd_limit_per_thread = h->cfg.many ? 0 : (unsigned)h->cfg.max_conns + 32,
	    .max_http_header_pool = 0,
	    .max_http_header_data = 8192,
	    .timeout_secs = 20,
	    .timeout_secs_ah_idle = 60,
	    .keepalive_timeout = 30,
	    .pt_serv_buf_size = 4096,
	    .retry_and_idle_policy = &no_validity,
	    .vhost_name = "default",
	    .alpn = "http/1.1",
	};

	if (h->cfg.tls) {
		info.options |=
		    LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_CREATE_VHOST_SSL_CTX;
		if (h->cfg.tls->client_ca_path)
			info.options |= LWS_SERVER_OPTION_REQUIRE_VALID_OPENSSL_CLIENT_CERT;
		r = http_tls_check(h->cfg.tls);
		if (r < 0)
			return r;
	}
	lws_set_log_level(log_enabled(LOG_LEVEL_DEBUG) ? LLL_ERR | LLL_WARN : 0, on_lws_log);
	h->context = lws_create_context(&info);
	if (!h->context)
		return -ENOMEM;
	h->vhost = lws_create_vhost(h->context, &info);
	h->cfg.tls = NULL; /* the caller's, for the time of the call */
	return h->vhost ? 0 : -ENOMEM;
}

/* A client that offers no subprotocol is served by protocols[0]: both are the same in all but
 * name, and on_http tells HTTP from WebSocket by the reason. */
static void protocols_fill(struct http_lws *h)
{
	size_t session = sizeof(struct http_conn);

	if (h->cfg.ws && h->cfg.ws->per_session_data_size > session)
		session = h->cfg.ws->per_session_data_size;
	h->protocols[0] = (struct lws_protocols){
	    .name = "http", .callback = on_http, .per_session_data_size = session};
	if (!h->cfg.ws)
		return;
	h->protocols[0].rx_buffer_size = h->cfg.ws->rx_buffer_size;
	h->protocols[1] = h->protocols[0];
	h->protocols[1].name = h->cfg.ws->name;
}

static void http_lws_release(struct http_lws *h)
{
	loop_timer_close(h->timer);
	loop_timer_close(h->waiting_timer);
	if (h->on_closed)
		h->on_closed(h->on_closed_arg);
	free(h);
}

/* First destroy, loop turns, second destroy: called twice without turns between, lws crashes. */
static void on_timer(void *arg)
{
	struct http_lws *h = arg;

	if (!h->closing) {
		accept_resume(h);
		if (h->paused && h->poll)
			loop_timer_start(h->timer, ACCEPT_PAUSE_MS, 0);
		return;
	}
	switch (h->destroy_step++) {
	case 0:
		for (struct waiting *w = h->waiting; w; w = w->next)
			waiting_end(w, true);
		if (h->context)
			lws_context_destroy(h->context);
		loop_timer_start(h->timer, DESTROY_STEP_MS, 0);
		return;
	default:
		if (h->context)
			lws_context_destroy(h->context);
		http_lws_release(h);
		return;
	}
}

static void on_listener_closed(void *arg)
{
	int *fd = arg;

	close(*fd);
	free(fd);
}

void http_lws_stop_accepting(struct http_lws *h)
{
	int *fd;

	if (!h->poll)
		return;
	/* The port must answer no more from now on, though the watcher closes a turn later. */
	(void)shutdown(h->fd, SHUT_RDWR);
	fd = malloc(sizeof(*fd));
	if (fd)
		*fd = h->fd;
	loop_poll_close(h->poll, fd ? on_listener_closed : NULL, fd);
	h->poll = NULL;
	h->fd = -1;
}

void http_lws_close(struct http_lws *h)
{
	http_lws_close_then(h, NULL, NULL);
}

void http_lws_close_then(struct http_lws *h, loop_cb done, void *arg)
{
	if (!h || h->closing)
		return;
	h->on_closed = done;
	h->on_closed_arg = arg;
	http_lws_stop_accepting(h);
	h->closing = true;
	loop_timer_start(h->timer, 0, 0);
}

int http_lws_open(struct loop *l, const struct http_lws_config *cfg, struct http_lws **ret)
{
	struct http_lws *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->loop = l;
	h->cfg = *cfg;
	h->table = *cfg->table;
	h->fd = -1;
	protocols_fill(h);
	r = loop_timer_new(l, on_timer, h, &h->timer);
	if (r == 0)
		r = loop_timer_new(l, on_waiting_timer, h, &h->waiting_timer);
	if (r < 0) {
		loop_timer_close(h->timer);
		free(h);
		return r;
	}
	r = listener_open(h, cfg->bind);
	if (r == 0)
		r = context_open(h);
	if (r < 0) {
		if (h->fd >= 0 && !h->poll)
			close(h->fd);
		http_lws_close(h);
		return r;
	}
	*ret = h;
	return 0;
}
