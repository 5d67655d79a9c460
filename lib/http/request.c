/*
 * One request: read its head and body, find the route, check who asks, call the handler, write
 * the answer. An exchange lives from the head until its answer is written or the client left; a
 * handler may hold its http_response longer, which is then an orphan that http_respond_* frees.
 *
 *   HEAD → BODY → HANDLING → READY (bytes wait for the socket) → freed
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http/http_accept.h"

#define DISCARD_MAX	  (1024 * 1024) /* a larger unwanted body is not read to its end */
#define ANSWER_MAX	  (64u * 1024 * 1024)
#define QUERY_MAX	  1024
#define ANSWER_TIMEOUT_S  30 /* until its first piece, and for each to be taken */
#define PIECE_MAX	  (64u * 1024)
#define MAX_DEPTH	  16
#define AUTHORIZATION_MAX 1032 /* of the longest token: 1024 bytes */

struct http_response {
	struct http_exchange *x; /* NULL: the client left */
	char extra[512];
	size_t extra_n;
};

struct http_exchange {
	struct lws *wsi;
	struct http_conn *conn;
	struct http_lws *server;
	const struct http_route *route;
	struct http_request q;
	struct http_response *response; /* NULL once answered */
	struct buf body, out;		/* out: LWS_PRE bytes, then the answer */
	size_t written;			/* of the answer */
	char query[QUERY_MAX];
	int status; /* refusal decided from the head; 0: none */
	const char *code, *msg;
	char allow[32];
	bool head, handled, ready, ws_path, deferred;
};

static const struct {
	enum lws_token_indexes token;
	unsigned method; /* 0: one that no route has */
} methods[] = {
    {WSI_TOKEN_GET_URI, HTTP_GET},
    {WSI_TOKEN_POST_URI, HTTP_POST},
    {WSI_TOKEN_DELETE_URI, HTTP_DELETE},
    {WSI_TOKEN_HEAD_URI, 0},
    {WSI_TOKEN_PUT_URI, 0},
    {WSI_TOKEN_PATCH_URI, 0},
    {WSI_TOKEN_OPTIONS_URI, 0},
    {WSI_TOKEN_CONNECT, 0},
};

static void exchange_free(struct http_exchange *x)
{
	if (!x)
		return;
	if (x->response)
		x->response->x = NULL; /* the handler still holds it */
	if (x->conn)
		x->conn->x = NULL;
	if (x->handled)
		http_lws_count_answer(x->server, -1);
	buf_wipe(&x->body);
	buf_fini(&x->body);
	buf_fini(&x->out);
	free(x);
}

static void exchange_refuse(struct http_exchange *x, int status, const char *code, const char *msg)
{
	if (x->status)
		return;
	x->status = status;
	x->code = code;
	x->msg = msg;
}

/* ---- answers ---- */

static int answer_bytes(struct http_exchange *x, int status, const char *type, const char *extra,
			const char *bytes, size_t n)
{
	char *at;
	int r = buf_reserve(&x->out, LWS_PRE, &at);

	if (r < 0)
		return r;
	buf_commit(&x->out, LWS_PRE);
	r = http_head_append(&x->out, status, type, n, extra);
	if (r == 0 && !x->head)
		r = buf_append(&x->out, bytes, n);
	return r;
}

static void exchange_answer(struct http_exchange *x, int status, const char *type,
			    const char *extra, const char *bytes, size_t n)
{
	static const char failed[] =
	    "{\"error\":{\"code\":\"internal\",\"msg\":\"the answer is too large\"}}";

	if (answer_bytes(x, status, type, extra, bytes, n) < 0) {
		buf_clear(&x->out);
		if (answer_bytes(x, 500, "application/json", "", failed, sizeof(failed) - 1) < 0)
			buf_clear(&x->out); /* no memory: the socket just closes */
	}
	x->ready = true;
	if (x->deferred)
		lws_rx_flow_control(x->wsi, 1);
	lws_callback_on_writable(x->wsi);
}

static void exchange_error(struct http_exchange *x, int status, const char *code, const char *msg,
			   const char *extra)
{
	struct buf body;

	buf_init(&body, 4096);
	if (http_error_body(&body, code, msg) < 0)
		buf_clear(&body);
	exchange_answer(x, status, "application/json", extra, body.data ? body.data : "", body.len);
	buf_fini(&body);
}

