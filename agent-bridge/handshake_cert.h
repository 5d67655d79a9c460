/* Does a forwarded certificate, or what a proxy says of one, name the agent? Pure. */
#pragma once

#include <stdbool.h>

#include "base/macros.h"
#include "wire/json_scan.h"

struct handshake_identity {
	char fingerprint[65]; /* lower-case hex SHA-256 (64), or what the proxy gave (40) */
	char subject[512];
	bool names_agent;
};

/* PEM with %XX escapes, as nginx' $ssl_client_escaped_cert. -EINVAL. */
int identity_from_escaped_pem(struct span escaped, const char *agent_id,
			      struct handshake_identity *ret) MUST_CHECK;
/* The proxy's own reading: hex fingerprint, subject, and subjectAltName as
 * "URI:…, DNS:…". -EINVAL when the fingerprint is no SHA-256 or SHA-1, or the subject is not clear.
 */
int identity_from_text(struct span fingerprint, struct span dn, struct span san,
		       const char *agent_id, struct handshake_identity *ret) MUST_CHECK;
struct x509_st;
int identity_from_x509(struct x509_st *cert, const char *agent_id,
		       struct handshake_identity *ret) MUST_CHECK;
