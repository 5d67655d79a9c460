/* Revocation lists of a store, their signatures checked once. */
#pragma once

struct x509_store_st; /* OpenSSL's X509_STORE */

/* To be called once, when the store holds all its CAs and CRLs. OpenSSL checks the signature of a
 * CRL for each certificate that it looks up in it: as much as a handshake's own key exchange, and
 * with 20,000 entries as much as a whole handshake, for it hashes them all. After this a CRL is
 * signed by the CA that signed it here, and still has its dates compared each time. CRLs whose
 * signer is not found, of which only a part would be asked (issuing distribution point, delta), or
 * whose CA may not sign CRLs are left to OpenSSL, which says what is wrong with them. */
void crl_check_once(struct x509_store_st *store);
