/* Hashes, MACs, constant-time compare, randomness (OpenSSL 3). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

#define SHA256_BYTES   32
#define SHA256_HEX_LEN 64

/* out: SHA256_BYTES. */
void crypto_sha256(const void *bytes, size_t n, uint8_t *out);
void crypto_hmac_sha256(const void *key, size_t key_n, const void *bytes, size_t n, uint8_t *out);
/* out: 2 * n + 1 chars, lower case. */
void crypto_hex(const uint8_t *bytes, size_t n, char *out);
/* Either case; n hex digits into n / 2 bytes; -EINVAL. */
int crypto_unhex(const char *hex, size_t n, uint8_t *out) MUST_CHECK;
/* Standard base64 with padding; out holds 4 * ((n + 2) / 3) + 1. */
void crypto_base64(const uint8_t *bytes, size_t n, char *out);
/* Strict; *ret_n bytes written, at most cap; -EINVAL, -ENOBUFS. */
int crypto_unbase64(const char *s, size_t n, uint8_t *out, size_t cap, size_t *ret_n) MUST_CHECK;
bool crypto_equal(const void *a, const void *b, size_t n); /* constant time */
/* Compares secrets of possibly different lengths without telling where they differ. */
bool crypto_equal_str(const char *a, size_t a_n, const char *b, size_t b_n);
void crypto_wipe(void *p, size_t n);

/* The handshake's X-Agent-Auth: HMAC over "GET|path|timestamp|nonce|agent_id"; out SHA256_BYTES. */
void crypto_handshake_mac(const char *secret, const char *path, const char *timestamp,
			  const char *nonce, const char *agent_id, uint8_t *out);
