/* Certificates: names of an agent, fingerprints, SPKI pins. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct x509_st; /* OpenSSL's X509 */

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
