#include "crypto/ca.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/ident.h"
#include "crypto/crypto.h"

#define INDEX_MAX (64U << 20)
#define PEM_MAX	  (1U << 20)
#define DNS_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"
#define DAY_S	  86400L

static void x509_freep(X509 **p)
{
	X509_free(*p);
}
static void pkey_freep(EVP_PKEY **p)
{
	EVP_PKEY_free(*p);
}
static void bio_freep(BIO **p)
{
	BIO_free(*p);
}
static void req_freep(X509_REQ **p)
{
	X509_REQ_free(*p);
}
static void crl_freep(X509_CRL **p)
{
	X509_CRL_free(*p);
}

struct ca {
	int lock;
	const char *dir;
	X509 *cert;
	EVP_PKEY *key;
};

static void path_in(const char *dir, const char *name, char *out, size_t cap)
{
	snprintf(out, cap, "%s/%s", dir, name);
}

static int lock_dir(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX) < 0) {
		int r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

/* PEM objects into a buffer; `write` is one of OpenSSL's PEM_write_bio functions, bound. */
static int bio_take(BIO *bio, struct buf *out)
{
	char *bytes = NULL;
	long n = BIO_get_mem_data(bio, &bytes);
	return n > 0 ? buf_append(out, bytes, (size_t)n) : -ENOMEM;
}

static int cert_pem(X509 *cert, struct buf *out)
{
	CLEANUP(bio_freep) BIO *bio = BIO_new(BIO_s_mem());
	if (!bio || PEM_write_bio_X509(bio, cert) != 1)
		return -ENOMEM;
	return bio_take(bio, out);
}

static int key_pem(EVP_PKEY *key, struct buf *out)
{
	CLEANUP(bio_freep) BIO *bio = BIO_new(BIO_s_secmem());
	if (!bio || PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) != 1)
		return -ENOMEM;
	return bio_take(bio, out);
}

static int write_pem(const char *dir, const char *name, const struct buf *pem, unsigned mode)
{
	char path[4096];
	path_in(dir, name, path, sizeof path);
	return file_write_atomic(path, pem->data, pem->len, mode);
}

static int random_serial(ASN1_INTEGER *to)
{
	unsigned char bytes[16];
	if (RAND_bytes(bytes, sizeof bytes) != 1)
		return -EIO;
	bytes[0] &= 0x7f; /* positive */
	bytes[0] |= 0x40; /* and of full length */
	BIGNUM *n = BN_bin2bn(bytes, sizeof bytes, NULL);
	int r = n && BN_to_ASN1_INTEGER(n, to) ? 0 : -ENOMEM;
	BN_free(n);
	return r;
}

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	int r = e && X509_add_ext(cert, e, -1) == 1 ? 0 : -EINVAL;
	X509_EXTENSION_free(e);
	return r;
}

struct extension {
	int nid;
	const char *value;
};

/* A certificate over `key`, signed; issuer NULL: by itself. */
static int make_cert(const char *cn, EVP_PKEY *key, X509 *issuer, EVP_PKEY *issuer_key, int days,
		     const struct extension *ext, size_t n_ext, X509 **ret)
{
	CLEANUP(x509_freep) X509 *cert = X509_new();
	if (!cert || X509_set_version(cert, X509_VERSION_3) != 1)
		return -ENOMEM;
	int r = random_serial(X509_get_serialNumber(cert));
	if (r < 0)
		return r;
	X509_NAME *subject = X509_get_subject_name(cert);
	if (X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1,
				       -1, 0) != 1 ||
	    X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : subject) != 1 ||
	    X509_set_pubkey(cert, key) != 1 || !X509_gmtime_adj(X509_getm_notBefore(cert), -300) ||
	    !X509_gmtime_adj(X509_getm_notAfter(cert), days * DAY_S))
		return -ENOMEM;
	for (size_t i = 0; i < n_ext; i++) {
		r = add_extension(cert, issuer ? issuer : cert, ext[i].nid, ext[i].value);
		if (r < 0)
			return r;
	}
	if (X509_sign(cert, issuer_key, EVP_sha256()) <= 0)
		return -EINVAL;
	*ret = TAKE(cert);
	return 0;
}

