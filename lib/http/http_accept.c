/*
 * Our listening socket: what is accepted when, and what is known of a request head before lws gets
 * the socket. Accepting pauses at the cap, without descriptors, and while enough TLS handshakes
 * are at work.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/http_accept.h"
#include "http/http_head.h"

#define ACCEPT_BATCH	64  /* per turn, so that other sockets get their turn in a storm */
#define ACCEPT_PAUSE_MS 100 /* after EMFILE */
#define BACKLOG		4096
/* TLS handshakes at work at once: more would only make each slower, until they time out. Those
 * older than two ticks wait for their client and do not count, so that silent ones stop nobody. */
#define HANDSHAKES_MAX	  200
#define HANDSHAKE_TICK_MS 1000
#define HEAD_MAX	  8192 /* of which lws has to make do with too */
#define HEAD_TIMEOUT_MS	  20000
#define DEFER_ACCEPT_S	  5

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

/* A socket whose handshake is unfinished carries its tick in lws' opaque pointer, as an odd
 * number; what ws_server keeps there later is a pointer, and even. */
static unsigned tick_now(struct http_lws *h)
{
	unsigned tick = (unsigned)(loop_now_ms(h->loop) / HANDSHAKE_TICK_MS);

	/* Those of the ticks passed since are too old to count. */
	for (; h->tick != tick; h->tick++)
		h->handshakes[(h->tick + 2) % HTTP_HANDSHAKE_TICKS] = 0;
	return tick;
}

static void handshake_begun(struct http_lws *h, struct lws *wsi)
{
	unsigned tick = tick_now(h);

	h->handshakes[tick % HTTP_HANDSHAKE_TICKS]++;
	lws_set_opaque_user_data(wsi, (void *)((uintptr_t)tick << 1 | 1)); /* NOLINT */
}

void http_accept_handshake_over(struct http_lws *h, struct lws *wsi)
{
	uintptr_t tag = (uintptr_t)lws_get_opaque_user_data(wsi);
	unsigned began = (unsigned)(tag >> 1), now;

	if (!(tag & 1))
		return;
	lws_set_opaque_user_data(wsi, NULL);
	if (!h->tls)
		return;
	now = tick_now(h);
	if (now - began < 2 && h->handshakes[began % HTTP_HANDSHAKE_TICKS])
		h->handshakes[began % HTTP_HANDSHAKE_TICKS]--;
	http_accept_resume(h);
}

static bool has_room(struct http_lws *h)
{
	unsigned tick, young;

	if (h->conns >= h->cfg.max_conns)
		return false;
	if (!h->tls)
		return true;
	tick = tick_now(h);
	young = h->handshakes[tick % HTTP_HANDSHAKE_TICKS] +
		h->handshakes[(tick - 1) % HTTP_HANDSHAKE_TICKS];
	return young < HANDSHAKES_MAX;
}

void http_accept_resume(struct http_lws *h)
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

void http_accept_count(struct http_lws *h, int by)
{
	if (by > 0) {
		h->conns++;
	} else if (h->conns > 0) {
		h->conns--;
		http_accept_resume(h);
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
	http_accept_count(h, -1);
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
	http_accept_count(h, 1);
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

int http_accept_open(struct http_lws *h, const char *bind_text)
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
	r = loop_timer_new(h->loop, on_waiting_timer, h, &h->waiting_timer);
	if (r == 0)
		r = loop_poll_new(h->loop, h->fd, on_listener_ready, h, &h->poll);
	return r < 0 ? r : loop_poll_set(h->poll, LOOP_READ);
}

void http_accept_drop_waiting(struct http_lws *h)
{
	for (struct waiting *w = h->waiting; w; w = w->next)
		waiting_end(w, true);
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
