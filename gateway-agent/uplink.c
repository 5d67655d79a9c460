/* The WebSocket to a bridge over libwebsockets on our loop: dialling, sending, ending. See
 * uplink.h. */
#include "uplink_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "crypto/crypto.h"
#include "loop/loop.h"

#define SUBPROTOCOL	"viworks-agent-v1"
#define SEND_QUEUE_MSGS 256
#define DESTROY_STEP_MS 20

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

void uplink_note_end(struct uplink *u, enum redial_cause cause, int code, const char *detail)
{
	if (u->has_end)
		return;
	u->has_end = true;
	u->end.cause = cause;
	u->end.code = code;
	(void)snprintf(u->end.detail, sizeof u->end.detail, "%s", detail ? detail : "");
}

void uplink_ended(struct uplink *u)
{
	if (u->phase == IDLE || u->phase == ENDED)
		return;
	uplink_note_end(u, REDIAL_LOST, 0, "connection lost");
	u->phase = ENDED;
	if (u->resolve)
		loop_resolve_forget(TAKE(u->resolve));
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

/* Kills the wsi from outside its callbacks. Its last callback calls uplink_ended(). */
static void kill_wsi(struct uplink *u)
{
	struct lws *wsi = u->wsi;

	if (wsi)
		lws_set_timeout(wsi, PENDING_TIMEOUT_CLOSE_SEND, LWS_TO_KILL_SYNC);
	uplink_ended(u);
}

void uplink_hang_up(struct uplink *u, int close_code, enum redial_cause cause, const char *detail)
{
	if (u->phase == IDLE || u->phase == ENDED)
		return;
	uplink_note_end(u, cause, 0, detail);
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
	uplink_note_end(u, REDIAL_CONNECT, 0, "cannot connect");
	uplink_ended(u);
}

static void connect_next(struct uplink *u)
{
	char text[NETADDR_TEXT_MAX];
	struct lws_vhost *vh = u->direct;

	if (u->phase == ENDED || u->phase == IDLE)
		return;
	if (u->next_address >= u->addresses) {
		uplink_note_end(u, REDIAL_CONNECT, 0, "no address answers");
		uplink_ended(u);
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
			uplink_note_end(u, REDIAL_PROXY, 0, "the proxy's address is not valid");
			uplink_ended(u);
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

/* For ws://localhost: whatever a hosts file or a name server makes of it, plaintext stays here. */
static bool all_loopback(struct uplink *u, const struct netaddr *addr, size_t n)
{
	char ip[NETADDR_TEXT_MAX], text[160];
	size_t i;

	for (i = 0; i < n && netaddr_is_loopback(&addr[i]); i++)
		;
	if (i == n)
		return true;
	netaddr_format_ip(&addr[i], ip);
	(void)snprintf(text, sizeof text, "%.40s leads to %s; ws:// is allowed to loopback only",
		       u->backend->host, ip);
	uplink_note_end(u, REDIAL_RESOLVE, 0, text);
	return false;
}

static void on_resolved(void *arg, int error, const struct netaddr *addr, size_t n)
{
	struct uplink *u = arg;
	char text[128];

	u->resolve = NULL;
	if (error || n == 0) {
		(void)snprintf(text, sizeof text, "the name %.80s does not resolve",
			       u->proxy.host[0] ? u->proxy.host : u->backend->host);
		uplink_note_end(u, REDIAL_RESOLVE, 0, text);
		uplink_ended(u);
		return;
	}
	if (!u->backend->tls && !all_loopback(u, addr, n)) {
		uplink_ended(u);
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
	u->tls_error = 0;
	u->peer = (struct trust_peer){0};
	u->addresses = 0;
	u->next_address = 0;
	u->proxy = (struct proxy){0};
	loop_timer_start(u->open_timer, UPLINK_OPEN_MS, 0);
	if (b->tls && proxy_for(b->host, &use, &u->proxy, why, sizeof why) < 0) {
		uplink_note_end(u, REDIAL_PROXY, 0, why);
		uplink_ended(u);
		return 0;
	}
	r = loop_resolve(u->loop, use ? u->proxy.host : b->host, use ? u->proxy.port : b->port,
			 on_resolved, u, &u->resolve);
	if (r < 0) {
		uplink_note_end(u, REDIAL_RESOLVE, 0, strerror(-r));
		uplink_ended(u);
	}
	return 0;
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
    {.name = SUBPROTOCOL, .callback = uplink_on_lws, .rx_buffer_size = 4096},
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

	if (!file_descriptors_to_spare(FILE_SPARE_FOR_LWS))
		return -EMFILE;
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
	SSL_CTX_set_cert_cb(u->ssl_ctx, uplink_on_cert_wanted, u);
	SSL_CTX_set_info_callback(u->ssl_ctx, uplink_on_ssl_info);
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

/* lws wants destroy, loop turns, destroy again. */
static void on_destroy_step(void *arg)
{
	struct uplink *u = arg;

	if (u->destroy_step++ == 2) {
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
