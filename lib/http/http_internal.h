/* Shared by the files of lib/http; not for others. */
#pragma once

#include "http/http.h"
#include "http/http_lws.h"

/* Reason phrase of a status we use. */
const char *http_reason(int status);
/* Appends status line and headers for a body of n bytes, after which the connection closes. */
int http_head_append(struct buf *out, int status, const char *content_type, size_t n,
		     const char *extra) MUST_CHECK;
/* {"error":{"code":…,"msg":…}} */
int http_error_body(struct buf *out, const char *code, const char *msg) MUST_CHECK;
/* Appends a whole answer with that body, after which the connection closes. retry_after_s: 0 for
 * none. */
int http_refusal(struct buf *out, int status, const char *code, const char *msg,
		 int retry_after_s) MUST_CHECK;

/* true when path fits the pattern; ":x" parts go to q->param. */
bool http_route_match(const char *pattern, const char *path, char param[2][HTTP_PARAM_MAX]);
/* Methods of all routes that fit path, or 0; *ret_route is the one with this method or NULL and
 * *ret_guard the strictest guard among them. */
unsigned http_route_find(const struct http_table *t, const char *path, enum http_method m,
			 char param[2][HTTP_PARAM_MAX], const struct http_route **ret_route,
			 enum http_guard *ret_guard);
/* "GET, POST" */
void http_allow_text(unsigned methods, char *out, size_t cap);

/* 0: pass; else the status to refuse with: 401, 403, 404. */
int http_guard_check(const struct http_table *t, enum http_guard g, const char *authorization,
		     bool forwarded, const struct netaddr *peer);

/* One socket while it speaks HTTP; lws' per-session data of protocols[0]. */
struct http_conn {
	struct http_exchange *x; /* the request being served, or NULL */
};
int http_on_request(struct http_lws *h, struct lws *wsi, struct http_conn *c, const char *uri);
int http_on_body(struct http_conn *c, const char *bytes, size_t n);
int http_on_body_end(struct http_conn *c);
/* Writes what is ready. -1: close. */
int http_on_writable(struct lws *wsi, struct http_conn *c);
void http_on_gone(struct http_conn *c);

const struct http_table *http_lws_table(const struct http_lws *h);
/* An answer was begun (1) or is over (-1). */
void http_lws_count_answer(struct http_lws *h, int by);

/* ---- http_tls.c ---- */
struct ssl_ctx_st;
struct ssl_st;
/* Into this SSL_CTX; -EPROTO with t->msg. */
int http_tls_apply(struct ssl_ctx_st *ctx, const struct http_lws_tls *t) MUST_CHECK;
void http_tls_on_info(const struct ssl_st *ssl, int where, int alert);
void http_lws_tls_refused(struct http_lws *h, const char *ip, const char *why);
