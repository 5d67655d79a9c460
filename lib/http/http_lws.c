/*
 * The lws context, its one vhost and its callbacks. States of a server: open → (accepting
 * paused at the cap or without descriptors) → closing → freed by its own timer, after lws' second
 * destroy call.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/file.h"
#include "base/log.h"
#include "http/http_accept.h"
#include "http/http_head.h"

#define ACCEPT_PAUSE_MS 100
#define DESTROY_STEP_MS 20
#define HTTP_HEAD_EXTRA 1024 /* lws keeps 8 bytes beside each header it does not know */

const struct http_table *http_lws_table(const struct http_lws *h)
{
	return &h->table;
}

uint16_t http_lws_port(const struct http_lws *h)
{
	return h->port;
}

void *http_lws_arg(struct http_lws *h)
{
	return h->cfg.arg;
}

struct lws_vhost *http_lws_vhost(struct http_lws *h)
{
	return h->vhost;
}

struct loop *http_lws_loop(struct http_lws *h)
{
	return h->loop;
}

unsigned http_lws_repeated(const struct http_lws *h)
{
	return h->repeated;
}

size_t http_lws_conns(const struct http_lws *h)
{
	return h->conns;
}

size_t http_lws_answering(const struct http_lws *h)
{
	return h->answering;
}

void http_lws_count_answer(struct http_lws *h, int by)
{
	h->answering += (size_t)by;
}

struct http_lws *http_lws_of(struct lws *wsi)
{
	return lws_context_user(lws_get_context(wsi));
}

bool http_lws_peer(struct lws *wsi, struct netaddr *ret)
{
	int fd = lws_get_socket_fd(wsi);

	memset(ret, 0, sizeof(*ret));
	ret->len = sizeof(ret->ss);
	return fd >= 0 && getpeername(fd, (struct sockaddr *)&ret->ss, &ret->len) == 0;
}

bool http_lws_peer_is_there(struct lws *wsi)
{
	struct tcp_info tcp = {0};
	socklen_t n = sizeof(tcp);
	SSL *ssl = lws_get_ssl(wsi);

	return !http_lws_of(wsi)->closing && !(ssl && SSL_get_shutdown(ssl)) &&
	       getsockopt(lws_get_socket_fd(wsi), IPPROTO_TCP, TCP_INFO, &tcp, &n) == 0 &&
	       tcp.tcpi_state == TCP_ESTABLISHED;
}

void http_lws_set_token(struct http_lws *h, const char *token)
{
	h->table.token = token;
}

/* ---- lws callbacks ---- */

static void take_opening(struct http_lws *h, struct lws *wsi)
{
	h->literal = http_opening_literal(wsi);
	h->repeated = http_opening_over(h, wsi);
}

static int on_confirm_upgrade(struct http_lws *h, struct lws *wsi)
{
	char uri[512];

	/* Not `in`, which lws may leave dangling. */
	if (lws_hdr_total_length(wsi, WSI_TOKEN_UPGRADE) <= 0)
		return -1;
	if (lws_hdr_copy(wsi, uri, sizeof(uri), WSI_TOKEN_GET_URI) <= 0)
		return http_lws_refuse(wsi, 400, "bad_upgrade",
				       "an upgrade is a GET of a short path", 0);
	if (h->literal)
		return h->cfg.on_upgrade(h->cfg.arg, wsi, uri);
	return http_lws_refuse(wsi, 404, "not_found", "nothing is upgraded on this path", 0);
}

static void tell_bad_head(struct http_lws *h, struct lws *wsi, const char *why)
{
	char ip[NETADDR_TEXT_MAX] = "";
	struct netaddr peer;

	if (http_lws_peer(wsi, &peer))
		netaddr_format_ip(&peer, ip);
	if (h->cfg.on_bad_head)
		h->cfg.on_bad_head(h->cfg.arg, ip, "bad_request", why);
}

/* In front of libwebsockets' own, which it calls for what it refuses without asking (an Upgrade it
 * does not know, for one) and which answers HTTP/1.0 and HTML: a program's symbols win. Not 0:
 * it hangs up. */
