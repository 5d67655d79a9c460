/* See crl.h. What was found stands in the CRL itself (its method data, which OpenSSL's own method
 * does not use): the certificate of the store, held by it as long as the CRL, that signed it. */
#include "crypto/crl.h"

#include <openssl/err.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <openssl/x509_vfy.h>

static X509_STORE_CTX_check_crl_fn openssl_check_crl;

static int check_crl(X509_STORE_CTX *ctx, X509_CRL *crl)
{
	const ASN1_TIME *until = X509_CRL_get0_nextUpdate(crl);
	const X509 *signer = X509_CRL_get_meth_data(crl);

	if (signer && signer == X509_STORE_CTX_get0_current_issuer(ctx) &&
	    X509_cmp_current_time(X509_CRL_get0_lastUpdate(crl)) < 0 &&
	    X509_cmp_current_time(until) > 0)
		return 1;
	return openssl_check_crl(ctx, crl);
}

static X509 *signer_of(X509_CRL *crl, STACK_OF(X509) * certs)
{
	EVP_PKEY *key;
	X509 *x;

	if (X509_CRL_get_ext_by_NID(crl, NID_issuing_distribution_point, -1) >= 0 ||
	    X509_CRL_get_ext_by_NID(crl, NID_delta_crl, -1) >= 0 || !X509_CRL_get0_nextUpdate(crl))
		return NULL;
	for (int i = 0; i < sk_X509_num(certs); i++) {
		x = sk_X509_value(certs, i);
		key = X509_get0_pubkey(x);
		if (key && X509_NAME_cmp(X509_get_subject_name(x), X509_CRL_get_issuer(crl)) == 0 &&
		    X509_get_key_usage(x) & KU_CRL_SIGN && X509_CRL_verify(crl, key) == 1)
			return x;
	}
	return NULL;
}

/* OpenSSL's own, which it gives to a context whose store has none. */
static X509_STORE_CTX_check_crl_fn find_check_crl(void)
{
	X509_STORE_CTX_check_crl_fn found = NULL;
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();

	if (ctx && X509_STORE_CTX_init(ctx, NULL, NULL, NULL) == 1)
		found = X509_STORE_CTX_get_check_crl(ctx);
	X509_STORE_CTX_free(ctx);
	return found;
}

void crl_check_once(struct x509_store_st *store)
{
	STACK_OF(X509) *certs = X509_STORE_get1_all_certs(store);
	STACK_OF(X509_OBJECT) *all = X509_STORE_get0_objects(store);
	X509_CRL *crl;

	openssl_check_crl = find_check_crl();
	for (int i = 0; openssl_check_crl && certs && i < sk_X509_OBJECT_num(all); i++) {
		crl = X509_OBJECT_get0_X509_CRL(sk_X509_OBJECT_value(all, i));
		if (crl)
			X509_CRL_set_meth_data(crl, signer_of(crl, certs));
	}
	if (openssl_check_crl)
		X509_STORE_set_check_crl(store, check_crl);
	sk_X509_pop_free(certs, X509_free); /* the store holds them on */
	ERR_clear_error();
}
