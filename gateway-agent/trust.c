/* TLS material of the agent. See trust.h. */
#include "trust.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "crypto/crypto.h"

#define PEM_MAX_BYTES 1048576
#define BUNDLE_MAX    512
#define TOLD_MAX      8

struct trust {
	X509 *cert;
	STACK_OF(X509) * chain;
	EVP_PKEY *key;
	X509_STORE *store;
	struct cert_info info;
	int64_t bundle_not_after_ms;
	uint8_t pin[TRUST_MAX_PINS][SHA256_BYTES];
	size_t pins;
	char ca[TOLD_MAX][CERT_LINK_LEN + 1];
	size_t cas; /* may be more than TOLD_MAX */
	struct buf told;
	uint8_t digest[SHA256_BYTES]; /* over all files, to see changes */
};

static const char *openssl_error(void)
{
	const char *s = ERR_reason_error_string(ERR_peek_last_error());

	ERR_clear_error();
	return s ? s : "not valid";
}

static int fault(char *why, size_t cap, const char *setting, const char *path, const char *what)
{
	(void)snprintf(why, cap, "%s: %s: %s", setting, path, what);
	return -EINVAL;
}

static int read_pem(const char *setting, const char *path, bool secret, struct buf *pem, char *why,
		    size_t cap)
{
	int r;

	buf_init(pem, PEM_MAX_BYTES);
	r = secret ? file_read_secret(path, pem) : file_read(path, pem);
	if (r == -EACCES && secret)
		return fault(
		    why, cap, setting, path,
		    "not readable, or readable by others: give it to the agent's user, mode 0400");
	if (r == -ENODATA)
		return fault(why, cap, setting, path, "the file is empty");
	return r < 0 ? fault(why, cap, setting, path, strerror(-r)) : 0;
}

static void mix(struct trust *t, const struct buf *b)
{
	uint8_t both[2 * SHA256_BYTES];

	memcpy(both, t->digest, SHA256_BYTES);
	crypto_sha256(b->data, b->len, both + SHA256_BYTES);
	crypto_sha256(both, sizeof both, t->digest);
}

