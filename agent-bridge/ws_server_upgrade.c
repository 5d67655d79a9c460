#include "ws_server_upgrade.h"

#include <string.h>

#include "http/http_lws.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>

/* Names as lws wants them: with the colon. */
struct header_name {
	char text[48];
	int n;
};

static const struct header_name *header_names(void)
{
	static struct header_name name[HANDSHAKE_HEADERS];

	for (int h = 0; h < HANDSHAKE_HEADERS && !name[h].n; h++)
		name[h].n = lws_snprintf(name[h].text, sizeof(name[h].text),
					 "%s:", handshake_header_name[h]);
	return name;
}

static size_t copy_header(struct lws *wsi, enum handshake_header h, char *at, size_t cap,
			  struct span *ret)
{
	const struct header_name *name = header_names() + h;
	int n;

	if (h == HANDSHAKE_PROTOCOL || h == HANDSHAKE_FORWARDED_FOR) {
		enum lws_token_indexes t =
		    h == HANDSHAKE_PROTOCOL ? WSI_TOKEN_PROTOCOL : WSI_TOKEN_X_FORWARDED_FOR;

		n = lws_hdr_total_length(wsi, t);
		if (n <= 0 || lws_hdr_copy(wsi, at, (int)cap, t) < 0)
			return 0;
	} else {
		n = lws_hdr_custom_length(wsi, name->text, name->n);
		if (n < 0 || (size_t)n + 1 > cap ||
		    lws_hdr_custom_copy(wsi, at, (int)cap, name->text, name->n) < 0)
			return 0;
	}
	*ret = (struct span){at, (size_t)n};
	return (size_t)n + 1;
}

static X509 *peer_certificate(struct lws *wsi)
{
	SSL *ssl = lws_get_ssl(wsi);

	if (!ssl || SSL_get_verify_result(ssl) != X509_V_OK)
		return NULL;
	return SSL_get1_peer_certificate(ssl);
}

/* What lws would otherwise answer by just closing. */
static const char *upgrade_fault(struct lws *wsi)
{
	char text[128];

	if (lws_hdr_copy(wsi, text, sizeof(text), WSI_TOKEN_UPGRADE) <= 0 ||
	    strcasecmp(text, "websocket") != 0)
		return "only Upgrade: websocket is served";
	if (lws_hdr_copy(wsi, text, sizeof(text), WSI_TOKEN_VERSION) <= 0 ||
	    strcmp(text, "13") != 0)
		return "Sec-WebSocket-Version must be 13";
	if (lws_hdr_total_length(wsi, WSI_TOKEN_KEY) != 24)
		return "Sec-WebSocket-Key must be 16 bytes in base64";
	if (lws_hdr_total_length(wsi, WSI_TOKEN_HOST) <= 0)
		return "Host is missing";
	if (lws_hdr_copy(wsi, text, sizeof(text), WSI_TOKEN_CONNECTION) <= 0 ||
	    !strcasestr(text, "upgrade"))
		return "Connection must name Upgrade";
	if (lws_hdr_total_length(wsi, WSI_TOKEN_PROTOCOL) > 120)
		return "Sec-WebSocket-Protocol is too long";
	return NULL;
}

int ws_upgrade_read(struct ws_upgrade *u, struct lws *wsi, const char *uri, unsigned repeated)
{
	struct handshake_request *q = &u->request;
	size_t used = 0;

	*q = (struct handshake_request){.path = uri};
	if (!http_lws_peer(wsi, &q->peer))
		return -1;
	for (int h = 0; h < HANDSHAKE_HEADERS; h++) {
		used += copy_header(wsi, (enum handshake_header)h, u->text + used,
				    sizeof(u->text) - used, &q->header[h]);
		q->duplicate[h] = repeated >> h & 1;
	}
	q->fault = upgrade_fault(wsi);
	q->cert = peer_certificate(wsi);
	return 0;
}

void ws_upgrade_fini(struct ws_upgrade *u)
{
	X509_free(u->request.cert);
}
