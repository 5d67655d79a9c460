/*
 * Sockets from accept until their first request is there. States of one: waiting (we only peek, lws
 * does not know it) → adopted (lws reads it: TLS handshake and head) → over. A plain socket waits
 * for its whole head, a TLS socket for its first byte, so that who says nothing costs no more than
 * this. A body that is announced has to come, too. A head that cannot be read is refused in either
 * state; the socket is then read to its end for a moment, so that the answer arrives.
 *
 * Why heads are looked at here: lws gives the first of repeated headers and cannot tell that there
 * were more, and hangs up on what it cannot read. Plain heads are peeked at; decrypted ones pass by
 * in SSL_read below.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http/http_accept.h"
#include "http/http_head.h"

/* TLS handshakes at work at once: more would only make each slower, until they time out. Those
 * older than two ticks wait for their client and do not count, so that silent ones stop nobody. */
#define HANDSHAKES_MAX 200
#define TICK_MS	       1000
#define WAIT_MS	       20000
#define LINGER_S       2  /* after a refusal */
#define LINGER_READS   16 /* in one turn: who sends on and on is hung up on */
/* Nobody with less than this many openings loses one; nobody loses more than that in one turn. */
#define FAIR_SHARE 8
#define EVICT_MAX  64

struct opening {
	struct http_lws *server;
	struct opening *prev, *next;
	struct loop_poll *poll; /* waiting */
	struct lws *wsi;	/* adopted */
	uint64_t peer;
	int64_t until_ms; /* waiting */
	size_t had;	  /* bytes seen when we peeked */
	int fd;
	unsigned tick, repeated;
	bool drop, refused, headed; /* the last: TLS, its whole head was seen */
	bool whole;		    /* plain: its head and nothing behind it can be read */
	bool literal;		    /* its path is one of cfg.ws_paths as it was sent */
	size_t head_n;		    /* TLS: decrypted so far */
	char *head;
};

static _Atomic int ssl_index = -1; /* where an SSL keeps its opening; -1: nobody asks */
static int (*openssl_read)(SSL *ssl, void *buf, int num);

/* ---- the list ---- */

static void link_last(struct http_lws *h, struct opening *o)
{
	o->prev = h->opening_last;
	if (o->prev)
		o->prev->next = o;
	else
		h->opening = o;
	h->opening_last = o;
	h->openings++;
}

static void opening_free(struct opening *o)
{
	struct http_lws *h = o->server;

	if (o->prev)
		o->prev->next = o->next;
	else
		h->opening = o->next;
	if (o->next)
		o->next->prev = o->prev;
	else
		h->opening_last = o->prev;
	h->openings--;
	free(o->head);
	free(o);
}

/* ---- TLS handshakes at work ---- */

static unsigned tick_now(struct http_lws *h)
{
	unsigned tick = (unsigned)(loop_now_ms(h->loop) / TICK_MS);

	/* Those of the ticks passed since are too old to count. */
	for (; h->tick != tick; h->tick++)
		h->handshakes[(h->tick + 2) % HTTP_HANDSHAKE_TICKS] = 0;
	return tick;
}

static void handshake_begun(struct http_lws *h, struct opening *o)
{
	o->tick = tick_now(h);
	h->handshakes[o->tick % HTTP_HANDSHAKE_TICKS]++;
}

static void handshake_over(struct http_lws *h, const struct opening *o)
{
	unsigned now = tick_now(h);

	if (now - o->tick < 2 && h->handshakes[o->tick % HTTP_HANDSHAKE_TICKS])
		h->handshakes[o->tick % HTTP_HANDSHAKE_TICKS]--;
	http_accept_resume(h);
}

bool http_opening_busy(struct http_lws *h)
{
	unsigned tick;

	if (!h->tls)
		return false;
	tick = tick_now(h);
	return h->handshakes[tick % HTTP_HANDSHAKE_TICKS] +
		   h->handshakes[(tick - 1) % HTTP_HANDSHAKE_TICKS] >=
	       HANDSHAKES_MAX;
}