int lws_return_http_status(struct lws *wsi, unsigned int code, const char *html_body UNUSED)
{
	struct http_lws *h = http_lws_of(wsi);

	take_opening(h, wsi);
	if (lws_hdr_total_length(wsi, WSI_TOKEN_UPGRADE) > 0) {
		(void)on_confirm_upgrade(h, wsi);
	} else {
		(void)http_lws_refuse(wsi, (int)code, "bad_request", http_reason((int)code), 0);
		tell_bad_head(h, wsi, http_reason((int)code));
	}
	return -1;
}

/* lws made the SSL_CTX of the vhost; it is empty. */
static int tls_begin(struct http_lws *h, SSL_CTX *ctx)
{
	if (http_tls_apply(ctx, h->cfg.tls) < 0)
		return -1;
	SSL_CTX_set_app_data(ctx, h);
	SSL_CTX_set_info_callback(ctx, http_tls_on_info);
	h->tls = ctx;
	return 0;
}

void http_lws_tls_refused(struct http_lws *h, const char *ip, const char *why)
{
	if (h->cfg.on_tls_refused)
		h->cfg.on_tls_refused(h->cfg.arg, ip, why);
}

int http_lws_reload_tls(struct http_lws *h, const struct http_lws_tls *tls)
{
	int r = h->tls ? http_tls_check(tls) : -EPROTO;

	return r < 0 ? r : http_tls_apply(h->tls, tls);
}

static int on_http(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
		   size_t len)
{
	struct http_lws *h = http_lws_of(wsi);
	struct http_conn *c = user;

	switch (reason) {
	case LWS_CALLBACK_WSI_CREATE:
		http_accept_count(h, 1);
		return 0;
	case LWS_CALLBACK_WSI_DESTROY:
		(void)http_opening_over(h, wsi);
		http_accept_count(h, -1);
		return h->cfg.ws ? h->cfg.ws->callback(wsi, reason, user, in, len) : 0;
	case LWS_CALLBACK_HTTP_CONFIRM_UPGRADE:
		take_opening(h, wsi);
		return on_confirm_upgrade(h, wsi);
	case LWS_CALLBACK_HTTP:
		return http_on_request(h, wsi, c, in);
	case LWS_CALLBACK_HTTP_BODY:
		return http_on_body(c, in, len);
	case LWS_CALLBACK_HTTP_BODY_COMPLETION:
		return http_on_body_end(c);
	case LWS_CALLBACK_HTTP_WRITEABLE:
		return http_on_writable(wsi, c);
	case LWS_CALLBACK_CLOSED_HTTP:
	case LWS_CALLBACK_HTTP_DROP_PROTOCOL:
		if (c)
			http_on_gone(c);
		return 0;
	case LWS_CALLBACK_ESTABLISHED:
	case LWS_CALLBACK_RECEIVE:
	case LWS_CALLBACK_RECEIVE_PONG:
	case LWS_CALLBACK_SERVER_WRITEABLE:
	case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
	case LWS_CALLBACK_WS_SERVER_DROP_PROTOCOL:
	case LWS_CALLBACK_CLOSED:
		return h->cfg.ws ? h->cfg.ws->callback(wsi, reason, user, in, len) : -1;
	case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_SERVER_VERIFY_CERTS:
		return tls_begin(h, user);
	case LWS_CALLBACK_OPENSSL_PERFORM_CLIENT_CERT_VERIFICATION:
		return len ? 0 : 1; /* OpenSSL's verdict; lws ignores it otherwise */
	default:
		return 0;
	}
}

/* ---- open and close ---- */

static void on_lws_log(int level UNUSED, const char *line)
{
	LOG_DEBUG(FIELDS(.event = "libwebsockets"), "%.*s", (int)strcspn(line, "\n"), line);
}

