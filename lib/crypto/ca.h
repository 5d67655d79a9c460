/*
 * A small client CA in a folder: ca.key (0600), ca.crt, index (one line a certificate), crl.pem.
 * Signs client certificates that name an agent (SAN URI urn:viworks:agent:<id>), and the servers'
 * they connect to; P-256 and SHA-256. One writer at a time: every change holds a lock on the
 * folder.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/macros.h"

/* Makes the CA; -EEXIST when there is one. `name` is its CN. The folder is made 0700. */
int ca_init(const char *dir, const char *name, int days, int crl_days) MUST_CHECK;
/* Signs crl.pem anew, with what is revoked already. */
int ca_renew_crl(const char *dir, int crl_days) MUST_CHECK;

struct ca_issued {
	struct buf cert_pem, key_pem; /* key empty when a CSR was given; wiped by ca_issued_fini */
	char serial[41];	      /* hex */
	char fingerprint[65];	      /* SHA-256 over the DER, hex */
	int64_t not_after_ms;
};
/* csr_pem NULL: makes a key too. A CSR's own names are ignored, its signature is checked.
 * -ENOENT no CA there, -EINVAL bad CSR or key, -errno. */
int ca_issue(const char *dir, const char *agent_id, const char *csr_pem, int days,
	     struct ca_issued *ret) MUST_CHECK;
/* The same for a server's certificate: a DNS name or an address. -EDOM when it is neither. */
#define CA_SERVER_NAME_MAX 57
int ca_issue_server(const char *dir, const char *name, const char *csr_pem, int days,
		    struct ca_issued *ret) MUST_CHECK;
void ca_issued_fini(struct ca_issued *i);
/* Does this file hold a private key that is not the certificate's? false where it cannot be told:
 * no such file, no PEM, a passphrase. */
bool ca_is_another_key(const struct ca_issued *i, const char *key_path);

/* Revokes every certificate of the agent that is still valid (*ret_n: how many) and writes crl.pem
 * anew, good for crl_days. each is called with their fingerprints, and with those revoked before
 * that have not expired: who was to be told then may not have been. */
int ca_revoke(const char *dir, const char *agent_id, int crl_days,
	      void (*each)(void *arg, const char *fingerprint_hex), void *arg,
	      size_t *ret_n) MUST_CHECK;