/* Takes the exchange out of the response, which is freed; NULL when the client left. */
static struct http_exchange *response_finish(struct http_response *r, char extra[512])
{
	struct http_exchange *x = r->x;

	memcpy(extra, r->extra, sizeof(r->extra));
	if (x)
		x->response = NULL;
	free(r);
	return x;
}

void http_respond_text(struct http_response *r, int status, const char *content_type,
		       const struct buf *text)
{
	char extra[512];
	struct http_exchange *x = response_finish(r, extra);

	if (x)
		exchange_answer(x, status, content_type, extra, text->data ? text->data : "",
				text->len);
}

void http_respond_json(struct http_response *r, int status, const struct buf *json)
{
	http_respond_text(r, status, "application/json", json);
}

void http_respond_error(struct http_response *r, int status, const char *code, const char *fmt, ...)
{
	char extra[512], msg[512];
	struct http_exchange *x = response_finish(r, extra);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	if (x)
		exchange_error(x, status, code, msg, extra);
}

void http_respond_header(struct http_response *r, const char *name, const char *value)
{
	size_t room = sizeof(r->extra) - r->extra_n;
	int n = snprintf(r->extra + r->extra_n, room, "%s: %s\r\n", name, value);

	if (n > 0 && (size_t)n < room)
		r->extra_n += (size_t)n;
	else
		r->extra[r->extra_n] = '\0';
}

/* ---- the head ---- */

static bool header_copy(struct lws *wsi, enum lws_token_indexes t, char *out, size_t cap)
{
	out[0] = '\0';
	return lws_hdr_total_length(wsi, t) > 0 && lws_hdr_copy(wsi, out, (int)cap, t) > 0;
}

static enum http_method method_read(struct lws *wsi, bool *ret_head)
{
	*ret_head = lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0;
	for (size_t i = 0; i < ARRAY_LEN(methods); i++)
		if (lws_hdr_total_length(wsi, methods[i].token) > 0)
			return (enum http_method)methods[i].method;
	return 0;
}

/* The parts of the query, decoded by lws, each with its NUL. */
static void query_read(struct http_exchange *x, struct lws *wsi)
{
	size_t n = 0;

	for (int i = 0; n + 2 < sizeof(x->query); i++) {
		int got = lws_hdr_copy_fragment(wsi, x->query + n, (int)(sizeof(x->query) - n),
						WSI_TOKEN_HTTP_URI_ARGS, i);

		if (got < 0)
			break;
		n += strlen(x->query + n) + 1;
	}
	x->q.query = (struct span){x->query, n};
}

bool http_query(const struct http_request *q, const char *name, char *out, size_t cap)
{
	size_t name_n = strlen(name), i = 0;

	while (i < q->query.n) {
		const char *part = q->query.p + i;
		size_t n = strlen(part);

		if (n > name_n && memcmp(part, name, name_n) == 0 && part[name_n] == '=') {
			snprintf(out, cap, "%s", part + name_n + 1);
			return true;
		}
		i += n + 1;
	}
	return false;
}

/* Length of the body announced, 0 when none; -1 refused. A body that is not wanted is read and
 * dropped up to DISCARD_MAX, so that the client gets to read the answer. */
static int64_t body_length(struct http_exchange *x, struct lws *wsi)
{
	char text[32];
	int64_t n = 0;

	if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0) {
		exchange_refuse(x, 411, "length_required",
				"send Content-Length, not a transfer coding");
		return -1;
	}
	if (lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0) {
		if (lws_hdr_total_length(wsi, WSI_TOKEN_POST_URI) > 0)
			exchange_refuse(x, 411, "length_required", "a POST needs Content-Length");
		return lws_hdr_total_length(wsi, WSI_TOKEN_GET_URI) > 0 ||
			       lws_hdr_total_length(wsi, WSI_TOKEN_DELETE_URI) > 0 ||
			       lws_hdr_total_length(wsi, WSI_TOKEN_HEAD_URI) > 0
			   ? 0
			   : -1;
	}
	if (!header_copy(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH, text, sizeof(text)) ||
	    strlen(text) > 12 || text[strspn(text, "0123456789")]) {
		exchange_refuse(x, 400, "bad_request", "Content-Length is not a plain number");
		return -1;
	}
	for (const char *p = text; *p; p++)
		n = n * 10 + (*p - '0');
	if (n > HTTP_BODY_MAX)
		exchange_refuse(x, 413, "too_large", "the body is larger than 65536 bytes");
	return n > DISCARD_MAX ? -1 : n;
}