/* Signs an empty or full CRL and writes crl.pem. revoked: index text. */
static int write_crl(const struct ca *ca, const struct buf *index, int days);

int ca_init(const char *dir, const char *name, int days, int crl_days)
{
	static const struct extension ext[] = {
	    {NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
	    {NID_key_usage, "critical,keyCertSign,cRLSign"},
	    {NID_subject_key_identifier, "hash"},
	};
	char path[4096];
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	CLEANUP(closep) int lock = lock_dir(dir);
	if (lock < 0)
		return lock;
	path_in(dir, "ca.key", path, sizeof path);
	if (access(path, F_OK) == 0)
		return -EEXIST;
	CLEANUP(pkey_freep) EVP_PKEY *key = EVP_EC_gen("P-256");
	CLEANUP(x509_freep) X509 *cert = NULL;
	if (!key)
		return -ENOMEM;
	int r = make_cert(name, key, NULL, key, days, ext, ARRAY_LEN(ext), &cert);
	struct buf pem, none;
	buf_init(&pem, PEM_MAX);
	buf_init(&none, 1);
	if (r == 0)
		r = cert_pem(cert, &pem);
	if (r == 0)
		r = write_pem(dir, "ca.crt", &pem, 0644);
	const struct ca ca = {.lock = lock, .dir = dir, .cert = cert, .key = key};
	if (r == 0)
		r = write_crl(&ca, &none, crl_days);
	buf_clear(&pem);
	if (r == 0)
		r = key_pem(key, &pem);
	if (r == 0) /* last: its presence says the CA is whole */
		r = write_pem(dir, "ca.key", &pem, 0600);
	buf_wipe(&pem);
	buf_fini(&pem);
	buf_fini(&none);
	return r;
}

static int read_pem(const char *dir, const char *name, BIO **ret)
{
	char path[4096];
	path_in(dir, name, path, sizeof path);
	*ret = BIO_new_file(path, "r");
	return *ret ? 0 : -ENOENT;
}

static void ca_close(struct ca *ca)
{
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key);
	if (ca->lock >= 0)
		close(ca->lock);
}

static int ca_open(const char *dir, struct ca *ca)
{
	*ca = (struct ca){.dir = dir, .lock = lock_dir(dir)};
	if (ca->lock < 0)
		return ca->lock;
	CLEANUP(bio_freep) BIO *cert = NULL;
	CLEANUP(bio_freep) BIO *key = NULL;
	int r = read_pem(dir, "ca.crt", &cert);
	if (r == 0)
		r = read_pem(dir, "ca.key", &key);
	if (r == 0) {
		ca->cert = PEM_read_bio_X509(cert, NULL, NULL, NULL);
		ca->key = PEM_read_bio_PrivateKey(key, NULL, NULL, NULL);
		if (!ca->cert || !ca->key || X509_check_private_key(ca->cert, ca->key) != 1)
			r = -EINVAL;
	}
	if (r < 0)
		ca_close(ca);
	return r;
}

/* index: "serial fingerprint agent_id not_after_ms revoked_ms(0: no)\n" */
static int read_index(const struct ca *ca, struct buf *out)
{
	char path[4096];
	path_in(ca->dir, "index", path, sizeof path);
	int r = file_read(path, out);
	return r == -ENOENT ? 0 : r;
}

static int add_to_index(const struct ca *ca, const char *agent_id, const struct ca_issued *i)
{
	struct buf index;
	buf_init(&index, INDEX_MAX);
	int r = read_index(ca, &index);
	if (r == 0)
		r = buf_appendf(&index, "%s %s %s %lld 0\n", i->serial, i->fingerprint, agent_id,
				(long long)i->not_after_ms);
	if (r == 0)
		r = write_pem(ca->dir, "index", &index, 0600);
	buf_fini(&index);
	return r;
}

