/*
 * TLS material of the agent: client certificate and key, CA bundle, SPKI pins. Loaded whole and
 * checked before it replaces what is in use; a bad file never takes a working identity away.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"
#include "crypto/x509.h"
#include "wire/json_scan.h"

struct ssl_st;
struct ssl_ctx_st;
struct x509_store_ctx_st;

#define TRUST_MAX_PINS 16

struct trust_config {
	const char *cert_path, *key_path, *bundle_path, *pins_csv; /* each NULL: none */
};
struct trust;

/* 0; -EINVAL with why (names the setting, the fault and the remedy); -ENOMEM. */
int trust_load(const struct trust_config *cfg, struct trust **ret, char *why,
	       size_t cap) MUST_CHECK;
void trust_free(struct trust *t);
/* The same certificate, key, bundle and pins. */
bool trust_equal(const struct trust *a, const struct trust *b);

bool trust_has_cert(const struct trust *t);
const struct cert_info *trust_cert_info(const struct trust *t); /* NULL: no certificate */
int64_t trust_bundle_not_after_ms(const struct trust *t);	/* earliest; 0: no bundle */
/* What an operator must know before a CA or a key is changed, as a JSON object: by whom this
 * certificate was issued (one link a certificate of its file), which CAs are trusted (not listed
 * when more than 8: `trust_untold` counts them), which keys are pinned. Lives as long as t. */
struct span trust_told(const struct trust *t);

/* A client context: TLS 1.2 or newer, no session cache, no CA. Freed by SSL_CTX_free. */
struct ssl_ctx_st *trust_new_ctx(void);
/* The CAs a peer must chain to. */
int trust_apply_store(const struct trust *t, struct ssl_ctx_st *ctx) MUST_CHECK;
/* For the certificate callback: the identity goes onto this connection. 1 or 0 as OpenSSL wants. */
int trust_apply_identity(const struct trust *t, struct ssl_st *ssl);

/* What was seen of the peer while verifying; reset before a handshake. */
struct trust_peer {
	bool seen, pin_mismatch;
	char pin[48]; /* base64 of the leaf's SPKI hash */
	int64_t not_after_ms;
	char error[192]; /* "" : accepted so far */
};
/* The body of a verify callback, one call per depth: true to go on. Checks chain verdict, host
 * name or address, and at the leaf the pin. */
bool trust_verify(const struct trust *t, struct x509_store_ctx_st *ctx, bool chain_ok,
		  const char *host, bool host_is_ip, struct trust_peer *peer);
