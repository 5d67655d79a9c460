/*
 * TLS of the listener: certificate, key, client CAs and CRLs into an SSL_CTX, at start and again
 * on a live one. A reload is tried on a scratch SSL_CTX first: a bad pair on the live one would
 * leave the listener unable to accept. Sockets that are open keep what they have.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "crypto/crl.h"
#include "crypto/x509.h"
#include "http/http_internal.h"

static int refuse(const struct http_lws_tls *t, const char *path, const char *what)
{
	unsigned long e = ERR_peek_last_error();
	const char *why = e ? ERR_reason_error_string(e) : NULL;

	snprintf(t->msg, t->msg_cap, "%s: %s%s%s", path, what, why ? ": " : "", why ? why : "");
	ERR_clear_error();
	return -EPROTO;
}

/* All CRLs of a PEM file. */
static int crls_add(X509_STORE *store, const struct http_lws_tls *t)
{
	FILE *f = fopen(t->crl_path, "re");
	int n = 0, bad = 0;
	X509_CRL *crl;

	if (!f)
		return refuse(t, t->crl_path, strerror(errno));
	ERR_clear_error();
	while ((crl = PEM_read_X509_CRL(f, NULL, NULL, NULL))) {
		bad |= X509_STORE_add_crl(store, crl) != 1;
		X509_CRL_free(crl);
		n++;
	}
	fclose(f);
	/* At the end of the file is no further beginning; anything else is a CRL cut short. */
	bad |= ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE;
	if (n == 0 || bad)
		return refuse(t, t->crl_path,
			      n ? "holds a CRL that cannot be read" : "holds no usable CRL");
	ERR_clear_error();
	return 0;
}

static int store_make(const struct http_lws_tls *t, X509_STORE **ret)
{
	X509_STORE *store = X509_STORE_new();
	int r = store ? 0 : -ENOMEM;

	if (r == 0 && X509_STORE_load_file(store, t->client_ca_path) != 1)
		r = refuse(t, t->client_ca_path, "holds no usable CA certificate");
	if (r == 0 && t->crl_path)
		r = crls_add(store, t);
	if (r < 0) {
		X509_STORE_free(store);
		return r;
	}
	/* Every CA of the chain needs its CRL: one that is missing or past its nextUpdate refuses.
	 */
	if (t->crl_path) {
		X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
		crl_check_once(store);
	}
	*ret = store;
	return 0;
}

/* The file's chain is sent as it is; without one, the issuers among the client CAs are. */
static int chain_complete(SSL_CTX *ctx)
{
	STACK_OF(X509) *chain = NULL;
	int r;

	SSL_CTX_set_mode(ctx, SSL_MODE_NO_AUTO_CHAIN);
	if (SSL_CTX_get0_chain_certs(ctx, &chain) == 1 && sk_X509_num(chain) > 0)
		return 0;
	r = cert_issuers(SSL_CTX_get0_certificate(ctx), SSL_CTX_get_cert_store(ctx), &chain);
	if (r < 0)
		return r;
	if (sk_X509_num(chain) == 0 || SSL_CTX_set0_chain(ctx, chain) != 1)
		sk_X509_pop_free(chain, X509_free);
	return 0;
}

static int clients_apply(SSL_CTX *ctx, const struct http_lws_tls *t)
{
	STACK_OF(X509_NAME) * names;
	X509_STORE *store;
	int r = store_make(t, &store);

	if (r < 0)
		return r;
	SSL_CTX_set_cert_store(ctx, store); /* takes it */
	names = SSL_load_client_CA_file(t->client_ca_path);
	if (names)
		SSL_CTX_set_client_CA_list(ctx, names); /* takes it */
	return 0;
}

static int kind_of_key(const SSL_CTX *ctx)
{
	EVP_PKEY *key = SSL_CTX_get0_privatekey(ctx);

	return key ? EVP_PKEY_get_base_id(key) : EVP_PKEY_NONE;
}

/* Offers what was read last and nothing else. */
static int on_cert_wanted(SSL *ssl, void *arg UNUSED)
{
	SSL_CTX *ctx = SSL_get_SSL_CTX(ssl);
	STACK_OF(X509) *chain = NULL;

	SSL_certs_clear(ssl);
	return SSL_CTX_get0_chain_certs(ctx, &chain) == 1 &&
	       SSL_use_cert_and_key(ssl, SSL_CTX_get0_certificate(ctx),
				    SSL_CTX_get0_privatekey(ctx), chain, 1) == 1;
}

int http_tls_apply(SSL_CTX *ctx, const struct http_lws_tls *t)
{
	int kind = kind_of_key(ctx), r;

	ERR_clear_error();
	/* Chain before key: a new certificate makes OpenSSL forget a key that does not fit it. */
	if (SSL_CTX_use_certificate_chain_file(ctx, t->cert_path) != 1)
		return refuse(t, t->cert_path, "no usable certificate chain");
	if (SSL_CTX_use_PrivateKey_file(ctx, t->key_path, SSL_FILETYPE_PEM) != 1)
		return refuse(t, t->key_path, "no usable private key for this certificate");
	if (SSL_CTX_check_private_key(ctx) != 1)
		return refuse(t, t->key_path, "does not belong to the certificate");
	/* An SSL_CTX keeps one certificate of each kind of key, and would go on to offer the old
	 * one. */
	if (kind != EVP_PKEY_NONE && kind != kind_of_key(ctx))
		SSL_CTX_set_cert_cb(ctx, on_cert_wanted, NULL);
	SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
	/* SSL_read returns after each record: a peer that sends key updates on and on would hold us
	 * within one call otherwise. */
	SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
	/* Agents stay for days: sessions to resume would only cost memory. */
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
				     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_COMPRESSION);
	if (t->client_ca_path) {
		r = clients_apply(ctx, t);
		if (r < 0)
			return r;
	}
	return chain_complete(ctx);
}

int http_tls_check(const struct http_lws_tls *t)
{
	SSL_CTX *scratch = SSL_CTX_new(TLS_server_method());
	int r = scratch ? http_tls_apply(scratch, t) : -ENOMEM;

	SSL_CTX_free(scratch);
	return r;
}

/* Called by OpenSSL for every alert; a fatal one of ours means that we refused a client. */
void http_tls_on_info(const SSL *ssl, int where, int alert)
{
	struct http_lws *h = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
	long verdict = SSL_get_verify_result(ssl);
	struct netaddr peer = {.len = sizeof(peer.ss)};
	char ip[NETADDR_TEXT_MAX] = "";
	int fd = SSL_get_fd(ssl);

	if (where != SSL_CB_WRITE_ALERT || (alert >> 8) != SSL3_AL_FATAL || !h)
		return;
	if (fd >= 0 && getpeername(fd, (struct sockaddr *)&peer.ss, &peer.len) == 0)
		netaddr_format_ip(&peer, ip);
	http_lws_tls_refused(h, ip,
			     verdict != X509_V_OK ? X509_verify_cert_error_string(verdict)
						  : SSL_alert_desc_string_long(alert));
}