static int load_cert(struct trust *t, const char *path, char *why, size_t cap)
{
	struct buf pem;
	BIO *bio = NULL;
	X509 *x;
	int r;

	r = read_pem("CERT_PATH", path, false, &pem, why, cap);
	if (r < 0)
		goto out;
	mix(t, &pem);
	bio = BIO_new_mem_buf(pem.data, (int)pem.len);
	t->chain = sk_X509_new_null();
	if (!bio || !t->chain) {
		r = -ENOMEM;
		goto out;
	}
	t->cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
	if (!t->cert || cert_info_from_x509(t->cert, &t->info) < 0) {
		r = fault(why, cap, "CERT_PATH", path, "holds no PEM certificate");
		goto out;
	}
	while ((x = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
		if (!sk_X509_push(t->chain, x)) {
			X509_free(x);
			r = -ENOMEM;
			goto out;
		}
	}
	ERR_clear_error();
out:
	BIO_free(bio);
	buf_fini(&pem);
	return r;
}

/* A file without issuers: those of the bundle go with it. */
static int complete_chain(struct trust *t)
{
	if (sk_X509_num(t->chain) > 0)
		return 0;
	sk_X509_free(t->chain);
	t->chain = NULL;
	return cert_issuers(t->cert, t->store, &t->chain);
}

static int no_password(char *out, int size, int rw, void *arg)
{
	(void)out, (void)size, (void)rw, (void)arg;
	return -1; /* never ask on the terminal */
}

static int load_key(struct trust *t, const char *path, char *why, size_t cap)
{
	struct buf pem;
	BIO *bio = NULL;
	int r;

	r = read_pem("KEY_PATH", path, true, &pem, why, cap);
	if (r < 0)
		goto out;
	mix(t, &pem);
	bio = BIO_new_mem_buf(pem.data, (int)pem.len);
	if (!bio) {
		r = -ENOMEM;
		goto out;
	}
	t->key = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
	if (!t->key)
		r = fault(why, cap, "KEY_PATH", path, "holds no unencrypted PEM private key");
	else if (X509_check_private_key(t->cert, t->key) != 1)
		r = fault(why, cap, "KEY_PATH", path,
			  "does not belong to the certificate in CERT_PATH");
	ERR_clear_error();
out:
	BIO_free(bio);
	buf_wipe(&pem);
	buf_fini(&pem);
	return r;
}

static int load_bundle(struct trust *t, const char *path, char *why, size_t cap)
{
	struct cert_info info;
	struct buf pem;
	BIO *bio = NULL;
	X509 *x;
	int r, n = 0;

	r = read_pem("TRUST_BUNDLE", path, false, &pem, why, cap);
	if (r < 0)
		goto out;
	mix(t, &pem);
	bio = BIO_new_mem_buf(pem.data, (int)pem.len);
	if (!bio) {
		r = -ENOMEM;
		goto out;
	}
	while (r == 0 && n < BUNDLE_MAX && (x = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
		n++;
		if (t->cas++ < TOLD_MAX)
			cert_subject_link(x, t->ca[t->cas - 1]);
		if (X509_STORE_add_cert(t->store, x) != 1)
			r = fault(why, cap, "TRUST_BUNDLE", path, openssl_error());
		else if (cert_info_from_x509(x, &info) == 0 &&
			 (!t->bundle_not_after_ms || info.not_after_ms < t->bundle_not_after_ms))
			t->bundle_not_after_ms = info.not_after_ms;
		X509_free(x);
	}
	if (r == 0 && n == 0)
		r = fault(why, cap, "TRUST_BUNDLE", path, "holds no PEM certificate");
	ERR_clear_error();
out:
	BIO_free(bio);
	buf_fini(&pem);
	return r;
}

static int load_pins(struct trust *t, const char *csv, char *why, size_t cap)
{
	const char *s = csv;

	while (*s) {
		size_t n, got = 0;

		s += strspn(s, ", \t");
		n = strcspn(s, ", \t");
		if (n == 0)
			break;
		if (t->pins == TRUST_MAX_PINS)
			return fault(why, cap, "BACKEND_SPKI_PIN", "", "more than 16 pins");
		if (crypto_unbase64(s, n, t->pin[t->pins], SHA256_BYTES, &got) < 0 ||
		    got != SHA256_BYTES)
			return fault(
			    why, cap, "BACKEND_SPKI_PIN", "",
			    "each pin is base64 of 32 bytes: openssl x509 -pubkey -noout | openssl "
			    "pkey -pubin -outform der | openssl dgst -sha256 -binary | base64");
		t->pins++;
		s += n;
	}
	return 0;
}

static int tell(struct trust *t)
{
	char text[CERT_LINK_LEN + 1];
	struct jsonw w;
	int i;

	buf_init(&t->told, 4096);
	jsonw_init(&w, &t->told);
	jsonw_obj(&w, NULL);
	jsonw_arr(&w, "issuers");
	for (i = -1; t->cert && i < sk_X509_num(t->chain) && i < TOLD_MAX - 1; i++) {
		cert_issuer_link(i < 0 ? t->cert : sk_X509_value(t->chain, i), text);
		jsonw_str(&w, NULL, text);
	}
	jsonw_arr_end(&w);
	if (t->cas <= TOLD_MAX) {
		jsonw_arr(&w, "trust");
		for (i = 0; i < (int)t->cas; i++)
			jsonw_str(&w, NULL, t->ca[i]);
		jsonw_arr_end(&w);
	} else {
		jsonw_uint(&w, "trust_untold", t->cas);
	}
	jsonw_arr(&w, "pins");
	for (i = 0; i < (int)t->pins; i++) {
		cert_pin_short(t->pin[i], text);
		jsonw_str(&w, NULL, text);
	}
	jsonw_arr_end(&w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

struct span trust_told(const struct trust *t)
{
	return (struct span){t->told.data, t->told.len};
}

int trust_load(const struct trust_config *cfg, struct trust **ret, char *why, size_t cap)
{
	struct trust *t = calloc(1, sizeof *t);
	int r = 0;

	(void)snprintf(why, cap, "out of memory");
	if (!t)
		return -ENOMEM;
	t->store = X509_STORE_new();
	if (!t->store)
		r = -ENOMEM;
	if (r == 0 && !cfg->cert_path != !cfg->key_path)
		r = fault(why, cap, cfg->cert_path ? "KEY_PATH" : "CERT_PATH", "",
			  "is not set: certificate and key come together");
	if (r == 0 && cfg->cert_path && cfg->key_path)
		r = load_cert(t, cfg->cert_path, why, cap);
	if (r == 0 && t->cert)
		r = load_key(t, cfg->key_path, why, cap);
	if (r == 0 && cfg->bundle_path)
		r = load_bundle(t, cfg->bundle_path, why, cap);
	if (r == 0 && t->cert)
		r = complete_chain(t);
	if (r == 0 && cfg->pins_csv)
		r = load_pins(t, cfg->pins_csv, why, cap);
	if (r == 0)
		r = tell(t);
	if (r < 0) {
		trust_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

void trust_free(struct trust *t)
{
	if (!t)
		return;
	X509_free(t->cert);
	sk_X509_pop_free(t->chain, X509_free);
	EVP_PKEY_free(t->key);
	X509_STORE_free(t->store);
	buf_fini(&t->told);
	free(t);
}

bool trust_equal(const struct trust *a, const struct trust *b)
{
	return crypto_equal(a->digest, b->digest, sizeof a->digest) && a->pins == b->pins &&
	       crypto_equal(a->pin, b->pin, sizeof a->pin);
}

bool trust_has_cert(const struct trust *t)
{
	return t->cert != NULL;
}

const struct cert_info *trust_cert_info(const struct trust *t)
{
	return t->cert ? &t->info : NULL;
}

int64_t trust_bundle_not_after_ms(const struct trust *t)
{
	return t->bundle_not_after_ms;
}

SSL_CTX *trust_new_ctx(void)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

	if (!ctx)
		return NULL;
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	/* A resumed session would skip the verify callback, and with it the pin. */
	(void)SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	(void)SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
					   SSL_OP_NO_COMPRESSION);
	(void)SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
	return ctx;
}

int trust_apply_store(const struct trust *t, SSL_CTX *ctx)
{
	if (X509_STORE_up_ref(t->store) != 1)
		return -ENOMEM;
	SSL_CTX_set_cert_store(ctx, t->store); /* takes the reference, frees the former */
	return 0;
}

int trust_apply_identity(const struct trust *t, SSL *ssl)
{
	SSL_certs_clear(ssl);
	if (!t->cert)
		return 1;
	return SSL_use_certificate(ssl, t->cert) == 1 && SSL_use_PrivateKey(ssl, t->key) == 1 &&
	       SSL_set1_chain(ssl, t->chain) == 1;
}

static bool pinned(const struct trust *t, const uint8_t *pin)
{
	size_t i;

	for (i = 0; i < t->pins; i++) {
		if (crypto_equal(t->pin[i], pin, SHA256_BYTES))
			return true;
	}
	return t->pins == 0;
}

bool trust_verify(const struct trust *t, X509_STORE_CTX *ctx, bool chain_ok, const char *host,
		  bool host_is_ip, struct trust_peer *peer)
{
	X509 *cert = X509_STORE_CTX_get_current_cert(ctx);
	int depth = X509_STORE_CTX_get_error_depth(ctx);
	struct cert_info info;

	if (!chain_ok) {
		(void)snprintf(peer->error, sizeof peer->error, "certificate at depth %d: %s",
			       depth, X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx)));
		return false;
	}
	if (depth > 0)
		return true;
	if (!cert || cert_info_from_x509(cert, &info) < 0) {
		(void)snprintf(peer->error, sizeof peer->error, "certificate cannot be read");
		return false;
	}
	peer->seen = true;
	peer->not_after_ms = info.not_after_ms;
	crypto_base64(info.spki_pin, SHA256_BYTES, peer->pin);
	if ((host_is_ip ? X509_check_ip_asc(cert, host, 0)
			: X509_check_host(cert, host, 0, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS,
					  NULL)) != 1) {
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_HOSTNAME_MISMATCH);
		(void)snprintf(peer->error, sizeof peer->error, "certificate is not for %.100s",
			       host);
		return false;
	}
	if (!pinned(t, info.spki_pin)) {
		peer->pin_mismatch = true;
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_APPLICATION_VERIFICATION);
		(void)snprintf(peer->error, sizeof peer->error, "key with pin %s is not pinned",
			       peer->pin);
		return false;
	}
	return true;
}
