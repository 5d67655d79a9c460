/* The WebSocket to a bridge over libwebsockets on our loop. See uplink.h. Longer than most files
 * here: all that knows libwebsockets is in it. */
#include "uplink.h"

#include <assert.h>
#include <errno.h>
#include <libwebsockets.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/ident.h"
#include "base/log.h"
#include "base/netaddr.h"
#include "crypto/crypto.h"
#include "loop/loop.h"
#include "proxy.h"

#define SUBPROTOCOL	"viworks-agent-v1"
#define ADDRESSES_MAX	8
#define SEND_QUEUE_MSGS 256
#define DESTROY_STEP_MS 20

enum phase { IDLE, RESOLVING, CONNECTING, IN_TLS, REQUESTED, OPEN, ENDED };

struct out_frame {
	struct out_frame *next;
	size_t n;
	unsigned char bytes[]; /* LWS_PRE, then the text */
};

struct uplink {
	struct loop *loop;
	char *agent_id, *shared_secret;
	const struct uplink_ops *ops;
	void *arg;
	const struct trust *trust;
	SSL_CTX *ssl_ctx;
	struct lws_context *lws;
	struct lws_vhost *direct, *proxied;
	struct loop_timer *open_timer, *address_timer;
	struct loop_later *later; /* delivers on_end */
	bool closing;
	unsigned resolving; /* asks under way */
	int destroy_step;

	/* the dial */
	enum phase phase;
	uintptr_t serial; /* of this dial's wsi: callbacks of older ones are ignored */
	const struct redial_backend *backend;
	struct proxy proxy;
	struct netaddr address[ADDRESSES_MAX];
	size_t addresses, next_address;
	struct lws *wsi;
	bool in_callback, want_close;
	int alert; /* TLS alert the backend sent; -1: none */
	struct trust_peer peer;
	struct redial_end end;
	bool has_end;
	struct buf rx;
	struct out_frame *out, **out_tail;
	size_t out_bytes, out_msgs;
};

/* ---- ends ---- */

static void drop_queue(struct uplink *u)
{
	struct out_frame *f;

	while ((f = u->out)) {
		u->out = f->next;
		free(f);
	}
	u->out_tail = &u->out;
	u->out_bytes = 0;
	u->out_msgs = 0;
}

/* The first reason stays. */
static void note_end(struct uplink *u, enum redial_cause cause, int code, const char *detail)
{
	if (u->has_end)
		return;
	u->has_end = true;
	u->end.cause = cause;
	u->end.code = code;
	(void)snprintf(u->end.detail, sizeof u->end.detail, "%s", detail ? detail : "");
}

/* The wsi is gone, or never was. */
static void ended(struct uplink *u)
{
	if (u->phase == IDLE || u->phase == ENDED)
		return;
	note_end(u, REDIAL_LOST, 0, "connection lost");
	u->phase = ENDED;
	u->wsi = NULL;
	u->serial++;
	loop_timer_stop(u->open_timer);
	loop_timer_stop(u->address_timer);
	drop_queue(u);
	buf_wipe(&u->rx);
	buf_trim(&u->rx, 4096);
	loop_later_ask(u->later);
}

static void on_later(void *arg)
{
	struct uplink *u = arg;
	struct redial_end end = u->end;

	if (u->phase != ENDED || u->closing)
		return;
	u->phase = IDLE;
	u->backend = NULL;
	crypto_wipe(&u->proxy, sizeof u->proxy);
	u->ops->on_end(u->arg, &end);
}

/* Kills the wsi from outside its callbacks. Its last callback calls ended(). */
static void kill_wsi(struct uplink *u)
{
	struct lws *wsi = u->wsi;

	if (wsi)
		lws_set_timeout(wsi, PENDING_TIMEOUT_CLOSE_SEND, LWS_TO_KILL_SYNC);
	ended(u);
}

void uplink_hang_up(struct uplink *u, int close_code, enum redial_cause cause, const char *detail)
{
	if (u->phase == IDLE || u->phase == ENDED)
		return;
	note_end(u, cause, 0, detail);
	if (u->phase == OPEN && u->wsi && close_code)
		lws_close_reason(u->wsi, (enum lws_close_status)close_code, NULL, 0);
	u->want_close = true;
	if (!u->in_callback)
		kill_wsi(u);
}

/* ---- dialling ---- */

static void connect_next(struct uplink *u);

