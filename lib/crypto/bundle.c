/* See bundle.h. */
#include "crypto/bundle.h"

#include <errno.h>
#include <stdlib.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

static int read_all(const char *pem, size_t n, STACK_OF(X509) * to)
{
	BIO *bio = n <= INT32_MAX ? BIO_new_mem_buf(pem, (int)n) : NULL;
	X509 *x;
	int r = bio ? 0 : -ENOMEM;
	while (r == 0 && (x = PEM_read_bio_X509(bio, NULL, NULL, NULL))) {
		if (sk_X509_push(to, x) <= 0) {
			X509_free(x);
			r = -ENOMEM;
		}
	}
	/* "no start line" is the end of the file; anything else is a broken certificate */
	if (r == 0 &&
	    (sk_X509_num(to) == 0 || ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE))
		r = -EINVAL;
	ERR_clear_error();
	BIO_free(bio);
	return r;
}

static bool verifies(X509 *cert, STACK_OF(X509) * all)
{
	X509_STORE *store = X509_STORE_new();
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	bool ok = store && ctx;
	for (int i = 0; ok && i < sk_X509_num(all); i++)
		ok = X509_STORE_add_cert(store, sk_X509_value(all, i)) == 1;
	ok = ok && X509_STORE_CTX_init(ctx, store, cert, NULL) == 1 && X509_verify_cert(ctx) == 1;
	ERR_clear_error();
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(store);
	return ok;
}

static int describe(X509 *cert, STACK_OF(X509) * all, struct bundle_cert *ret)
{
	int r = cert_info_from_x509(cert, &ret->info);
	cert_subject_link(cert, ret->subject);
	cert_issuer_link(cert, ret->issuer);
	ret->is_ca = X509_check_ca(cert) > 0;
	ret->anchored = ret->is_ca && verifies(cert, all);
	return r;
}

int bundle_load(const char *pem, size_t n, struct bundle **ret)
{
	STACK_OF(X509) *all = sk_X509_new_null();
	int r = all ? read_all(pem, n, all) : -ENOMEM;
	size_t count = r == 0 ? (size_t)sk_X509_num(all) : 0;
	struct bundle *b = r == 0 ? calloc(1, sizeof *b + count * sizeof b->cert[0]) : NULL;
	if (r == 0 && !b)
		r = -ENOMEM;
	for (size_t i = 0; b && r == 0 && i < count; i++)
		r = describe(sk_X509_value(all, (int)i), all, &b->cert[i]);
	sk_X509_pop_free(all, X509_free);
	if (r < 0 || !b) {
		free(b);
		return r;
	}
	b->n = count;
	*ret = b;
	return 0;
}
