/*
 * Our listening socket: what is accepted when. Accepting pauses at the cap, without descriptors,
 * and while enough TLS handshakes are at work.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/http_accept.h"

#define ACCEPT_BATCH	64  /* per turn, so that other sockets get their turn in a storm */
#define ACCEPT_PAUSE_MS 100 /* after EMFILE */
#define BACKLOG		4096
#define DEFER_ACCEPT_S	5

static bool has_room(struct http_lws *h)
{
	return h->conns < h->cfg.max_conns && !http_opening_busy(h);
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

static void on_listener_ready(void *arg, int events UNUSED)
{
	struct http_lws *h = arg;

	for (int i = 0; i < ACCEPT_BATCH; i++) {
		struct netaddr peer = {.len = sizeof(peer.ss)};
		int fd;

		if (!has_room(h)) {
			accept_pause(h);
			if (h->conns >= h->cfg.max_conns)
				http_opening_make_room(h);
			return;
		}
		fd = accept4(h->fd, (struct sockaddr *)&peer.ss, &peer.len,
			     SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			http_opening_take(h, fd, &peer);
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
	(void)setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* inherited */
	/* Who says nothing is the kernel's to keep for a while. */
	(void)setsockopt(h->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer_s, sizeof(defer_s));
	if (bind(h->fd, (struct sockaddr *)&a.ss, a.len) < 0 || listen(h->fd, BACKLOG) < 0)
		return -errno;
	a.len = sizeof(a.ss);
	if (getsockname(h->fd, (struct sockaddr *)&a.ss, &a.len) < 0)
		return -errno;
	h->port = netaddr_port(&a);
	r = http_opening_init(h);
	if (r == 0)
		r = loop_poll_new(h->loop, h->fd, on_listener_ready, h, &h->poll);
	return r < 0 ? r : loop_poll_set(h->poll, LOOP_READ);
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