/* Then the TCP peer says nothing about who asks. */
static bool came_through_a_proxy(struct lws *wsi)
{
	return lws_hdr_total_length(wsi, WSI_TOKEN_X_FORWARDED_FOR) > 0 ||
	       lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_X_REAL_IP) > 0 ||
	       lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_VIA) > 0 ||
	       lws_hdr_custom_length(wsi, "forwarded:", 10) >= 0;
}

static void guard(struct http_exchange *x, struct lws *wsi, enum http_guard g)
{
	char auth[AUTHORIZATION_MAX];
	bool has_auth = header_copy(wsi, WSI_TOKEN_HTTP_AUTHORIZATION, auth, sizeof(auth));
	bool forwarded = came_through_a_proxy(wsi);
	int status = http_guard_check(http_lws_table(x->server), g, has_auth ? auth : NULL,
				      forwarded, &x->q.peer);

	memset(auth, 0, sizeof(auth));
	if (status == 401)
		exchange_refuse(x, 401, "unauthorized", "send Authorization: Bearer <token>");
	else if (status == 403)
		exchange_refuse(x, 403, "forbidden", "only local peers are answered here");
	else if (status)
		exchange_refuse(x, 404, "not_found", "no such path");
}

static void route(struct http_exchange *x, struct lws *wsi)
{
	enum http_guard g;
	unsigned found = http_route_find(http_lws_table(x->server), x->q.path, x->q.method,
					 x->q.param, &x->route, &g);

	x->ws_path = http_opening_literal(wsi);
	if (x->ws_path) {
		http_allow_text(HTTP_GET, x->allow, sizeof(x->allow));
		if (x->q.method == HTTP_GET)
			exchange_refuse(x, 426, "upgrade_required",
					"this path speaks WebSocket only");
		else
			exchange_refuse(x, 405, "method_not_allowed", "this path takes GET");
		return;
	}
	if (!found) {
		exchange_refuse(x, 404, "not_found", "no such path");
		return;
	}
	guard(x, wsi, x->route ? x->route->guard : g);
	if (!x->route) {
		http_allow_text(found, x->allow, sizeof(x->allow));
		exchange_refuse(x, 405, "method_not_allowed", "see the Allow header");
	}
}

/* ---- handling ---- */

static void answer_refusal(struct http_exchange *x)
{
	char extra[128] = "";

	if (x->status == 405)
		snprintf(extra, sizeof(extra), "Allow: %s\r\n", x->allow);
	else if (x->status == 401)
		snprintf(extra, sizeof(extra), "WWW-Authenticate: Bearer\r\n");
	else if (x->status == 426)
		snprintf(extra, sizeof(extra), "Upgrade: websocket\r\n");
	exchange_error(x, x->status, x->code, x->msg, extra);
}

static bool body_is_object(struct http_exchange *x)
{
	struct json_fault fault = {0, "not an object"};
	const char *p = x->body.data ? x->body.data : "";
	char msg[160];
	size_t blank = strspn(p, " \t\r\n");

	if (json_validate(p, x->body.len, MAX_DEPTH, &fault) == 0 && p[blank] == '{') {
		x->q.body = (struct span){p, x->body.len};
		return true;
	}
	snprintf(msg, sizeof(msg), "the body is no JSON object: %s at byte %zu", fault.what,
		 fault.offset);
	exchange_error(x, 400, "bad_json", msg, "");
	return false;
}

static void handle(struct http_exchange *x)
{
	const struct http_table *t = http_lws_table(x->server);

	if (x->status) {
		answer_refusal(x);
		return;
	}
	if (x->q.method == HTTP_POST && !body_is_object(x))
		return;
	x->response = calloc(1, sizeof(*x->response));
	if (!x->response) {
		exchange_error(x, 500, "internal", "out of memory", "");
		return;
	}
	x->response->x = x;
	x->route->handler(t->arg, &x->q, x->response);
}

/* The request is whole. Until now its socket may have been taken away to make room. */
static void handle_now(struct http_exchange *x)
{
	(void)http_opening_over(x->server, x->wsi);
	x->handled = true;
	http_lws_count_answer(x->server, 1);
	handle(x);
	lws_set_timeout(x->wsi, PENDING_TIMEOUT_HTTP_CONTENT, ANSWER_TIMEOUT_S);
	if (x->ready)
		return;
	/* lws does not read while a request is being served; bytes or an end that wait in the
	 * socket would wake it over and over. */
	x->deferred = true;
	lws_rx_flow_control(x->wsi, 0);
}