static void on_open_timeout(void *arg)
{
	struct uplink *u = arg;

	uplink_hang_up(u, 0, REDIAL_TIMEOUT,
		       u->phase == RESOLVING ? "the name was not resolved in time"
					     : "no answer in time");
}

/* This address leads nowhere; perhaps the next one does. */
static void try_another(struct uplink *u)
{
	struct lws *wsi = u->wsi;

	u->serial++;
	u->wsi = NULL;
	if (wsi)
		lws_set_timeout(wsi, PENDING_TIMEOUT_CLOSE_SEND, LWS_TO_KILL_SYNC);
	connect_next(u);
}

static void on_address_timeout(void *arg)
{
	struct uplink *u = arg;

	if (u->phase == CONNECTING)
		try_another(u);
}

static const lws_retry_bo_t no_lws_timers; /* pings and patience are ours */

static void connect_via(struct uplink *u, struct lws_vhost *vh, const char *address)
{
	struct lws_client_connect_info i = {0};
	struct lws *wsi;
	uintptr_t serial = ++u->serial;

	i.context = u->lws;
	i.vhost = vh;
	i.address = address;
	i.port = u->backend->port;
	i.path = u->backend->path;
	i.host = u->backend->authority;
	i.protocol = SUBPROTOCOL;
	i.local_protocol_name = SUBPROTOCOL;
	i.alpn = "http/1.1";
	i.retry_and_idle_policy = &no_lws_timers;
	i.opaque_user_data = (void *)serial;
	i.pwsi = &u->wsi;
	/* Names are checked in trust_verify: lws cannot do it for IPv6 literals. */
	if (u->backend->tls)
		i.ssl_connection = LCCSCF_USE_SSL | LCCSCF_SKIP_SERVER_CERT_HOSTNAME_CHECK;
	i.ssl_connection |= LCCSCF_HTTP_NO_FOLLOW_REDIRECT;
	u->phase = CONNECTING;
	wsi = lws_client_connect_via_info(&i);
	if (wsi || u->serial != serial)
		return;
	u->wsi = NULL;
	note_end(u, REDIAL_CONNECT, 0, "cannot connect");
	ended(u);
}

static void connect_next(struct uplink *u)
{
	char text[NETADDR_TEXT_MAX];
	struct lws_vhost *vh = u->direct;

	if (u->phase == ENDED || u->phase == IDLE)
		return;
	if (u->next_address >= u->addresses) {
		note_end(u, REDIAL_CONNECT, 0, "no address answers");
		ended(u);
		return;
	}
	netaddr_format_ip(&u->address[u->next_address++], text);
	if (u->next_address < u->addresses)
		loop_timer_start(u->address_timer, UPLINK_ADDRESS_MS, 0);
	else
		loop_timer_stop(u->address_timer);
	if (u->proxy.host[0]) {
		char where[sizeof u->proxy.userinfo + NETADDR_TEXT_MAX + 16];

		(void)snprintf(where, sizeof where, "%s%s%s%s%s:%u", u->proxy.userinfo,
			       u->proxy.userinfo[0] ? "@" : "", strchr(text, ':') ? "[" : "", text,
			       strchr(text, ':') ? "]" : "", (unsigned)u->proxy.port);
		vh = u->proxied;
		if (lws_set_proxy(vh, where) != 0) {
			note_end(u, REDIAL_PROXY, 0, "the proxy's address is not valid");
			ended(u);
			return;
		}
		crypto_wipe(where, sizeof where);
		if (strchr(u->backend->host, ':'))
			(void)snprintf(text, sizeof text, "[%s]", u->backend->host);
		connect_via(u, vh, strchr(u->backend->host, ':') ? text : u->backend->host);
		return;
	}
	connect_via(u, vh, text);
}

/* A resolve cannot be called back: u outlives it (closing waits for it). */
static void on_resolved(void *arg, int error, const struct netaddr *addr, size_t n)
{
	struct uplink *u = arg;
	char text[128];

	u->resolving--;
	if (u->closing || u->phase != RESOLVING || u->resolving > 0)
		return;
	if (error || n == 0) {
		(void)snprintf(text, sizeof text, "the name %.80s does not resolve",
			       u->proxy.host[0] ? u->proxy.host : u->backend->host);
		note_end(u, REDIAL_RESOLVE, 0, text);
		ended(u);
		return;
	}
	u->addresses = n < ADDRESSES_MAX ? n : ADDRESSES_MAX;
	memcpy(u->address, addr, u->addresses * sizeof *addr);
	connect_next(u);
}