static int describe(X509 *cert, struct ca_issued *i)
{
	unsigned char md[SHA256_BYTES];
	unsigned n = 0;
	struct tm tm;
	BIGNUM *serial = ASN1_INTEGER_to_BN(X509_get_serialNumber(cert), NULL);
	char *hex = serial ? BN_bn2hex(serial) : NULL;
	int r = hex && X509_digest(cert, EVP_sha256(), md, &n) == 1 &&
			ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) == 1
		    ? 0
		    : -ENOMEM;
	if (r == 0) {
		snprintf(i->serial, sizeof i->serial, "%s", hex);
		crypto_hex(md, sizeof md, i->fingerprint);
		i->not_after_ms = (int64_t)timegm(&tm) * 1000;
	}
	OPENSSL_free(hex);
	BN_free(serial);
	return r;
}

/* The key to certify: the CSR's, or a new one (then its PEM is in i). */
static int subject_key(const char *csr_pem, struct ca_issued *i, EVP_PKEY **ret)
{
	if (!csr_pem) {
		CLEANUP(pkey_freep) EVP_PKEY *key = EVP_EC_gen("P-256");
		int r = key ? key_pem(key, &i->key_pem) : -ENOMEM;
		if (r == 0)
			*ret = TAKE(key);
		return r;
	}
	CLEANUP(bio_freep) BIO *bio = BIO_new_mem_buf(csr_pem, -1);
	CLEANUP(req_freep)
	X509_REQ *req = bio ? PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL) : NULL;
	CLEANUP(pkey_freep) EVP_PKEY *key = req ? X509_REQ_get_pubkey(req) : NULL;
	if (!key || X509_REQ_verify(req, key) != 1)
		return -EINVAL;
	*ret = TAKE(key);
	return 0;
}

/* `in_index` is the certificate's name there, san its subject alternative names. */
static int issue(const char *dir, const char *cn, const char *in_index, const char *usage,
		 const char *san, const char *csr_pem, int days, struct ca_issued *ret)
{
	struct ca ca;
	int r = ca_open(dir, &ca);
	if (r < 0)
		return r;
	const struct extension ext[] = {
	    {NID_basic_constraints, "critical,CA:FALSE"},
	    {NID_key_usage, "critical,digitalSignature"},
	    {NID_ext_key_usage, usage},
	    {NID_subject_alt_name, san},
	    {NID_subject_key_identifier, "hash"},
	    {NID_authority_key_identifier, "keyid:always"},
	};
	struct ca_issued i = {0};
	buf_init(&i.cert_pem, PEM_MAX);
	buf_init(&i.key_pem, PEM_MAX);
	CLEANUP(pkey_freep) EVP_PKEY *key = NULL;
	CLEANUP(x509_freep) X509 *cert = NULL;
	r = subject_key(csr_pem, &i, &key);
	if (r == 0)
		r = make_cert(cn, key, ca.cert, ca.key, days, ext, ARRAY_LEN(ext), &cert);
	if (r == 0)
		r = cert_pem(cert, &i.cert_pem);
	if (r == 0)
		r = describe(cert, &i);
	if (r == 0)
		r = add_to_index(&ca, in_index, &i);
	ca_close(&ca);
	if (r < 0) {
		ca_issued_fini(&i);
		return r;
	}
	*ret = i;
	return 0;
}

int ca_issue(const char *dir, const char *agent_id, const char *csr_pem, int days,
	     struct ca_issued *ret)
{
	char san[AGENT_ID_MAX + 32];
	if (!ident_is_agent_id(agent_id, strlen(agent_id)))
		return -EINVAL;
	snprintf(san, sizeof san, "URI:urn:viworks:agent:%s", agent_id);
	return issue(dir, agent_id, agent_id, "clientAuth", san, csr_pem, days, ret);
}