static int context_open(struct http_lws *h)
{
	/* All zero: lws keeps no validity timers of its own (they are sorted lists). */
	static const lws_retry_bo_t no_validity;
	void *loops[1] = {loop_native(h->loop)};
	int r;
	struct lws_context_creation_info info = {
	    .port = CONTEXT_PORT_NO_LISTEN_SERVER,
	    .protocols = h->protocols,
	    .user = h,
	    .foreign_loops = loops,
	    .options = LWS_SERVER_OPTION_LIBUV | LWS_SERVER_OPTION_EXPLICIT_VHOSTS |
		       LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS,
	    .fd_limit_per_thread = h->cfg.many ? 0 : (unsigned)h->cfg.max_conns + 32,
	    .max_http_header_pool = 0,
	    .max_http_header_data = HTTP_HEAD_MAX + HTTP_HEAD_EXTRA,
	    .timeout_secs = 20,
	    .timeout_secs_ah_idle = 60,
	    .pt_serv_buf_size = 4096,
	    .retry_and_idle_policy = &no_validity,
	    .vhost_name = "default",
	    .alpn = "http/1.1",
	};

	if (h->cfg.tls) {
		info.options |=
		    LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_CREATE_VHOST_SSL_CTX;
		if (h->cfg.tls->client_ca_path)
			info.options |= LWS_SERVER_OPTION_REQUIRE_VALID_OPENSSL_CLIENT_CERT;
		r = http_tls_check(h->cfg.tls);
		if (r < 0)
			return r;
	}
	if (!file_descriptors_to_spare(FILE_SPARE_FOR_LWS))
		return -EMFILE;
	lws_set_log_level(log_enabled(LOG_LEVEL_DEBUG) ? LLL_ERR | LLL_WARN : 0, on_lws_log);
	h->context = lws_create_context(&info);
	if (!h->context)
		return -ENOMEM;
	h->vhost = lws_create_vhost(h->context, &info);
	h->cfg.tls = NULL; /* the caller's, for the time of the call */
	return h->vhost ? 0 : -ENOMEM;
}

/* A client that offers no subprotocol is served by protocols[0]: both are the same in all but
 * name, and on_http tells HTTP from WebSocket by the reason. */
static void protocols_fill(struct http_lws *h)
{
	size_t session = sizeof(struct http_conn);

	if (h->cfg.ws && h->cfg.ws->per_session_data_size > session)
		session = h->cfg.ws->per_session_data_size;
	h->protocols[0] = (struct lws_protocols){
	    .name = "http", .callback = on_http, .per_session_data_size = session};
	if (!h->cfg.ws)
		return;
	h->protocols[0].rx_buffer_size = h->cfg.ws->rx_buffer_size;
	h->protocols[1] = h->protocols[0];
	h->protocols[1].name = h->cfg.ws->name;
}

static void http_lws_release(struct http_lws *h)
{
	loop_timer_close(h->timer);
	loop_timer_close(h->opening_timer);
	if (h->on_closed)
		h->on_closed(h->on_closed_arg);
	free(h);
}

/* First destroy, loop turns, second destroy: called twice without turns between, lws crashes. */
static void on_timer(void *arg)
{
	struct http_lws *h = arg;

	if (!h->closing) {
		http_accept_resume(h);
		if (h->paused && h->poll)
			loop_timer_start(h->timer, ACCEPT_PAUSE_MS, 0);
		return;
	}
	switch (h->destroy_step++) {
	case 0:
		loop_hold_opens(h->loop, 1);
		http_opening_drop_all(h);
		if (h->context)
			lws_context_destroy(h->context);
		loop_timer_start(h->timer, DESTROY_STEP_MS, 0);
		return;
	default:
		if (h->context)
			lws_context_destroy(h->context);
		loop_hold_opens(h->loop, -1);
		http_lws_release(h);
		return;
	}
}

void http_lws_close(struct http_lws *h)
{
	http_lws_close_then(h, NULL, NULL);
}

void http_lws_close_then(struct http_lws *h, loop_cb done, void *arg)
{
	if (!h || h->closing)
		return;
	h->on_closed = done;
	h->on_closed_arg = arg;
	http_lws_stop_accepting(h);
	h->closing = true;
	loop_timer_start(h->timer, 0, 0);
}

int http_lws_open(struct loop *l, const struct http_lws_config *cfg, struct http_lws **ret)
{
	struct http_lws *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return -ENOMEM;
	h->loop = l;
	h->cfg = *cfg;
	h->table = *cfg->table;
	h->fd = -1;
	protocols_fill(h);
	r = loop_timer_new(l, on_timer, h, &h->timer);
	if (r < 0) {
		loop_timer_close(h->timer);
		free(h);
		return r;
	}
	r = http_accept_open(h, cfg->bind);
	if (r == 0)
		r = context_open(h);
	if (r < 0) {
		if (h->fd >= 0 && !h->poll)
			close(h->fd);
		http_lws_close(h);
		return r;
	}
	*ret = h;
	return 0;
}
