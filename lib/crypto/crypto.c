/*
 * See crypto.h. Algorithms are fetched once (EVP_MD_fetch costs more than hashing a handshake).
 * A failure here means no memory or a broken OpenSSL: the process aborts rather than go on unsure.
 */
#include "crypto/crypto.h"

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

void crypto_handshake_mac(const char *secret, const char *path, const char *timestamp,
			  const char *nonce, const char *agent_id, uint8_t *out)
{
	const struct piece piece[] = {
	    {"GET|", 4}, {path, strlen(path)},	 {"|", 1}, {timestamp, strlen(timestamp)},
	    {"|", 1},	 {nonce, strlen(nonce)}, {"|", 1}, {agent_id, strlen(agent_id)},
	};
	hmac_pieces(secret, strlen(secret), piece, ARRAY_LEN(piece), out);
}
