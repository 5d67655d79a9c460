/*
 * The small internal JSON endpoint server: a table of routes over libwebsockets, HTTP/1.1 only.
 * Handlers see this header, never lws. Answers are JSON (or Prometheus text); errors always
 * {"error":{"code","msg"}}. Handled here: 404, 405 with Allow, 411, 413, 400 for bad JSON,
 * bearer token (constant-time), loopback rule, request and idle timeouts, connection cap.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/netaddr.h"
#include "wire/json_scan.h"

#define HTTP_BODY_MAX  65536
#define HTTP_PARAM_MAX 160

enum http_method { HTTP_GET = 1, HTTP_POST = 2, HTTP_DELETE = 4 };

struct http_request {
	enum http_method method;
	char path[512];
	char param[2][HTTP_PARAM_MAX]; /* values of ":name" parts of the route, URL-decoded */
	struct span query;	       /* raw, after '?' */
	struct span body;	       /* valid JSON object for POST, else absent */
	struct netaddr peer;	       /* the TCP peer */
};
/* Query value, URL-decoded, NUL-terminated, cut at cap - 1 bytes; false when absent. */
bool http_query(const struct http_request *q, const char *name, char *out, size_t cap);

/* An answer being made. Handlers may answer later: keep the pointer, call http_respond_* once;
 * when the client left meanwhile that is a no-op that frees it. */
struct http_response;
void http_respond_json(struct http_response *r, int status, const struct buf *json);
void http_respond_text(struct http_response *r, int status, const char *content_type,
		       const struct buf *text);
void http_respond_error(struct http_response *r, int status, const char *code, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
/* Before responding: an extra header; "Retry-After", "7". At most 4. */
void http_respond_header(struct http_response *r, const char *name, const char *value);

enum http_guard {
	HTTP_OPEN,     /* anyone */
	HTTP_INTERNAL, /* bearer token when one is set, else loopback peers only */
	HTTP_TOKEN,    /* bearer token; 404 when none is set */
};
struct http_route {
	enum http_method method;
	const char *path; /* "/internal/agent/agents/:id" */
	enum http_guard guard;
	void (*handler)(void *arg, const struct http_request *q, struct http_response *r);
};
struct http_table {
	const struct http_route *route;
	size_t n;
	void *arg;
	const char *token; /* NULL: none. Owned by the caller; see http_server_set_token */
	const struct cidr_list *trusted_proxies; /* peers that are never "loopback"; NULL: none */
};

/* ---- a stand-alone server on a loop ---- */
struct loop;
struct http_server;
/* bind "127.0.0.1:8083"; port 0 picks one. -EADDRINUSE and other -errno. */
int http_server_open(struct loop *l, const char *bind, const struct http_table *t,
		     struct http_server **ret) MUST_CHECK;
uint16_t http_server_port(const struct http_server *s);
/* The bearer token changed (owned by the caller); NULL: none. */
void http_server_set_token(struct http_server *s, const char *token);
/* Answers that were begun and are not written whole: closing cuts them. */
size_t http_server_answering(const struct http_server *s);
void http_server_close(struct http_server *s);

/* ---- the same in a thread of its own, for blocking programs ---- */
struct http_thread;
int http_thread_start(const char *bind, const struct http_table *t,
		      struct http_thread **ret) MUST_CHECK;
uint16_t http_thread_port(const struct http_thread *s);
void http_thread_stop(struct http_thread *s);