int uplink_dial(struct uplink *u, const struct redial_backend *b)
{
	char why[160];
	bool use = false;
	int r;

	if (u->phase != IDLE)
		return -EBUSY;
	u->phase = RESOLVING;
	u->backend = b;
	u->has_end = false;
	u->want_close = false;
	u->end = (struct redial_end){.retry_after_ms = -1};
	u->alert = -1;
	u->peer = (struct trust_peer){0};
	u->addresses = 0;
	u->next_address = 0;
	u->proxy = (struct proxy){0};
	loop_timer_start(u->open_timer, UPLINK_OPEN_MS, 0);
	if (b->tls && proxy_for(b->host, &use, &u->proxy, why, sizeof why) < 0) {
		note_end(u, REDIAL_PROXY, 0, why);
		ended(u);
		return 0;
	}
	r = loop_resolve(u->loop, use ? u->proxy.host : b->host, use ? u->proxy.port : b->port,
			 on_resolved, u);
	if (r < 0) {
		note_end(u, REDIAL_RESOLVE, 0, strerror(-r));
		ended(u);
		return 0;
	}
	u->resolving++;
	return 0;
}

/* ---- lws callbacks ---- */

static int append_header(struct lws *wsi, const char *name, const char *value, unsigned char **p,
			 unsigned char *end)
{
	return lws_add_http_header_by_name(wsi, (const unsigned char *)name,
					   (const unsigned char *)value, (int)strlen(value), p,
					   end);
}

static int on_append_headers(struct uplink *u, struct lws *wsi, void *in, size_t len)
{
	unsigned char **p = in, *end = *p + len;
	char ts[CLOCK_RFC3339_LEN + 1], nonce[UUID_LEN + 1], hex[SHA256_HEX_LEN + 1];
	uint8_t mac[SHA256_BYTES];

	u->phase = REQUESTED;
	loop_timer_stop(u->address_timer);
	clock_format_rfc3339(clock_wall_ms(), ts);
	ident_uuid4(nonce);
	if (append_header(wsi, "x-agent-id:", u->agent_id, p, end) ||
	    append_header(wsi, "x-timestamp:", ts, p, end) ||
	    append_header(wsi, "x-nonce:", nonce, p, end))
		return -1;
	if (!u->shared_secret)
		return 0;
	crypto_handshake_mac(u->shared_secret, u->backend->path, ts, nonce, u->agent_id, mac);
	crypto_hex(mac, sizeof mac, hex);
	return append_header(wsi, "x-agent-auth:", hex, p, end) ? -1 : 0;
}

static int64_t read_retry_after(struct lws *wsi)
{
	char text[32];
	char *end;
	long v;

	if (lws_hdr_copy(wsi, text, sizeof text, WSI_TOKEN_HTTP_RETRY_AFTER) <= 0)
		return -1;
	v = strtol(text, &end, 10);
	return end != text && *end == '\0' && v >= 0 && v <= 86400 ? v * 1000 : -1;
}

/* Why did it fail? What lws tells is a text; what we saw ourselves is better. */
static void classify(struct uplink *u, struct lws *wsi, const char *text)
{
	char detail[160], ip[NETADDR_TEXT_MAX];
	unsigned status = u->phase == REQUESTED ? lws_http_client_http_response(wsi) : 0;

	if (u->peer.pin_mismatch) {
		note_end(u, REDIAL_PIN, 0, u->peer.error);
	} else if (u->peer.error[0]) {
		note_end(u, REDIAL_TLS, 0, u->peer.error);
	} else if (status >= 100 && status != 101) {
		u->end.retry_after_ms = read_retry_after(wsi);
		(void)snprintf(detail, sizeof detail, "refused with HTTP status %u", status);
		note_end(u, REDIAL_HTTP, (int)status, detail);
	} else if (u->alert >= 0) {
		(void)snprintf(detail, sizeof detail, "the backend sent TLS alert: %s",
			       SSL_alert_desc_string_long(u->alert));
		note_end(u, REDIAL_TLS, 0, detail);
	} else if (u->proxy.host[0] && u->phase == CONNECTING) {
		(void)snprintf(detail, sizeof detail, "proxy %.80s: %.60s", u->proxy.host,
			       text ? text : "no tunnel");
		note_end(u, REDIAL_PROXY, 0, detail);
	} else if (u->phase == IN_TLS) {
		note_end(u, REDIAL_TLS, 0, text ? text : "the handshake broke off");
	} else if (u->phase == REQUESTED) {
		note_end(u, REDIAL_LOST, 0, "closed before it answered");
	} else {
		/* lws says no more than "closed before established" */
		netaddr_format_ip(&u->address[u->next_address ? u->next_address - 1 : 0], ip);
		(void)snprintf(detail, sizeof detail,
			       "%s port %u refuses the connection or cannot be reached", ip,
			       (unsigned)u->backend->port);
		note_end(u, REDIAL_CONNECT, 0, detail);
	}
}

