/* The certificates of one PEM file, in its order: a bundle of CAs, or a chain that begins with a
 * leaf. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"
#include "crypto/x509.h"

struct bundle_cert {
	struct cert_info info;
	char subject[CERT_LINK_LEN + 1], issuer[CERT_LINK_LEN + 1];
	bool is_ca;
	bool anchored; /* a CA that verifies up to a self-signed one of the same file */
};
struct bundle {
	size_t n;
	struct bundle_cert cert[];
};
/* -EINVAL: no certificate in it, or one that cannot be read. Freed with free(). */
int bundle_load(const char *pem, size_t n, struct bundle **ret) MUST_CHECK;
