/* Certificates come from the openssl program, so that names are encoded by other hands. */
#include "unit.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "crypto/crypto.h"
#include "crypto/x509.h"

extern char **environ;

static char dir[] = "/tmp/viw-x509-XXXXXX";
static char key_path[64], cert_path[64], config_path[64], out_path[64];

static void run(char *const argv[])
{
	posix_spawn_file_actions_t actions;
	pid_t pid;
	int status;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
	assert_ok(posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ));
	posix_spawn_file_actions_destroy(&actions);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

#define RUN(...) run((char *const[]){__VA_ARGS__, NULL})

static int setup(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(key_path, sizeof key_path, "%s/key", dir);
	snprintf(cert_path, sizeof cert_path, "%s/cert", dir);
	snprintf(config_path, sizeof config_path, "%s/config", dir);
	snprintf(out_path, sizeof out_path, "%s/out", dir);
	RUN("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key_path);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(key_path);
	unlink(cert_path);
	unlink(config_path);
	unlink(out_path);
	return rmdir(dir);
}

static struct x509_st *read_cert(void)
{
	struct x509_st *cert;
	struct buf pem;
	buf_init(&pem, 65536);
	assert_ok(file_read(cert_path, &pem));
	assert_ok(cert_from_pem(pem.data, pem.len, &cert));
	buf_fini(&pem);
	return cert;
}

/* san: the value of subjectAltName, NULL: none. dn: lines of the distinguished name section. */
static struct x509_st *make(const char *dn, const char *san)
{
	char config[1024];
	int n = snprintf(config, sizeof config,
			 "[req]\nprompt=no\nutf8=yes\ndistinguished_name=dn\nx509_extensions=ext\n"
			 "[dn]\n%s\n[ext]\nbasicConstraints=CA:FALSE\n%s%s\n",
			 dn, san ? "subjectAltName=" : "", san ? san : "");
	assert_ok(file_write_atomic(config_path, config, (size_t)n, 0600));
	RUN("openssl", "req", "-new", "-x509", "-key", key_path, "-days", "2", "-config",
	    config_path, "-out", cert_path);
	return read_cert();
}

static bool names(const char *dn, const char *san, const char *agent_id)
{
	struct x509_st *cert = make(dn, san);
	bool yes = cert_names_agent(cert, agent_id);
	cert_free(cert);
	return yes;
}

static void test_urn_wins(void **state)
{
	(void)state;
	assert_true(names("CN=x", "URI:urn:viworks:agent:gw-1", "gw-1"));
	assert_true(names("CN=x", "URI:urn:viworks:agent:gw-2,URI:urn:viworks:agent:gw-1", "gw-1"));
	assert_false(names("CN=gw-1", "URI:urn:viworks:agent:gw-2,DNS:gw-1", "gw-1"));
	assert_false(names("CN=gw-1", "URI:urn:viworks:agent:gw-12", "gw-1"));
	assert_false(names("CN=gw-1", "URI:urn:viworks:agent:gw-", "gw-1"));
	assert_false(names("CN=gw-1", "URI:urn:viworks:agent:GW-1", "gw-1"));
}

static void test_dns_when_no_urn(void **state)
{
	(void)state;
	assert_true(names("CN=x", "DNS:a,DNS:gw-1", "gw-1"));
	assert_true(names("CN=x", "DNS:gw-1,URI:https://example.org/", "gw-1"));
	assert_false(names("CN=gw-1", "DNS:gw-2", "gw-1"));
	assert_false(names("CN=gw-1", "DNS:*", "gw-1"));
	assert_false(names("CN=x", "DNS:gw-1.example.org", "gw-1"));
}

static void test_cn_when_no_names(void **state)
{
	(void)state;
	assert_true(names("CN=gw-1", NULL, "gw-1"));
	assert_true(names("CN=gw-1", "IP:127.0.0.1", "gw-1"));
	assert_true(names("CN=gw-1", "URI:https://gw-2/", "gw-1"));
	assert_false(names("CN=gw-1x", NULL, "gw-1"));
	assert_false(names("CN=gw-", NULL, "gw-1"));
	assert_false(names("O=gw-1", NULL, "gw-1"));
	assert_false(names("0.CN=gw-1\n1.CN=gw-2", NULL, "gw-1"));
	assert_false(names("0.CN=gw-1\n1.CN=gw-2", NULL, "gw-2"));
}

/* A certificate with a NUL inside a name, patched into the DER (the signature is not checked). */
static bool names_after_patch(const char *dn, const char *san, const char *from, const char *to,
			      size_t n, const char *agent_id)
{
	struct buf b;
	cert_free(make(dn, san));
	RUN("openssl", "x509", "-in", cert_path, "-outform", "DER", "-out", out_path);
	buf_init(&b, 65536);
	assert_ok(file_read(out_path, &b));
	char *at = memmem(b.data, b.len, from, n);
	assert_non_null(at);
	for (; at; at = memmem(b.data, b.len, from, n))
		memcpy(at, to, n);
	assert_ok(file_write_atomic(out_path, b.data, b.len, 0600));
	buf_fini(&b);
	RUN("openssl", "x509", "-inform", "DER", "-in", out_path, "-out", cert_path);
	struct x509_st *cert = read_cert();
	bool yes = cert_names_agent(cert, agent_id);
	cert_free(cert);
	return yes;
}

static void test_nul_in_a_name_never_matches(void **state)
{
	(void)state;
	assert_false(names_after_patch("CN=gw-1Xevil", NULL, "gw-1Xevil", "gw-1\0evil", 9, "gw-1"));
	assert_false(
	    names_after_patch("CN=x", "DNS:gw-1Xevil", "gw-1Xevil", "gw-1\0evil", 9, "gw-1"));
	assert_false(names_after_patch("CN=x", "URI:urn:viworks:agent:gw-1Xevil", "gw-1Xevil",
				       "gw-1\0evil", 9, "gw-1"));
	/* the patching itself is right: without a NUL it does match */
	assert_true(
	    names_after_patch("CN=x", "DNS:gw-1Xevil", "gw-1Xevil", "gw-1Yevil", 9, "gw-1Yevil"));
}

static void test_broken_san_names_nobody(void **state)
{
	(void)state;
	/* tag 0x82 (DNS) becomes 0x9f, the start of a long tag: the extension does not parse */
	assert_false(
	    names_after_patch("CN=gw-1", "DNS:zzzz", "\x82\x04zzzz", "\x9f\x84zzzz", 6, "gw-1"));
}

static char *first_line(const char *path, char *out, size_t cap)
{
	struct buf b;
	buf_init(&b, 65536);
	assert_ok(file_read(path, &b));
	snprintf(out, cap, "%.*s", (int)strcspn(b.data, "\n"), b.data);
	buf_fini(&b);
	return out;
}

static void test_info_agrees_with_openssl(void **state)
{
	struct cert_info info;
	char hex[SHA256_HEX_LEN + 1], line[256], colons[256], *p = colons;
	uint8_t pin[SHA256_BYTES];
	struct buf der;
	(void)state;
	struct x509_st *cert = make("C=AT\nO=Vi, Works\nCN=gw-\xc3\xa4", "DNS:gw-1");
	assert_ok(cert_info_from_x509(cert, &info));
	cert_free(cert);
	crypto_hex(info.fingerprint, sizeof info.fingerprint, hex);
	for (size_t i = 0; i < SHA256_HEX_LEN; i++) {
		if (i && i % 2 == 0)
			*p++ = ':';
		*p++ = (char)(hex[i] >= 'a' ? hex[i] - 32 : hex[i]);
	}
	*p = '\0';
	RUN("openssl", "x509", "-in", cert_path, "-noout", "-fingerprint", "-sha256", "-out",
	    out_path);
	assert_non_null(strstr(first_line(out_path, line, sizeof line), colons));
	RUN("openssl", "pkey", "-in", key_path, "-pubout", "-outform", "DER", "-out", out_path);
	buf_init(&der, 4096);
	assert_ok(file_read(out_path, &der));
	crypto_sha256(der.data, der.len, pin);
	buf_fini(&der);
	assert_memory_equal(pin, info.spki_pin, sizeof pin);
	assert_string_equal(info.cn, "gw-\xc3\xa4");
	assert_string_equal(info.subject, "CN=gw-\\C3\\A4,O=Vi\\, Works,C=AT");
	assert_in_range(info.not_after_ms - info.not_before_ms, 172799000, 172801000);
	assert_in_range(clock_wall_ms() - info.not_before_ms, 0, 60000);
}

static void test_cn_longer_than_its_field_is_left_out(void **state)
{
	struct cert_info info;
	(void)state;
	struct x509_st *cert = make("0.CN=one\n1.CN=two", NULL);
	assert_ok(cert_info_from_x509(cert, &info));
	assert_string_equal(info.cn, "");
	cert_free(cert);
}

static void test_bad_pem(void **state)
{
	struct x509_st *cert;
	static const char torn[] = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
	(void)state;
	assert_int_equal(cert_from_pem("", 0, &cert), -EINVAL);
	assert_int_equal(cert_from_pem("nonsense", 8, &cert), -EINVAL);
	assert_int_equal(cert_from_pem(torn, sizeof torn - 1, &cert), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_urn_wins),
	    cmocka_unit_test(test_dns_when_no_urn),
	    cmocka_unit_test(test_cn_when_no_names),
	    cmocka_unit_test(test_nul_in_a_name_never_matches),
	    cmocka_unit_test(test_broken_san_names_nobody),
	    cmocka_unit_test(test_info_agrees_with_openssl),
	    cmocka_unit_test(test_cn_longer_than_its_field_is_left_out),
	    cmocka_unit_test(test_bad_pem),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