/* Failed before it was open. */
static void on_failed(struct uplink *u, struct lws *wsi, const char *text)
{
	if (u->phase == CONNECTING && !u->has_end && u->next_address < u->addresses) {
		u->serial++;
		u->wsi = NULL;
		loop_timer_start(u->address_timer, 0, 0); /* not from inside the callback */
		return;
	}
	if (u->phase != OPEN)
		classify(u, wsi, text);
	ended(u);
}

static int on_receive(struct uplink *u, struct lws *wsi, const char *in, size_t len)
{
	if (lws_frame_is_binary(wsi)) {
		uplink_hang_up(u, 1003, REDIAL_PROTOCOL, "binary frame");
		return -1;
	}
	if (u->rx.len + len + lws_remaining_packet_payload(wsi) > UPLINK_MAX_FRAME_BYTES ||
	    buf_append(&u->rx, in, len) < 0) {
		uplink_hang_up(u, 1009, REDIAL_PROTOCOL, "frame too big");
		return -1;
	}
	if (!lws_is_final_fragment(wsi) || lws_remaining_packet_payload(wsi))
		return 0;
	u->ops->on_text(u->arg, u->rx.data ? u->rx.data : "", u->rx.len);
	buf_wipe(&u->rx); /* a COMMAND may have held secrets */
	buf_trim(&u->rx, 16384);
	return u->want_close ? -1 : 0;
}

static int on_writeable(struct uplink *u, struct lws *wsi)
{
	struct out_frame *f;
	int n;

	while ((f = u->out) && !lws_send_pipe_choked(wsi)) {
		n = lws_write(wsi, f->bytes + LWS_PRE, f->n, LWS_WRITE_TEXT);
		if (n < (int)f->n)
			return -1;
		u->out = f->next;
		if (!u->out)
			u->out_tail = &u->out;
		u->out_bytes -= f->n;
		u->out_msgs--;
		free(f);
	}
	if (u->out)
		(void)lws_callback_on_writable(wsi);
	else
		u->ops->on_drained(u->arg);
	return u->want_close ? -1 : 0;
}

static int on_established(struct uplink *u, struct lws *wsi)
{
	SSL *ssl = lws_get_ssl(wsi);

	/* The verify callback decided already; never go on if it was not asked. */
	if (u->backend->tls && (!ssl || SSL_get_verify_result(ssl) != X509_V_OK || !u->peer.seen)) {
		uplink_hang_up(u, 1008, REDIAL_TLS, "the backend's certificate was not verified");
		return -1;
	}
	u->phase = OPEN;
	loop_timer_stop(u->open_timer);
	loop_timer_stop(u->address_timer);
	u->ops->on_open(u->arg);
	return u->want_close ? -1 : 0;
}

static void on_peer_close(struct uplink *u, const unsigned char *in, size_t len)
{
	int code = len >= 2 ? in[0] << 8 | in[1] : 1005;
	char detail[128];

	(void)snprintf(detail, sizeof detail, "closed by the bridge: %d %.*s", code,
		       (int)(len > 2 ? (len - 2 > 80 ? 80 : len - 2) : 0),
		       len > 2 ? (const char *)in + 2 : "");
	note_end(u, REDIAL_CLOSE, code, detail);
}

static int verify_peer(struct uplink *u, X509_STORE_CTX *ctx, bool chain_ok)
{
	if (u->phase != IN_TLS && u->phase != CONNECTING)
		return 1;
	return trust_verify(u->trust, ctx, chain_ok, u->backend->host, u->backend->host_is_ip,
			    &u->peer)
		   ? 0
		   : 1;
}

