/* What happens to the WebSocket, as libwebsockets and OpenSSL tell it. See uplink.h. */
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "loop/loop.h"
#include "uplink_private.h"

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
	char text[64], date[64];

	if (lws_hdr_copy(wsi, text, sizeof text, WSI_TOKEN_HTTP_RETRY_AFTER) <= 0)
		return -1;
	return redial_retry_after_ms(
	    text, lws_hdr_copy(wsi, date, sizeof date, WSI_TOKEN_HTTP_DATE) > 0 ? date : NULL,
	    clock_wall_ms());
}

/* What the proxy answered, where lws tells: 4.3 does, 4.1 has "proxy not h1" for every answer but
 * 200. */
static const char *proxy_status(const char *text)
{
	static const char before[] = "http_proxy -> ";

	return text && strncmp(text, before, sizeof before - 1) == 0 ? text + sizeof before - 1
								     : NULL;
}

/* Why did it fail? What lws tells is a text; what we saw ourselves is better. */
static void classify(struct uplink *u, struct lws *wsi, const char *text)
{
	const char *tls = u->tls_error ? ERR_reason_error_string(u->tls_error) : NULL;
	const char *proxy = proxy_status(text);
	char detail[192], ip[NETADDR_TEXT_MAX];
	unsigned status = u->phase == REQUESTED ? lws_http_client_http_response(wsi) : 0;

	if (u->peer.pin_mismatch) {
		uplink_note_end(u, REDIAL_PIN, 0, u->peer.error);
	} else if (u->peer.error[0]) {
		uplink_note_end(u, REDIAL_TLS, 0, u->peer.error);
	} else if (status >= 100 && status != 101) {
		u->end.retry_after_ms = read_retry_after(wsi);
		(void)snprintf(detail, sizeof detail, "refused with HTTP status %u", status);
		uplink_note_end(u, REDIAL_HTTP, (int)status, detail);
	} else if (u->alert >= 0) {
		(void)snprintf(detail, sizeof detail, "the backend sent TLS alert: %s",
			       SSL_alert_desc_string_long(u->alert));
		uplink_note_end(u, REDIAL_TLS, 0, detail);
	} else if (u->proxy.host[0] && u->phase == CONNECTING) {
		(void)snprintf(detail, sizeof detail, "proxy %.80s gives no tunnel: %s%.40s",
			       u->proxy.host, proxy ? "it did not answer 200 but " : "",
			       proxy				   ? proxy
			       : !text				   ? "it hung up"
			       : strcmp(text, "proxy not h1") == 0 ? "it did not answer 200"
								   : text);
		uplink_note_end(u, REDIAL_PROXY, 0, detail);
	} else if (u->phase == IN_TLS) {
		(void)snprintf(detail, sizeof detail, "TLS handshake failed: %.60s%s",
			       tls    ? tls
			       : text ? text
				      : "it broke off",
			       u->tls_error &&
				       ERR_GET_REASON(u->tls_error) == SSL_R_WRONG_VERSION_NUMBER
				   ? " (the backend does not speak TLS)"
				   : "");
		uplink_note_end(u, REDIAL_TLS, 0, detail);
	} else if (u->phase == REQUESTED) {
		uplink_note_end(u, REDIAL_LOST, 0, "closed before it answered");
	} else {
		/* lws says no more than "closed before established" */
		netaddr_format_ip(&u->address[u->next_address ? u->next_address - 1 : 0], ip);
		(void)snprintf(detail, sizeof detail,
			       "%s port %u refuses the connection or cannot be reached", ip,
			       (unsigned)u->backend->port);
		uplink_note_end(u, REDIAL_CONNECT, 0, detail);
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
	uplink_ended(u);
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
	utf8_blank_controls(detail);
	uplink_note_end(u, REDIAL_CLOSE, code, detail);
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

int uplink_on_lws(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
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

int uplink_on_cert_wanted(SSL *ssl, void *arg)
{
	struct uplink *u = arg;

	return trust_apply_identity(u->trust, ssl);
}

void uplink_on_ssl_info(const SSL *ssl, int where, int ret)
{
	struct uplink *u = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	if (where & SSL_CB_HANDSHAKE_START && u->phase == CONNECTING)
		u->phase = IN_TLS;
	if (where == SSL_CB_READ_ALERT && (ret & 0xff) != SSL_AD_CLOSE_NOTIFY)
		u->alert = ret & 0xff;
	if (where & SSL_CB_EXIT && ret <= 0 && u->phase == IN_TLS && ERR_peek_last_error())
		u->tls_error = ERR_peek_last_error();
}