int ca_issue_server(const char *dir, const char *name, const char *csr_pem, int days,
		    struct ca_issued *ret)
{
	char san[CA_SERVER_NAME_MAX + 8], in_index[AGENT_ID_MAX + 1];
	unsigned char addr[sizeof(struct in6_addr)];
	size_t n = strlen(name);
	bool dns = inet_pton(AF_INET, name, addr) != 1 && inet_pton(AF_INET6, name, addr) != 1;
	if (n == 0 || n > CA_SERVER_NAME_MAX ||
	    (dns && (name[0] == '-' || name[strspn(name, DNS_CHARS)])))
		return -EDOM;
	snprintf(san, sizeof san, "%s:%s", dns ? "DNS" : "IP", name);
	snprintf(in_index, sizeof in_index, "server:%s", name); /* ':' is in no agent's id */
	return issue(dir, name, in_index, "serverAuth", san, csr_pem, days, ret);
}

void ca_issued_fini(struct ca_issued *i)
{
	buf_wipe(&i->key_pem);
	buf_fini(&i->key_pem);
	buf_fini(&i->cert_pem);
}

static int no_passphrase(char *buf UNUSED, int cap UNUSED, int writing UNUSED, void *arg UNUSED)
{
	return -1;
}

bool ca_is_another_key(const struct ca_issued *i, const char *key_path)
{
	CLEANUP(bio_freep) BIO *cert_bio = BIO_new_mem_buf(i->cert_pem.data, (int)i->cert_pem.len);
	CLEANUP(bio_freep) BIO *key_bio = BIO_new_file(key_path, "r");
	X509 *cert = cert_bio ? PEM_read_bio_X509(cert_bio, NULL, NULL, NULL) : NULL;
	EVP_PKEY *key =
	    key_bio ? PEM_read_bio_PrivateKey(key_bio, NULL, no_passphrase, NULL) : NULL;
	bool another = cert && key && X509_check_private_key(cert, key) != 1;

	X509_free(cert);
	EVP_PKEY_free(key);
	ERR_clear_error();
	return another;
}

struct index_line {
	char serial[41], fingerprint[65], agent_id[AGENT_ID_MAX + 1];
	long long not_after_ms, revoked_ms;
};

/* Reads the line at *at and moves on; 0 at the end, -EINVAL for a line that is none. */
static int next_line(const char **at, struct index_line *ret)
{
	const char *end = strchr(*at, '\n');
	if (!end)
		return **at ? -EINVAL : 0;
	if (sscanf(*at, "%40s %64s %64s %lld %lld\n", ret->serial, ret->fingerprint, ret->agent_id,
		   &ret->not_after_ms, &ret->revoked_ms) != 5)
		return -EINVAL;
	*at = end + 1;
	return 1;
}

static int add_revoked(X509_CRL *crl, const struct index_line *line)
{
	X509_REVOKED *rev = X509_REVOKED_new();
	ASN1_TIME *at = ASN1_TIME_set(NULL, (time_t)(line->revoked_ms / 1000));
	BIGNUM *n = NULL;
	ASN1_INTEGER *serial = BN_hex2bn(&n, line->serial) ? BN_to_ASN1_INTEGER(n, NULL) : NULL;
	int r = rev && at && serial && X509_REVOKED_set_serialNumber(rev, serial) == 1 &&
			X509_REVOKED_set_revocationDate(rev, at) == 1 &&
			X509_CRL_add0_revoked(crl, rev) == 1
		    ? 0
		    : -ENOMEM;
	if (r < 0)
		X509_REVOKED_free(rev);
	ASN1_TIME_free(at);
	ASN1_INTEGER_free(serial);
	BN_free(n);
	return r;
}

/* A CRL number that rises: the time in milliseconds. */
static int set_crl_number(X509_CRL *crl)
{
	ASN1_INTEGER *n = ASN1_INTEGER_new();
	int r = n && ASN1_INTEGER_set_int64(n, clock_wall_ms()) == 1 &&
			X509_CRL_add1_ext_i2d(crl, NID_crl_number, n, 0, 0) == 1
		    ? 0
		    : -ENOMEM;
	ASN1_INTEGER_free(n);
	return r;
}

