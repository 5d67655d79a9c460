/* Certificates: names of an agent, fingerprints, SPKI pins. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct x509_st;	      /* OpenSSL's X509 */
struct x509_store_st; /* X509_STORE */
struct stack_st_X509; /* STACK_OF(X509) */

struct cert_info {
	uint8_t fingerprint[32]; /* SHA-256 over the DER */
	uint8_t spki_pin[32];	 /* SHA-256 over SubjectPublicKeyInfo (RFC 7469, 2.4) */
	char subject[512];	 /* RFC 2253, cut when longer */
	char cn[256];		 /* empty: none, or not plain */
	int64_t not_before_ms, not_after_ms;
};
/* -EINVAL when it is not a certificate. */
int cert_info_from_x509(struct x509_st *cert, struct cert_info *ret) MUST_CHECK;
/* SAN URI urn:viworks:agent:<id>; else, when there is no such URI at all, SAN DNS; else, when
 * there is no SAN of either kind, CN. Exact match, NUL bytes inside a name never match. */
bool cert_names_agent(struct x509_st *cert, const char *agent_id);
/* PEM (first certificate) into a new X509; caller frees with cert_free. */
int cert_from_pem(const char *pem, size_t n, struct x509_st **ret) MUST_CHECK;
void cert_free(struct x509_st *cert);
/* The issuers of cert that are in store, its own first, without the root: what to send behind a
 * certificate whose file names none. Once, when it is loaded: OpenSSL by itself looks for them, and
 * checks signatures, in every handshake. May be empty; freed by sk_X509_pop_free. -ENOMEM. */
int cert_issuers(struct x509_st *cert, struct x509_store_st *store,
		 struct stack_st_X509 **ret) MUST_CHECK;

/* nextUpdate of the first CRL of a PEM file: past it, nobody is accepted. -EINVAL: no CRL. */
int crl_next_update_ms(const char *pem, size_t n, int64_t *ret) MUST_CHECK;

/* How a certificate names its issuer, and an issuer itself, short enough to be told: hash of the
 * name (8 hex digits, as `openssl x509 -subject_hash`), colon, the first 16 hex digits of the key
 * identifier (none when the certificate gives none). */
#define CERT_LINK_LEN 25
void cert_subject_link(struct x509_st *cert, char out[CERT_LINK_LEN + 1]);
void cert_issuer_link(struct x509_st *cert, char out[CERT_LINK_LEN + 1]);
/* As OpenSSL looks for an issuer (RFC 5280, 6.1): the same name, and the same key identifier where
 * both give one. */
bool cert_link_fits(const char *issuer, const char *subject);
/* The first 16 hex digits of the SPKI pin. */
#define CERT_PIN_LEN 16
void cert_pin_short(const uint8_t spki_pin[32], char out[CERT_PIN_LEN + 1]);
