/* The inside of struct http_lws, for http_lws.c (context, vhost, callbacks), http_accept.c (the
 * listening socket) and http_opening.c (sockets whose first request has not come). */
#pragma once

#include <openssl/ssl.h>

#include "http/http_internal.h"

#define HTTP_HANDSHAKE_TICKS 4 /* a power of two, for the ring of counts */

struct opening;

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
	size_t answering; /* requests that are whole and whose answer is not */
	SSL_CTX *tls;	  /* lws' own; NULL: plain */
	unsigned handshakes[HTTP_HANDSHAKE_TICKS]; /* unfinished ones, by the tick they began in */
	unsigned tick;
	struct opening *opening, *opening_last; /* in order of age */
	size_t openings;
	struct loop_timer *opening_timer;
	unsigned repeated; /* of the upgrade being judged */
	bool literal;	   /* its path is one of cfg.ws_paths as it was sent */
	bool paused, closing;
	int destroy_step;
	loop_cb on_closed;
	void *on_closed_arg;
};

int http_accept_open(struct http_lws *h, const char *bind_text) MUST_CHECK;
/* Something ended: accept again if there is room. */
void http_accept_resume(struct http_lws *h);
void http_accept_count(struct http_lws *h, int by);

/* ---- http_opening.c ---- */
int http_opening_init(struct http_lws *h) MUST_CHECK;
/* Takes an accepted socket: hands it to lws now, or once its client has said enough. */
void http_opening_take(struct http_lws *h, int fd, const struct netaddr *peer);
/* The socket's first request is there, its body too, or it is gone. Returns which of cfg.once were
 * repeated. */
unsigned http_opening_over(struct http_lws *h, struct lws *wsi);
/* Until then: its path is one of cfg.ws_paths, byte for byte. */
bool http_opening_literal(struct lws *wsi);
/* Too many TLS handshakes are at work to begin another one. */
bool http_opening_busy(struct http_lws *h);
/* Every slot is taken: who has most sockets that still say nothing loses the oldest of them. */
void http_opening_make_room(struct http_lws *h);
void http_opening_drop_all(struct http_lws *h);
