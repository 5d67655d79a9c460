/*
 * See crypto.h. Algorithms are fetched once (EVP_MD_fetch costs more than hashing a handshake).
 * A failure here means no memory or a broken OpenSSL: the process aborts rather than go on unsure.
 */
#include "crypto/crypto.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

static EVP_MD *sha256;
static EVP_MAC *hmac;
static pthread_once_t fetched = PTHREAD_ONCE_INIT;

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void fetch(void)
{
	sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	must(sha256 && hmac);
}

void crypto_sha256(const void *bytes, size_t n, uint8_t *out)
{
	unsigned len = 0;
	pthread_once(&fetched, fetch);
	must(EVP_Digest(bytes, n, out, &len, sha256, NULL) == 1 && len == SHA256_BYTES);
}

struct piece {
	const void *p;
	size_t n;
};

static void hmac_pieces(const void *key, size_t key_n, const struct piece *piece, size_t pieces,
			uint8_t *out)
{
	char digest[] = "SHA256";
	OSSL_PARAM params[] = {
	    OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
	    OSSL_PARAM_construct_end(),
	};
	size_t len = 0;
	pthread_once(&fetched, fetch);
	EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(hmac);
	must(ctx);
	/* an empty key must still be a key: NULL would mean "the one before" */
	must(EVP_MAC_init(ctx, key_n ? key : "", key_n, params) == 1);
	for (size_t i = 0; i < pieces; i++)
		must(EVP_MAC_update(ctx, piece[i].p, piece[i].n) == 1);
	must(EVP_MAC_final(ctx, out, &len, SHA256_BYTES) == 1 && len == SHA256_BYTES);
	EVP_MAC_CTX_free(ctx);
}

void crypto_hmac_sha256(const void *key, size_t key_n, const void *bytes, size_t n, uint8_t *out)
{
	hmac_pieces(key, key_n, &(const struct piece){bytes, n}, 1, out);
}

void crypto_hex(const uint8_t *bytes, size_t n, char *out)
{
	static const char digit[] = "0123456789abcdef";
	for (size_t i = 0; i < n; i++) {
		*out++ = digit[bytes[i] >> 4];
		*out++ = digit[bytes[i] & 15];
	}
	*out = '\0';
}

static int hex_value(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
				      : -1;
}

int crypto_unhex(const char *hex, size_t n, uint8_t *out)
{
	if (n % 2)
		return -EINVAL;
	for (size_t i = 0; i < n; i += 2) {
		int high = hex_value(hex[i]), low = hex_value(hex[i + 1]);
		if (high < 0 || low < 0)
			return -EINVAL;
		out[i / 2] = (uint8_t)(high << 4 | low);
	}
	return 0;
}

void crypto_base64(const uint8_t *bytes, size_t n, char *out)
{
	static const char digit[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	for (size_t i = 0; i < n; i += 3) {
		uint32_t v = (uint32_t)bytes[i] << 16;
		if (i + 1 < n)
			v |= (uint32_t)bytes[i + 1] << 8;
		if (i + 2 < n)
			v |= bytes[i + 2];
		*out++ = digit[v >> 18];
		*out++ = digit[v >> 12 & 63];
		*out++ = i + 1 < n ? digit[v >> 6 & 63] : '=';
		*out++ = i + 2 < n ? digit[v & 63] : '=';
	}
	*out = '\0';
}

static int base64_value(char c)
{
	return c >= 'A' && c <= 'Z'   ? c - 'A'
	       : c >= 'a' && c <= 'z' ? c - 'a' + 26
	       : c >= '0' && c <= '9' ? c - '0' + 52
	       : c == '+'	      ? 62
	       : c == '/'	      ? 63
				      : -1;
}

int crypto_unbase64(const char *s, size_t n, uint8_t *out, size_t cap, size_t *ret_n)
{
	if (n % 4)
		return -EINVAL;
	size_t pad = n && s[n - 1] == '=' ? (s[n - 2] == '=' ? 2 : 1) : 0;
	size_t bytes = n / 4 * 3 - pad, put = 0;
	if (bytes > cap)
		return -ENOBUFS;
	for (size_t i = 0; i < n; i += 4) {
		size_t digits = i + 4 == n ? 4 - pad : 4;
		uint32_t v = 0;
		for (size_t k = 0; k < 4; k++) {
			int d = k < digits ? base64_value(s[i + k]) : 0;
			if (d < 0)
				return -EINVAL;
			v = v << 6 | (uint32_t)d;
		}
		/* bits below the last byte must be zero, or two texts would mean the same bytes */
		if ((digits == 3 && (v >> 6 & 3)) || (digits == 2 && (v >> 12 & 15)))
			return -EINVAL;
		for (size_t k = 0; k + 1 < digits; k++)
			out[put++] = (uint8_t)(v >> (16 - 8 * k));
	}
	*ret_n = put;
	return 0;
}

bool crypto_equal(const void *a, const void *b, size_t n)
{
	return CRYPTO_memcmp(a, b, n) == 0;
}

bool crypto_equal_str(const char *a, size_t a_n, const char *b, size_t b_n)
{
	uint8_t a_hash[SHA256_BYTES], b_hash[SHA256_BYTES];
	crypto_sha256(a, a_n, a_hash);
	crypto_sha256(b, b_n, b_hash);
	return crypto_equal(a_hash, b_hash, SHA256_BYTES) && a_n == b_n;
}

void crypto_wipe(void *p, size_t n)
{
	OPENSSL_cleanse(p, n);
}

void crypto_handshake_mac(const char *secret, const char *path, const char *timestamp,
			  const char *nonce, const char *agent_id, uint8_t *out)
{
	const struct piece piece[] = {
	    {"GET|", 4}, {path, strlen(path)},	 {"|", 1}, {timestamp, strlen(timestamp)},
	    {"|", 1},	 {nonce, strlen(nonce)}, {"|", 1}, {agent_id, strlen(agent_id)},
	};
	hmac_pieces(secret, strlen(secret), piece, ARRAY_LEN(piece), out);
}
