/* See x509.h. Names are compared as bytes of their declared length, so a NUL inside never cuts one.
 */
#include "crypto/x509.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "crypto/crypto.h"

static const char agent_urn[] = "urn:viworks:agent:";

/* Hashes DER that OpenSSL made, and frees it. n: what i2d_… returned. */
static int digest_der(unsigned char *der, int n, uint8_t out[SHA256_BYTES])
{
	if (n <= 0)
		return -EINVAL;
	crypto_sha256(der, (size_t)n, out);
	OPENSSL_free(der);
	return 0;
}

static int time_ms(const ASN1_TIME *t, int64_t *ret)
{
	struct tm tm;
	if (!t || ASN1_TIME_to_tm(t, &tm) != 1)
		return -EINVAL;
	*ret = (int64_t)timegm(&tm) * 1000;
	return 0;
}

static bool is_plain(const unsigned char *s, int n)
{
	for (int i = 0; i < n; i++)
		if (s[i] < 0x20 || s[i] == 0x7f)
			return false;
	return n > 0;
}

/* The only CN as UTF-8 into a new buffer (OPENSSL_free); its length, or 0 when there is none, more
 * than one, or it is not plain. */
static int only_cn(X509 *cert, unsigned char **ret)
{
	const X509_NAME *name = X509_get_subject_name(cert);
	int at = X509_NAME_get_index_by_NID(name, NID_commonName, -1);
	if (at < 0 || X509_NAME_get_index_by_NID(name, NID_commonName, at) >= 0)
		return 0;
	int n = ASN1_STRING_to_UTF8(ret, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at)));
	if (n < 0)
		return 0;
	if (!is_plain(*ret, n)) {
		OPENSSL_free(*ret);
		return 0;
	}
	return n;
}

static void copy_subject(X509 *cert, char *out, size_t cap)
{
	out[0] = '\0';
	BIO *bio = BIO_new(BIO_s_mem());
	if (!bio)
		return;
	/* RFC 2253 escapes control and special characters, so the text is safe to log */
	if (X509_NAME_print_ex(bio, X509_get_subject_name(cert), 0, XN_FLAG_RFC2253) >= 0) {
		char *text;
		long n = BIO_get_mem_data(bio, &text);
		size_t take = n < 0 ? 0 : (size_t)n < cap - 1 ? (size_t)n : cap - 1;
		memcpy(out, text, take);
		out[take] = '\0';
	}
	BIO_free(bio);
}

int cert_info_from_x509(struct x509_st *cert, struct cert_info *ret)
{
	struct cert_info info = {0};
	unsigned char *der = NULL, *spki = NULL, *cn = NULL;
	if (!cert)
		return -EINVAL;
	int n = i2d_X509(cert, &der), spki_n = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(cert), &spki);
	int r = digest_der(der, n, info.fingerprint);
	int r_spki = digest_der(spki, spki_n, info.spki_pin);
	if (r < 0 || r_spki < 0 || time_ms(X509_get0_notBefore(cert), &info.not_before_ms) < 0 ||
	    time_ms(X509_get0_notAfter(cert), &info.not_after_ms) < 0) {
		ERR_clear_error();
		return -EINVAL;
	}
	copy_subject(cert, info.subject, sizeof info.subject);
	n = only_cn(cert, &cn);
	if (n > 0) {
		if ((size_t)n < sizeof info.cn)
			memcpy(info.cn, cn, (size_t)n);
		OPENSSL_free(cn);
	}
	*ret = info;
	return 0;
}

/* What the subjectAltName says about agent_id. */
struct san {
	bool has_urn, has_dns, urn_match, dns_match;
};

static bool same(const ASN1_IA5STRING *s, const char *prefix, const char *id)
{
	size_t n = (size_t)ASN1_STRING_length(s), prefix_n = strlen(prefix), id_n = strlen(id);
	const unsigned char *p = ASN1_STRING_get0_data(s);
	return n == prefix_n + id_n && memcmp(p, prefix, prefix_n) == 0 &&
	       memcmp(p + prefix_n, id, id_n) == 0;
}

static void look_at(const GENERAL_NAME *g, const char *id, struct san *san)
{
	if (g->type == GEN_URI) {
		const ASN1_IA5STRING *uri = g->d.uniformResourceIdentifier;
		size_t n = (size_t)ASN1_STRING_length(uri);
		if (n >= sizeof agent_urn - 1 &&
		    memcmp(ASN1_STRING_get0_data(uri), agent_urn, sizeof agent_urn - 1) == 0) {
			san->has_urn = true;
			san->urn_match |= same(uri, agent_urn, id);
		}
	} else if (g->type == GEN_DNS) {
		san->has_dns = true;
		san->dns_match |= same(g->d.dNSName, "", id);
	}
}

