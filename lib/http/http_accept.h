/* The inside of struct http_lws, for http_lws.c (context, vhost, callbacks) and http_accept.c (the
 * listening socket). */
#pragma once

#include <openssl/ssl.h>

#include "http/http_internal.h"

#define HTTP_HANDSHAKE_TICKS 4 /* a power of two, for the ring of counts */

struct waiting;

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
	SSL_CTX *tls;				   /* lws' own; NULL: plain */
	unsigned handshakes[HTTP_HANDSHAKE_TICKS]; /* unfinished ones, by the tick they began in */
	unsigned tick;
	struct waiting *waiting;
	struct loop_timer *waiting_timer;
	unsigned repeated; /* of the upgrade being judged */
	bool paused, closing;
	int destroy_step;
	loop_cb on_closed;
	void *on_closed_arg;
};

int http_accept_open(struct http_lws *h, const char *bind_text) MUST_CHECK;
/* Something ended: accept again if there is room. */
void http_accept_resume(struct http_lws *h);
void http_accept_count(struct http_lws *h, int by);
/* The socket's first request is there, or it is gone. */
void http_accept_handshake_over(struct http_lws *h, struct lws *wsi);
/* Sockets whose head has not come. */
void http_accept_drop_waiting(struct http_lws *h);