static int dispatch(struct uplink *u, struct lws *wsi, enum lws_callback_reasons reason, void *in,
		    size_t len)
{
	switch (reason) {
	case LWS_CALLBACK_CLIENT_APPEND_HANDSHAKE_HEADER:
		return on_append_headers(u, wsi, in, len);
	case LWS_CALLBACK_CLIENT_ESTABLISHED:
		return on_established(u, wsi);
	case LWS_CALLBACK_CLIENT_RECEIVE:
		return on_receive(u, wsi, in, len);
	case LWS_CALLBACK_CLIENT_WRITEABLE:
		return u->phase == OPEN ? on_writeable(u, wsi) : 0;
	case LWS_CALLBACK_WS_PEER_INITIATED_CLOSE:
		on_peer_close(u, in, len);
		return 0;
	case LWS_CALLBACK_CLIENT_CONNECTION_ERROR:
		on_failed(u, wsi, in);
		return 0;
	case LWS_CALLBACK_CLIENT_CLOSED:
	case LWS_CALLBACK_CLOSED_CLIENT_HTTP:
	case LWS_CALLBACK_WSI_DESTROY: /* half of all TLS 1.3 refusals show only here */
		on_failed(u, wsi, NULL);
		return 0;
	default:
		return 0;
	}
}

static int on_lws(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
		  size_t len)
{
	struct lws_context *context = wsi ? lws_get_context(wsi) : NULL;
	struct uplink *u = context ? lws_context_user(context) : NULL;
	int r;

	if (!u || u->closing)
		return 0;
	if (reason == LWS_CALLBACK_OPENSSL_PERFORM_SERVER_CERT_VERIFICATION) {
		if ((uintptr_t)lws_get_opaque_user_data(wsi) != u->serial)
			return 1;
		return verify_peer(u, user, len != 0);
	}
	if ((uintptr_t)lws_get_opaque_user_data(wsi) != u->serial || u->phase == IDLE ||
	    u->phase == ENDED)
		return 0;
	u->in_callback = true;
	r = dispatch(u, wsi, reason, in, len);
	u->in_callback = false;
	return r;
}

/* ---- TLS hooks ---- */

static int on_cert_wanted(SSL *ssl, void *arg)
{
	struct uplink *u = arg;

	return trust_apply_identity(u->trust, ssl);
}

static void on_ssl_info(const SSL *ssl, int where, int ret)
{
	struct uplink *u = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	if (where & SSL_CB_HANDSHAKE_START && u->phase == CONNECTING)
		u->phase = IN_TLS;
	if (where == SSL_CB_READ_ALERT && (ret & 0xff) != SSL_AD_CLOSE_NOTIFY)
		u->alert = ret & 0xff;
}

/* ---- sending ---- */

int uplink_send(struct uplink *u, const char *text, size_t n)
{
	struct out_frame *f;

	if (u->phase != OPEN || u->want_close)
		return -ENOTCONN;
	if (u->out_msgs >= SEND_QUEUE_MSGS || u->out_bytes + n > UPLINK_SEND_QUEUE_BYTES)
		return -ENOBUFS;
	f = malloc(sizeof *f + LWS_PRE + n);
	if (!f)
		return -ENOMEM;
	f->next = NULL;
	f->n = n;
	memcpy(f->bytes + LWS_PRE, text, n);
	*u->out_tail = f;
	u->out_tail = &f->next;
	u->out_bytes += n;
	u->out_msgs++;
	(void)lws_callback_on_writable(u->wsi);
	return 0;
}

bool uplink_is_open(const struct uplink *u)
{
	return u->phase == OPEN && !u->want_close;
}

const struct trust_peer *uplink_peer(const struct uplink *u)
{
	return &u->peer;
}

/* ---- life ---- */

int uplink_set_trust(struct uplink *u, const struct trust *t)
{
	int r = trust_apply_store(t, u->ssl_ctx);

	if (r == 0)
		u->trust = t;
	return r;
}

int uplink_set_secret(struct uplink *u, const char *shared_secret)
{
	char *copy = shared_secret ? strdup(shared_secret) : NULL;

	if (shared_secret && !copy)
		return -ENOMEM;
	if (u->shared_secret)
		crypto_wipe(u->shared_secret, strlen(u->shared_secret));
	free(u->shared_secret);
	u->shared_secret = copy;
	return 0;
}

static const struct lws_protocols protocols[] = {
    {.name = SUBPROTOCOL, .callback = on_lws, .rx_buffer_size = 4096},
    {0},
};

static struct lws_vhost *new_vhost(struct uplink *u, const char *name)
{
	struct lws_context_creation_info i = {0};

