/*
 * The glue between this library and libwebsockets, for lib/http and agent-bridge/ws_server.c
 * only: one lws context with one vhost on our loop, and our own listening socket. Nobody else
 * includes this file, so that lws types stop here.
 *
 * Why an own listener: lws' spins on EMFILE and cannot be paused; why one vhost a context: the
 * Host header would otherwise choose among vhosts of one port.
 */
#pragma once

#include <libwebsockets.h>

#include "http/http.h"
#include "loop/loop.h"

struct http_lws;

struct http_lws_tls {
	const char *cert_path, *key_path;
	const char *client_ca_path; /* NULL: clients show no certificate */
	/* Last word on the live SSL_CTX (minimum version, CRLs, tickets). 0 or -errno. */
	int (*tune)(void *arg, struct ssl_ctx_st *ctx);
	void *arg;
};

struct http_lws_config {
	const char *bind;
	const struct http_table *table; /* copied; what it points to is the caller's */
	size_t max_conns;		/* sockets of all kinds; accepting pauses at the cap */
	bool many;			/* thousands of sockets: direct descriptor table */
	/* A WebSocket protocol beside HTTP, or NULL. */
	const struct lws_protocols *ws;
	/* A request with Upgrade: websocket arrived. 0: accept. 1: http_lws_refuse was called. -1:
	 * hang up. uri is NUL-terminated and normalised by lws; raw headers are still there to be
	 * read. */
	int (*on_upgrade)(void *arg, struct lws *wsi, const char *uri);
	/* Paths of the WebSocket protocol: a plain GET there is 426. NULL-terminated. */
	const char *const *ws_paths;
	void *arg;
	const struct http_lws_tls *tls; /* NULL: plain */
};

/* -EADDRINUSE and other -errno from bind; -EINVAL for a bad address; -EPROTO when TLS material is
 * refused (http_lws_tls_error says why). */
int http_lws_open(struct loop *l, const struct http_lws_config *cfg,
		  struct http_lws **ret) MUST_CHECK;
uint16_t http_lws_port(const struct http_lws *h);
void *http_lws_arg(struct http_lws *h);
struct http_lws *http_lws_of(struct lws *wsi);
struct lws_vhost *http_lws_vhost(struct http_lws *h);
struct loop *http_lws_loop(struct http_lws *h);
/* The port answers no more; open sockets stay. */
void http_lws_stop_accepting(struct http_lws *h);
/* Closes everything. Memory goes after some more turns of the loop (lws wants the loop to run
 * between its two destroy calls). */
void http_lws_close(struct http_lws *h);
size_t http_lws_conns(const struct http_lws *h);

/* A whole HTTP/1.1 answer with a JSON error body, written at once; for CONFIRM_UPGRADE. Returns
 * what the callback has to return. */
int http_lws_refuse(struct lws *wsi, int status, const char *code, const char *msg,
		    int retry_after_s);

/* The TCP peer of a socket. false when it is gone. */
bool http_lws_peer(struct lws *wsi, struct netaddr *ret);