/* ---- adopted: lws' opaque pointer leads to the opening, marked by its lowest bit; what
 * ws_server keeps there later is even ---- */

static struct opening *opening_of(struct lws *wsi)
{
	uintptr_t tag = (uintptr_t)lws_get_opaque_user_data(wsi);

	return tag & 1 ? (struct opening *)(tag - 1) : NULL; /* NOLINT */
}

/* Takes o, which may be over when this returns. On failure lws closes its descriptor. */
static void adopt(struct http_lws *h, struct opening *o)
{
	struct lws_pollfd ready = {.fd = o->fd, .events = LWS_POLLIN, .revents = LWS_POLLIN};
	SSL *ssl;

	o->wsi = lws_adopt_socket_vhost(h->vhost, o->fd);
	if (!o->wsi) {
		opening_free(o);
		return;
	}
	lws_set_opaque_user_data(o->wsi, (void *)((uintptr_t)o | 1)); /* NOLINT */
	if (!h->tls) {
		/* Now, before the loop has looked at the socket; of what lws leaves that will tell.
		 */
		if (o->whole)
			(void)lws_service_fd_tsi(h->context, &ready, 0);
		return;
	}
	handshake_begun(h, o);
	ssl = lws_get_ssl(o->wsi);
	if (h->cfg.once && ssl)
		SSL_set_ex_data(ssl, ssl_index, o);
}

unsigned http_opening_over(struct http_lws *h, struct lws *wsi)
{
	struct opening *o = opening_of(wsi);
	SSL *ssl = lws_get_ssl(wsi);
	unsigned repeated;

	if (!o)
		return 0;
	lws_set_opaque_user_data(wsi, NULL);
	if (ssl && h->cfg.once)
		SSL_set_ex_data(ssl, ssl_index, NULL);
	if (h->tls)
		handshake_over(h, o);
	repeated = o->repeated;
	opening_free(o);
	return repeated;
}

bool http_opening_literal(struct lws *wsi)
{
	const struct opening *o = opening_of(wsi);

	return o && o->literal;
}

/* ---- heads ---- */

static void peer_ip(const struct opening *o, char ip[NETADDR_TEXT_MAX])
{
	struct netaddr peer = {.len = sizeof(peer.ss)};

	ip[0] = '\0';
	if (getpeername(o->fd, (struct sockaddr *)&peer.ss, &peer.len) == 0)
		netaddr_format_ip(&peer, ip);
}

