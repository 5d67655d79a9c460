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

struct http_lws_tls { /* paths of PEM files; the three last may be NULL */
	const char *cert_path, *key_path;
	const char *client_ca_path; /* set: clients must show a certificate that chains to it */
	const char *crl_path;	    /* needs client_ca_path */
	char *msg;		    /* why the files are refused */
	size_t msg_cap;
};

struct http_lws_config {
	const char *bind;
	const struct http_table *table; /* copied; what it points to is the caller's */
	size_t max_conns;		/* sockets of all kinds; accepting pauses at the cap */
	bool many;			/* thousands of sockets: direct descriptor table */
	/* A WebSocket protocol beside HTTP, or NULL. Its callback also gets WSI_DESTROY of every
	 * socket, whose opaque user data is its own. */
	const struct lws_protocols *ws;
	/* A GET of one of ws_paths arrived with an Upgrade, to whatever. 0: accept, if it is to
	 * websocket. 1: http_lws_refuse was called. -1: hang up. uri is NUL-terminated and
	 * as it was sent, without its query; raw headers are still there to be read. */
	int (*on_upgrade)(void *arg, struct lws *wsi, const char *uri);
	/* Headers an upgrade may carry once only (lower case, NULL-terminated); http_lws_repeated.
	 */
	const char *const *once;
	/* Paths of the WebSocket protocol, to be written like this and in no other way: a plain GET
	 * there is 426. NULL-terminated. */
	const char *const *ws_paths;
	void *arg;
	const struct http_lws_tls *tls; /* NULL: plain */
	/* The head of a first request cannot be read and was refused. May be NULL. */
	void (*on_bad_head)(void *arg, const char *ip, const char *code, const char *why);
	/* A TLS handshake was refused (by its certificate, or none). May be NULL. */
	void (*on_tls_refused)(void *arg, const char *ip, const char *why);
	/* max_conns was reached, and ip, who had most sockets without a request, loses n. May be
	 * NULL. */
	void (*on_evicted)(void *arg, const char *ip, size_t n);
};

/* -EPROTO when the files would be refused (t->msg says why). Changes nothing. */
int http_tls_check(const struct http_lws_tls *t) MUST_CHECK;

/* -EADDRINUSE and other -errno from bind; -EINVAL for a bad address; -EPROTO when TLS material is
 * refused (tls->msg says why). */
int http_lws_open(struct loop *l, const struct http_lws_config *cfg,
		  struct http_lws **ret) MUST_CHECK;
uint16_t http_lws_port(const struct http_lws *h);
void *http_lws_arg(struct http_lws *h);
struct http_lws *http_lws_of(struct lws *wsi);
struct lws_vhost *http_lws_vhost(struct http_lws *h);
struct loop *http_lws_loop(struct http_lws *h);
/* Certificate, key, CAs and CRLs anew, for handshakes to come. -EPROTO with tls->msg: nothing
 * changed. */
int http_lws_reload_tls(struct http_lws *h, const struct http_lws_tls *tls) MUST_CHECK;
/* The bearer token changed; NULL: none. */
void http_lws_set_token(struct http_lws *h, const char *token);
/* The port answers no more; open sockets stay. */
void http_lws_stop_accepting(struct http_lws *h);
/* Closes everything. Memory goes after some more turns of the loop (lws wants the loop to run
 * between its two destroy calls). */
void http_lws_close(struct http_lws *h);
/* The same, and done(arg) when no callback can come any more. */
void http_lws_close_then(struct http_lws *h, loop_cb done, void *arg);
size_t http_lws_conns(const struct http_lws *h);
/* Answers that were begun and are not written whole. */
size_t http_lws_answering(const struct http_lws *h);

/* In on_upgrade: bit i says that once[i] was repeated. */
unsigned http_lws_repeated(const struct http_lws *h);

/* A whole HTTP/1.1 answer with a JSON error body, written at once; for CONFIRM_UPGRADE. Returns
 * what the callback has to return. */
int http_lws_refuse(struct lws *wsi, int status, const char *code, const char *msg,
		    int retry_after_s);

/* The TCP peer of a socket. false when it is gone. */
bool http_lws_peer(struct lws *wsi, struct netaddr *ret);
/* When lws ends a socket and does not say why: neither the peer nor http_lws_close did. */
bool http_lws_peer_is_there(struct lws *wsi);