	i.port = CONTEXT_PORT_NO_LISTEN;
	i.vhost_name = name;
	i.protocols = protocols;
	i.options = LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS;
	i.provided_client_ssl_ctx = u->ssl_ctx;
	i.http_proxy_address = ""; /* not from http_proxy */
	i.retry_and_idle_policy = &no_lws_timers;
	i.timeout_secs = 30; /* ours is shorter */
	i.user = u;
	return lws_create_vhost(u->lws, &i);
}

static int open_lws(struct uplink *u)
{
	struct lws_context_creation_info i = {0};
	void *native = loop_native(u->loop);

	lws_set_log_level(0, NULL);
	i.options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_LIBUV |
		    LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT | LWS_SERVER_OPTION_DISABLE_OS_CA_CERTS |
		    LWS_SERVER_OPTION_SKIP_SERVER_CANONICAL_NAME;
	i.foreign_loops = &native;
	i.port = CONTEXT_PORT_NO_LISTEN;
	i.fd_limit_per_thread = 32;
	i.pt_serv_buf_size = 4096;
	i.timeout_secs = 30;
	i.connect_timeout_secs = 30;
	i.retry_and_idle_policy = &no_lws_timers;
	i.user = u;
	u->lws = lws_create_context(&i);
	if (!u->lws)
		return -ENOMEM;
	u->direct = new_vhost(u, "direct");
	u->proxied = new_vhost(u, "proxied");
	return u->direct && u->proxied ? 0 : -ENOMEM;
}

int uplink_open(struct loop *l, const struct uplink_config *cfg, const struct uplink_ops *ops,
		void *arg, struct uplink **ret)
{
	struct uplink *u = calloc(1, sizeof *u);
	int r = -ENOMEM;

	if (!u)
		return -ENOMEM;
	*u = (struct uplink){.loop = l, .ops = ops, .arg = arg, .out_tail = &u->out};
	buf_init(&u->rx, UPLINK_MAX_FRAME_BYTES);
	u->agent_id = strdup(cfg->agent_id);
	u->ssl_ctx = trust_new_ctx();
	if (!u->agent_id || !u->ssl_ctx || uplink_set_secret(u, cfg->shared_secret) < 0)
		goto fail;
	SSL_CTX_set_app_data(u->ssl_ctx, u);
	SSL_CTX_set_cert_cb(u->ssl_ctx, on_cert_wanted, u);
	SSL_CTX_set_info_callback(u->ssl_ctx, on_ssl_info);
	r = loop_timer_new(l, on_open_timeout, u, &u->open_timer);
	if (r == 0)
		r = loop_timer_new(l, on_address_timeout, u, &u->address_timer);
	if (r == 0)
		r = loop_later_new(l, on_later, u, &u->later);
	if (r == 0)
		r = open_lws(u);
	if (r < 0)
		goto fail;
	*ret = u;
	return 0;
fail:
	uplink_close(u);
	return r;
}

static void release(struct uplink *u)
{
	loop_timer_close(u->open_timer);
	loop_timer_close(u->address_timer);
	if (u->later)
		loop_later_close(u->later);
	SSL_CTX_free(u->ssl_ctx);
	drop_queue(u);
	buf_fini(&u->rx);
	if (u->shared_secret)
		crypto_wipe(u->shared_secret, strlen(u->shared_secret));
	free(u->shared_secret);
	free(u->agent_id);
	free(u);
}

/* lws wants destroy, loop turns, destroy again; and a resolve under way must come back first. */
static void on_destroy_step(void *arg)
{
	struct uplink *u = arg;

	if (u->resolving == 0 && u->destroy_step++ == 2) {
		if (u->lws)
			lws_context_destroy(u->lws);
		release(u);
		return;
	}
	if (u->destroy_step == 1 && u->lws)
		lws_context_destroy(u->lws);
	loop_timer_start(u->address_timer, DESTROY_STEP_MS, 0);
}

void uplink_close(struct uplink *u)
{
	if (!u)
		return;
	uplink_hang_up(u, 1000, REDIAL_LOCAL, "stopping");
	u->closing = true;
	if (!u->address_timer) {
		release(u);
		return;
	}
	loop_timer_close(u->address_timer);
	u->address_timer = NULL;
	if (loop_timer_new(u->loop, on_destroy_step, u, &u->address_timer) < 0) {
		release(u); /* no memory: lws' own is left to the process' end */
		return;
	}
	loop_timer_start(u->address_timer, 0, 0);
}
