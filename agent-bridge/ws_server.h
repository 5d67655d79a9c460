/*
 * The agents' sockets: WebSocket over libwebsockets on the bridge's loop. The only file of the
 * bridge that knows lws. Assembles frames, sends queues, closes and pauses from outside lws'
 * receive callback (where both go wrong), and shares its listener with the internal endpoints.
 * Also implements transport.h.
 */
#pragma once

#include "handshake.h"
#include "http/http.h"
#include "sessions.h"

struct loop;
struct ws_server;

struct ws_server_ops {
	void (*judge)(void *arg, const struct handshake_request *q, struct handshake_verdict *ret);
	/* The upgrade is done. The session, or NULL to hang up; its socket is set by the caller. */
	struct session *(*on_open)(void *arg, const struct handshake_verdict *v);
	void (*on_frame)(void *arg, struct session *s, const char *json, size_t n);
	void (*on_sent)(void *arg, const struct session_frame *q);
	/* The send queue has room again after dispatch was refused. */
	void (*on_room)(void *arg, struct session *s);
	/* The head of a request could not be read and was refused. */
	void (*on_bad_head)(void *arg, const char *ip, const char *code, const char *why);
	/* A TLS handshake was refused. */
	void (*on_tls_refused)(void *arg, const char *ip, const char *why);
	/* Every slot was taken; ip lost n sockets that had not said what they want. */
	void (*on_evicted)(void *arg, const char *ip, size_t n);
	/* The socket is gone; frees the session. */
	void (*on_close)(void *arg, struct session *s);
};

struct ws_server_config {
	const char *bind;
	const struct http_table *table;
	struct sessions *sessions;
	size_t max_conns, max_frame_bytes;
	const char *tls_cert, *tls_key, *tls_client_ca, *tls_crl; /* NULL: unset */
	const struct ws_server_ops *ops;
	void *arg;
};

/* -errno of bind; -EPROTO: TLS files are refused, msg says why. */
int ws_server_open(struct loop *l, const struct ws_server_config *cfg, struct ws_server **ret,
		   char *msg, size_t msg_cap) MUST_CHECK;
uint16_t ws_server_port(const struct ws_server *w);
/* Certificate, key, CAs, CRLs anew from the same paths, for handshakes to come. -EPROTO with msg:
 * the old ones stay. */
int ws_server_reload_tls(struct ws_server *w, char *msg, size_t msg_cap) MUST_CHECK;
/* Sessions that are to be closed and whose turn has not come: not too many are closing at once. */
size_t ws_server_close_queue(const struct ws_server *w);
/* Answers of the internal endpoints that were begun and are not written whole. */
size_t ws_server_answering(const struct ws_server *w);
void ws_server_set_token(struct ws_server *w, const char *token);
/* Sockets still open are cut, on_close is called for each, then done(arg). */
void ws_server_close(struct ws_server *w, void (*done)(void *arg), void *arg);