bool cert_names_agent(struct x509_st *cert, const char *agent_id)
{
	struct san san = {0};
	int critical = -1;
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, &critical, NULL);
	if (!names && critical != -1) {
		ERR_clear_error();
		return false; /* there is one, but it is broken or doubled */
	}
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++)
		look_at(sk_GENERAL_NAME_value(names, i), agent_id, &san);
	GENERAL_NAMES_free(names);
	if (san.has_urn)
		return san.urn_match;
	if (san.has_dns)
		return san.dns_match;
	unsigned char *cn = NULL;
	int n = only_cn(cert, &cn);
	if (n <= 0)
		return false;
	bool match = (size_t)n == strlen(agent_id) && memcmp(cn, agent_id, (size_t)n) == 0;
	OPENSSL_free(cn);
	return match;
}

int cert_from_pem(const char *pem, size_t n, struct x509_st **ret)
{
	if (n > INT32_MAX)
		return -EINVAL;
	BIO *bio = BIO_new_mem_buf(pem, (int)n);
	if (!bio)
		return -ENOMEM;
	X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
	BIO_free(bio);
	if (!cert) {
		ERR_clear_error();
		return -EINVAL;
	}
	*ret = cert;
	return 0;
}

void cert_free(struct x509_st *cert)
{
	X509_free(cert);
}

int cert_issuers(struct x509_st *cert, struct x509_store_st *store, struct stack_st_X509 **ret)
{
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	int n;

	if (ctx && X509_STORE_CTX_init(ctx, store, cert, NULL) == 1) {
		(void)X509_verify_cert(ctx); /* for the chain; the peer judges it */
		chain = X509_STORE_CTX_get1_chain(ctx);
	}
	X509_STORE_CTX_free(ctx);
	ERR_clear_error();
	if (!chain)
		return -ENOMEM;
	X509_free(sk_X509_shift(chain));
	n = sk_X509_num(chain);
	if (n > 0 && X509_self_signed(sk_X509_value(chain, n - 1), 0) == 1)
		X509_free(sk_X509_pop(chain));
	*ret = chain;
	return 0;
}

int crl_next_update_ms(const char *pem, size_t n, int64_t *ret)
{
	if (n > INT32_MAX)
		return -EINVAL;
	BIO *bio = BIO_new_mem_buf(pem, (int)n);
	if (!bio)
		return -ENOMEM;
	X509_CRL *crl = PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL);
	int r = crl ? time_ms(X509_CRL_get0_nextUpdate(crl), ret) : -EINVAL;
	X509_CRL_free(crl);
	BIO_free(bio);
	ERR_clear_error();
	return r;
}

/* ---- links ---- */

#define KEY_ID_BYTES 8

static void put_link(const X509_NAME *name, const ASN1_OCTET_STRING *key_id,
		     char out[CERT_LINK_LEN + 1])
{
	int ok = 0;
	unsigned long hash = X509_NAME_hash_ex(name, NULL, NULL, &ok);
	int n = snprintf(out, CERT_LINK_LEN + 1, "%08lx:", ok ? hash & 0xffffffffUL : 0);
	uint8_t bytes[KEY_ID_BYTES] = {0};
	size_t len = key_id ? (size_t)ASN1_STRING_length(key_id) : 0;
	if (len > 0) {
		memcpy(bytes, ASN1_STRING_get0_data(key_id),
		       len < sizeof bytes ? len : sizeof bytes);
		crypto_hex(bytes, sizeof bytes, out + n);
	}
	ERR_clear_error();
}

void cert_subject_link(struct x509_st *cert, char out[CERT_LINK_LEN + 1])
{
	put_link(X509_get_subject_name(cert), X509_get0_subject_key_id(cert), out);
}

void cert_issuer_link(struct x509_st *cert, char out[CERT_LINK_LEN + 1])
{
	put_link(X509_get_issuer_name(cert), X509_get0_authority_key_id(cert), out);
}

bool cert_link_fits(const char *issuer, const char *subject)
{
	const char *a = strchr(issuer, ':'), *b = strchr(subject, ':');
	return a && b && a - issuer == b - subject &&
	       strncmp(issuer, subject, (size_t)(a - issuer)) == 0 &&
	       (!a[1] || !b[1] || strcmp(a, b) == 0);
}

void cert_pin_short(const uint8_t spki_pin[32], char out[CERT_PIN_LEN + 1])
{
	crypto_hex(spki_pin, CERT_PIN_LEN / 2, out);
}