static int write_crl(const struct ca *ca, const struct buf *index, int days)
{
	CLEANUP(crl_freep) X509_CRL *crl = X509_CRL_new();
	ASN1_TIME *now = ASN1_TIME_set(NULL, (time_t)(clock_wall_ms() / 1000));
	ASN1_TIME *next = X509_gmtime_adj(NULL, days * DAY_S);
	int r = crl && now && next && X509_CRL_set_version(crl, X509_CRL_VERSION_2) == 1 &&
			X509_CRL_set_issuer_name(crl, X509_get_subject_name(ca->cert)) == 1 &&
			X509_CRL_set1_lastUpdate(crl, now) == 1 &&
			X509_CRL_set1_nextUpdate(crl, next) == 1
		    ? set_crl_number(crl)
		    : -ENOMEM;
	ASN1_TIME_free(now);
	ASN1_TIME_free(next);
	struct index_line line;
	const char *at = index->len > 0 ? index->data : "";
	for (int more; r == 0 && (more = next_line(&at, &line)) != 0;)
		r = more < 0 ? more : line.revoked_ms > 0 ? add_revoked(crl, &line) : 0;
	if (r < 0)
		return r;
	CLEANUP(bio_freep) BIO *bio = BIO_new(BIO_s_mem());
	if (!bio || X509_CRL_sort(crl) != 1 || X509_CRL_sign(crl, ca->key, EVP_sha256()) <= 0 ||
	    PEM_write_bio_X509_CRL(bio, crl) != 1)
		return -ENOMEM;
	struct buf pem;
	buf_init(&pem, INDEX_MAX);
	r = bio_take(bio, &pem);
	if (r == 0)
		r = write_pem(ca->dir, "crl.pem", &pem, 0644);
	buf_fini(&pem);
	return r;
}

int ca_revoke(const char *dir, const char *agent_id, int crl_days,
	      void (*each)(void *arg, const char *fingerprint_hex), void *arg, size_t *ret_n)
{
	struct ca ca;
	struct buf was, now;
	struct index_line line;
	size_t n = 0;
	int r = ca_open(dir, &ca);
	if (r < 0)
		return r;
	buf_init(&was, INDEX_MAX);
	buf_init(&now, INDEX_MAX);
	r = read_index(&ca, &was);
	const char *at = was.len > 0 ? was.data : "";
	for (int more; r == 0 && (more = next_line(&at, &line)) != 0;) {
		bool its = more > 0 && strcmp(line.agent_id, agent_id) == 0;
		bool tell = its && (line.revoked_ms == 0 || line.not_after_ms > clock_wall_ms());
		if (its && line.revoked_ms == 0) {
			line.revoked_ms = clock_wall_ms();
			n++;
		}
		r = more < 0
			? more
			: buf_appendf(&now, "%s %s %s %lld %lld\n", line.serial, line.fingerprint,
				      line.agent_id, line.not_after_ms, line.revoked_ms);
		if (r == 0 && tell)
			each(arg, line.fingerprint);
	}
	if (r == 0)
		r = write_pem(dir, "index", &now, 0600);
	if (r == 0)
		r = write_crl(&ca, &now, crl_days);
	buf_fini(&was);
	buf_fini(&now);
	ca_close(&ca);
	if (r == 0)
		*ret_n = n;
	return r;
}

int ca_renew_crl(const char *dir, int crl_days)
{
	struct ca ca;
	struct buf index;
	int r = ca_open(dir, &ca);
	if (r < 0)
		return r;
	buf_init(&index, INDEX_MAX);
	r = read_index(&ca, &index);
	if (r == 0)
		r = write_crl(&ca, &index, crl_days);
	buf_fini(&index);
	ca_close(&ca);
	return r;
}
