/*
 * TLS clients. Agents that need certificates get one each, signed here by the CA of the run, all
 * with one key: what the server checks is the same, and the set-up stays short.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

static SSL_CTX *ctx;
static X509 *ca;
static EVP_PKEY *ca_key, *key;
static X509 **certs; /* by index, made on first use */

static FILE *open_or_complain(const char *path)
{
	FILE *f = fopen(path, "re");
	if (!f)
		perror(path);
	return f;
}

static int load_ca(const struct load_options *o)
{
	FILE *f = open_or_complain(o->ca_cert);
	if (!f)
		return -errno;
	ca = PEM_read_X509(f, NULL, NULL, NULL);
	fclose(f);
	f = open_or_complain(o->ca_key);
	if (!f)
		return -errno;
	ca_key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	key = EVP_EC_gen("P-256");
	certs = calloc(o->conns, sizeof(X509 *));
	return ca && ca_key && key && certs ? 0 : -EINVAL;
}

static X509 *mint(const struct load_options *o, uint32_t index)
{
	char san[160];
	X509 *x = X509_new();
	snprintf(san, sizeof san, "URI:urn:viworks:agent:%s%05u", o->id_prefix, index);
	X509_set_version(x, 2);
	ASN1_INTEGER_set_uint64(X509_get_serialNumber(x), index + 1000);
	X509_gmtime_adj(X509_getm_notBefore(x), -3600);
	X509_gmtime_adj(X509_getm_notAfter(x), 86400);
	X509_set_pubkey(x, key);
	X509_set_issuer_name(x, X509_get_subject_name(ca));
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
				   (const unsigned char *)san + 4, -1, -1, 0);
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, san);
	X509_add_ext(x, ext, -1);
	X509_EXTENSION_free(ext);
	if (!X509_sign(x, ca_key, EVP_sha256())) {
		X509_free(x);
		return NULL;
	}
	return x;
}

int load_tls_init(const struct load_options *o)
{
	ctx = SSL_CTX_new(TLS_client_method());
	if (!ctx)
		return -ENOMEM;
	/* the server's certificate is not what is measured */
	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				  SSL_MODE_RELEASE_BUFFERS);
	if (!o->ca_cert)
		return 0;
	int r = load_ca(o);
	for (uint32_t i = 0; i < o->conns && r == 0; i++)
		r = (certs[i] = mint(o, i)) ? 0 : -EINVAL;
	return r;
}

void *load_tls_new(const struct load_options *o, uint32_t index, int fd)
{
	SSL *ssl = SSL_new(ctx);
	if (!ssl)
		return NULL;
	if (SSL_set_fd(ssl, fd) != 1 ||
	    (o->ca_cert &&
	     (SSL_use_certificate(ssl, certs[index]) != 1 || SSL_use_PrivateKey(ssl, key) != 1))) {
		SSL_free(ssl);
		return NULL;
	}
	SSL_set_connect_state(ssl);
	return ssl;
}

static long outcome(SSL *ssl, int r)
{
	if (r > 0)
		return r;
	int why = SSL_get_error(ssl, r);
	ERR_clear_error();
	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
		return -EAGAIN;
	return why == SSL_ERROR_ZERO_RETURN ? 0 : -EPROTO;
}

int load_tls_handshake(void *ssl)
{
	long r = outcome(ssl, SSL_do_handshake(ssl));
	return r > 0 ? 0 : r == 0 ? -EPROTO : (int)r;
}

long load_tls_read(void *ssl, void *out, size_t n)
{
	return outcome(ssl, SSL_read(ssl, out, (int)n));
}

long load_tls_write(void *ssl, const void *p, size_t n)
{
	return outcome(ssl, SSL_write(ssl, p, (int)n));
}

void load_tls_free(void *ssl, bool notify)
{
	if (ssl && notify)
		SSL_shutdown(ssl);
	SSL_free(ssl);
	ERR_clear_error();
}