/* Answers a head that cannot be read, if it is one. ssl: NULL on a plain socket. */
static bool head_refused(struct opening *o, SSL *ssl, const char *head, size_t n)
{
	const struct http_lws_config *cfg = &o->server->cfg;
	int status;
	const char *why = http_head_fault(head, n, &status);
	const char *code = status == 431 ? "head_too_large" : "bad_request";
	char ip[NETADDR_TEXT_MAX];
	struct buf out;

	if (!why)
		return false;
	o->refused = true;
	buf_init(&out, 1024);
	/* A few bytes into an empty socket; if they do not fit, the peer is not worth more. */
	if (http_refusal(&out, status, code, why, 0) == 0) {
		if (ssl)
			(void)SSL_write(ssl, out.data, (int)out.len);
		else
			(void)!send(o->fd, out.data, out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	buf_fini(&out);
	peer_ip(o, ip);
	if (cfg->on_bad_head)
		cfg->on_bad_head(cfg->arg, ip, code, why);
	return true;
}

/* What lws will not tell of it. */
static void note_head(struct opening *o, const char *head, size_t n)
{
	const struct http_lws_config *cfg = &o->server->cfg;

	if (cfg->once)
		o->repeated = http_head_repeated(head, n, cfg->once);
	if (cfg->ws_paths)
		o->literal = http_head_names(head, n, cfg->ws_paths);
}

static void head_append(struct opening *o, SSL *ssl, const char *bytes, size_t n)
{
	size_t room = HTTP_HEAD_MAX - o->head_n, head;

	if (!o->head)
		o->head = malloc(HTTP_HEAD_MAX);
	if (!o->head || o->headed)
		return; /* without memory lws will hardly get through either */
	if (n > room)
		n = room;
	memcpy(o->head + o->head_n, bytes, n);
	o->head_n += n;
	head = http_head_length(o->head, o->head_n);
	o->headed = head > 0;
	if (head_refused(o, ssl, o->head, head ? head : o->head_n))
		lws_set_timeout(o->wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LINGER_S);
	else if (head)
		note_head(o, o->head, head);
}

__attribute__((constructor)) static void find_openssl_read(void)
{
	void *found = dlsym(RTLD_NEXT, "SSL_read");

	memcpy(&openssl_read, &found, sizeof(openssl_read));
}

/* In front of OpenSSL's own: libwebsockets' calls come here, since a program's symbols win. */
int SSL_read(SSL *ssl, void *buf, int num)
{
	int n = openssl_read(ssl, buf, num), index = ssl_index;
	struct opening *o = n > 0 && index >= 0 ? SSL_get_ex_data(ssl, index) : NULL;

	if (o && !o->refused)
		head_append(o, ssl, buf, (size_t)n);
	/* lws gets to see no more of it, until the end */
	for (int i = 0; o && o->refused && n > 0; i++)
		n = i < LINGER_READS ? openssl_read(ssl, buf, num) : -1;
	return n;
}

/* ---- waiting ---- */

static void on_waiting_closed(void *arg)
{
	struct opening *o = arg;
	struct http_lws *h = o->server;
	int one = 1;

	if (!o->drop && !h->closing) {
		(void)setsockopt(o->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
		adopt(h, o);
	} else {
		close(o->fd);
		opening_free(o);
	}
	http_accept_count(h, -1); /* lws' own is counted by now */
}

static void waiting_end(struct opening *o, bool drop)
{
	if (!o->poll)
		return;
	o->drop = drop;
	loop_poll_close(TAKE(o->poll), on_waiting_closed, o);
}

/* After a refusal: reads what still comes. -1: that was all. */
static int read_off(struct opening *o)
{
	char bytes[HTTP_HEAD_MAX];
	ssize_t n = recv(o->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)) ? 0 : -1;
}

static int refused_begin(struct http_lws *h, struct opening *o)
{
	int one = 1;

	o->until_ms = loop_now_ms(h->loop) + LINGER_S * 1000;
	(void)setsockopt(o->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
	(void)shutdown(o->fd, SHUT_WR);
	return read_off(o);
}

/* 1: enough is there; 0: more has to come; -1: the peer is gone. */
static int look(struct http_lws *h, struct opening *o)
{
	char bytes[HTTP_HEAD_MAX];
	ssize_t n;
	size_t head;
	int low;

	if (o->refused)
		return read_off(o);
	n = recv(o->fd, bytes, h->tls ? 1 : sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	if ((size_t)n == o->had)
		return -1; /* woken, and nothing new: the end */
	o->had = (size_t)n;
	if (h->tls)
		return 1;
	head = http_head_length(bytes, o->had);
	if (head_refused(o, NULL, bytes, head ? head : o->had))
		return refused_begin(h, o);
	if (head == 0) {
		low = (int)o->had + 1; /* wake when there is more than this */
		(void)setsockopt(o->fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low));
		return 0;
	}
	note_head(o, bytes, head);
	o->whole = head == o->had;
	return 1;
}

static void on_waiting_ready(void *arg, int events UNUSED)
{
	struct opening *o = arg;
	int r;

	if (!o->poll)
		return;
	r = look(o->server, o);
	if (r)
		waiting_end(o, r < 0);
}

static void on_timer(void *arg)
{
	struct http_lws *h = arg;
	int64_t now_ms = loop_now_ms(h->loop);

	for (struct opening *o = h->opening; o; o = o->next)
		if (now_ms > o->until_ms)
			waiting_end(o, true);
	if (h->opening && !h->closing)
		loop_timer_start(h->opening_timer, TICK_MS, 0);
}

static void wait_for_more(struct http_lws *h, struct opening *o)
{
	if (loop_poll_new(h->loop, o->fd, on_waiting_ready, o, &o->poll) < 0) {
		close(o->fd);
		opening_free(o);
		return;
	}
	if (!o->refused)
		o->until_ms = loop_now_ms(h->loop) + WAIT_MS;
	http_accept_count(h, 1);
	if (loop_poll_set(o->poll, LOOP_READ) < 0)
		waiting_end(o, true);
	if (!loop_timer_active(h->opening_timer))
		loop_timer_start(h->opening_timer, TICK_MS, 0);
}

void http_opening_take(struct http_lws *h, int fd, const struct netaddr *peer)
{
	struct opening *o = calloc(1, sizeof(*o));
	int r = 1;

	if (!o) {
		close(fd);
		return;
	}
	loop_hurry_for(h->loop, LOOP_ANSWER_MS);
	o->server = h;
	o->fd = fd;
	o->peer = netaddr_peer_key(peer);
	o->had = SIZE_MAX;
	link_last(h, o);
	if (!h->tls || h->cfg.once)
		r = look(h, o);
	if (r > 0) {
		adopt(h, o);
	} else if (r == 0) {
		wait_for_more(h, o);
	} else {
		close(fd);
		opening_free(o);
	}
}

/* ---- room ---- */

static int compare_peers(const void *a, const void *b)
{
	uint64_t x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return x < y ? -1 : x > y;
}

/* Who has most openings; *ret_n: how many. */
static uint64_t busiest_peer(const struct http_lws *h, size_t *ret_n)
{
	uint64_t *peer = malloc(h->openings * sizeof(*peer)), busiest = 0;
	size_t n = 0, run = 0;

	*ret_n = 0;
	if (!peer)
		return 0;
	for (const struct opening *o = h->opening; o; o = o->next)
		if (!o->drop)
			peer[n++] = o->peer;
	qsort(peer, n, sizeof(*peer), compare_peers);
	for (size_t i = 0; i < n; i++) {
		run = i && peer[i] == peer[i - 1] ? run + 1 : 1;
		if (run > *ret_n) {
			*ret_n = run;
			busiest = peer[i];
		}
	}
	free(peer);
	return busiest;
}

/* For lws' own http_opening_over follows, now or later. */
static void evict(struct opening *o)
{
	if (o->wsi)
		lws_set_timeout(o->wsi, PENDING_TIMEOUT_KILLED_BY_PARENT, LWS_TO_KILL_SYNC);
	else
		waiting_end(o, true);
}

static void tell_evicted(struct http_lws *h, const struct opening *o, size_t n)
{
	char ip[NETADDR_TEXT_MAX];

	peer_ip(o, ip);
	if (h->cfg.on_evicted)
		h->cfg.on_evicted(h->cfg.arg, ip, n);
}

void http_opening_make_room(struct http_lws *h)
{
	size_t n = 0;
	uint64_t peer = h->openings ? busiest_peer(h, &n) : 0;
	struct opening *next;
	bool told = false;

	if (n < FAIR_SHARE)
		return;
	n = n / 2 < EVICT_MAX ? n / 2 : EVICT_MAX;
	for (struct opening *o = h->opening; o && n; o = next) {
		next = o->next;
		if (o->peer != peer || o->drop)
			continue;
		if (!told)
			tell_evicted(h, o, n);
		told = true;
		o->drop = true;
		evict(o);
		n--;
	}
}

void http_opening_drop_all(struct http_lws *h)
{
	for (struct opening *o = h->opening; o; o = o->next)
		waiting_end(o, true);
}

int http_opening_init(struct http_lws *h)
{
	if (h->cfg.once && ssl_index < 0)
		ssl_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
	return loop_timer_new(h->loop, on_timer, h, &h->opening_timer);
}