/* RFC 9110, 10.1.1: a client of HTTP/1.1 that sends its body only once it is asked for. */
static bool expects_continue(struct lws *wsi)
{
	char text[16];

	return header_copy(wsi, WSI_TOKEN_HTTP_EXPECT, text, sizeof(text)) &&
	       strcasecmp(text, "100-continue") == 0 &&
	       header_copy(wsi, WSI_TOKEN_HTTP, text, sizeof(text)) &&
	       strcmp(text, "HTTP/1.1") == 0;
}

static int ask_for_body(struct lws *wsi)
{
	static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
	unsigned char text[LWS_PRE + sizeof(go_on)];

	memcpy(text + LWS_PRE, go_on, sizeof(go_on));
	return lws_write(wsi, text + LWS_PRE, sizeof(go_on) - 1, LWS_WRITE_HTTP);
}

int http_on_request(struct http_lws *h, struct lws *wsi, struct http_conn *c, const char *uri)
{
	struct http_exchange *x;
	bool posted;
	int64_t n;

	if (c->x)
		return -1; /* lws never starts a second one before the first ended */
	x = calloc(1, sizeof(*x));
	if (!x)
		return -1;
	c->x = x;
	loop_hurry_for(http_lws_loop(h), LOOP_ANSWER_MS);
	*x = (struct http_exchange){.wsi = wsi, .conn = c, .server = h};
	buf_init(&x->body, HTTP_BODY_MAX);
	buf_init(&x->out, ANSWER_MAX);
	if (!http_lws_peer(wsi, &x->q.peer))
		return -1;
	x->q.method = method_read(wsi, &x->head);
	posted = lws_hdr_total_length(wsi, WSI_TOKEN_POST_URI) > 0;
	if (strlen(uri) < sizeof(x->q.path)) {
		memcpy(x->q.path, uri, strlen(uri) + 1);
		query_read(x, wsi);
		route(x, wsi);
	} else {
		exchange_refuse(x, 414, "uri_too_long", "the path is longer than 511 bytes");
	}
	n = body_length(x, wsi);
	if (n > 0 && expects_continue(wsi)) {
		if (x->status)
			n = -1;
		else if (ask_for_body(wsi) < 0)
			return -1;
	}
	/* With a body to come, http_on_body_end goes on (lws calls it for a POST of 0 bytes too).
	 */
	if (n > 0 || (n == 0 && posted))
		return 0;
	handle_now(x);
	return 0;
}

int http_on_body(struct http_conn *c, const char *bytes, size_t n)
{
	struct http_exchange *x = c->x;

	if (!x || x->ready || x->status || n == 0)
		return 0; /* dropped */
	return buf_append(&x->body, bytes, n) < 0 ? -1 : 0;
}

int http_on_body_end(struct http_conn *c)
{
	struct http_exchange *x = c->x;

	if (!x || x->ready)
		return 0;
	handle_now(x);
	return 0;
}

/* The next piece, if the socket takes it. 1: all is written; -1: the socket is broken. */
static int write_piece(struct http_exchange *x)
{
	size_t left = x->out.len - LWS_PRE - x->written;
	size_t n = left < PIECE_MAX ? left : PIECE_MAX;

	if (n && !lws_partial_buffered(x->wsi)) {
		if (lws_write(x->wsi, (unsigned char *)x->out.data + LWS_PRE + x->written, n,
			      LWS_WRITE_HTTP) < 0)
			return -1;
		x->written += n;
		left -= n;
		lws_set_timeout(x->wsi, PENDING_TIMEOUT_HTTP_CONTENT, ANSWER_TIMEOUT_S);
	}
	return left == 0 && !lws_partial_buffered(x->wsi);
}

int http_on_writable(struct lws *wsi, struct http_conn *c)
{
	struct http_exchange *x = c->x;

	if (!x || !x->ready)
		return 0;
	if (x->out.len > LWS_PRE && write_piece(x) == 0) {
		/* Not left to lws: it gives what it holds five seconds once it closes. */
		lws_callback_on_writable(wsi);
		return 0;
	}
	exchange_free(x);
	return -1; /* a connection serves one request: only the first head of each was looked at */
}

void http_on_gone(struct http_conn *c)
{
	exchange_free(c->x);
}
