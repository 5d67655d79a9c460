/* Vectors: RFC 4231 (HMAC-SHA-256), FIPS 180-4 examples, RFC 4648 section 10. */
#include "unit.h"

#include <errno.h>
#include <stdlib.h>

#include "crypto/crypto.h"

static void expect_mac(const char *key_hex, const char *data_hex, const char *mac_hex, size_t mac_n)
{
	uint8_t key[160], data[160], mac[SHA256_BYTES];
	char got[SHA256_HEX_LEN + 1];
	assert_ok(crypto_unhex(key_hex, strlen(key_hex), key));
	assert_ok(crypto_unhex(data_hex, strlen(data_hex), data));
	crypto_hmac_sha256(key, strlen(key_hex) / 2, data, strlen(data_hex) / 2, mac);
	crypto_hex(mac, mac_n, got);
	assert_string_equal(got, mac_hex);
}

static char *repeat(char *out, const char *two, size_t times)
{
	for (size_t i = 0; i < times; i++)
		memcpy(out + 2 * i, two, 2);
	out[2 * times] = '\0';
	return out;
}

static void test_hmac_rfc4231(void **state)
{
	char key[320], data[320];
	(void)state;
	expect_mac(repeat(key, "0b", 20), "4869205468657265",
		   "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7", 32);
	expect_mac("4a656665", "7768617420646f2079612077616e7420666f72206e6f7468696e673f",
		   "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843", 32);
	expect_mac(repeat(key, "aa", 20), repeat(data, "dd", 50),
		   "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe", 32);
	expect_mac("0102030405060708090a0b0c0d0e0f10111213141516171819", repeat(data, "cd", 50),
		   "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b", 32);
	expect_mac(repeat(key, "0c", 20), "546573742057697468205472756e636174696f6e",
		   "a3b6167473100ee06e0c796c2955552b", 16);
	expect_mac(
	    repeat(key, "aa", 131),
	    "54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a65204b6579202d20"
	    "48617368204b6579204669727374",
	    "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54", 32);
	expect_mac(
	    repeat(key, "aa", 131),
	    "5468697320697320612074657374207573696e672061206c6172676572207468616e20626c6f636b"
	    "2d73697a65206b657920616e642061206c6172676572207468616e20626c6f636b2d73697a652064"
	    "6174612e20546865206b6579206e6565647320746f20626520686173686564206265666f72652062"
	    "65696e6720757365642062792074686520484d414320616c676f726974686d2e",
	    "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2", 32);
}

static void test_hmac_empty_key(void **state)
{
	uint8_t mac[SHA256_BYTES];
	char got[SHA256_HEX_LEN + 1];
	(void)state;
	crypto_hmac_sha256("", 0, "", 0, mac);
	crypto_hex(mac, sizeof mac, got);
	assert_string_equal(got,
			    "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}

static void test_sha256(void **state)
{
	uint8_t d[SHA256_BYTES];
	char got[SHA256_HEX_LEN + 1];
	(void)state;
	crypto_sha256("abc", 3, d);
	crypto_hex(d, sizeof d, got);
	assert_string_equal(got,
			    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	crypto_sha256("", 0, d);
	crypto_hex(d, sizeof d, got);
	assert_string_equal(got,
			    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

static void test_unhex(void **state)
{
	uint8_t out[4];
	(void)state;
	assert_ok(crypto_unhex("00fFa9", 6, out));
	assert_memory_equal(out, "\x00\xff\xa9", 3);
	assert_int_equal(crypto_unhex("abc", 3, out), -EINVAL);
	assert_int_equal(crypto_unhex("0g", 2, out), -EINVAL);
	assert_int_equal(crypto_unhex("0 ", 2, out), -EINVAL);
}

static void test_base64(void **state)
{
	static const char *const pair[][2] = {{"", ""},
					      {"f", "Zg=="},
					      {"fo", "Zm8="},
					      {"foo", "Zm9v"},
					      {"foob", "Zm9vYg=="},
					      {"fooba", "Zm9vYmE="},
					      {"foobar", "Zm9vYmFy"}};
	static const char *const bad[] = {"Zg",	    "Zg=",  "Z===",	"====", "Zh==", "Zm9=",
					  "Zm9v\n", "Zm-v", "Zg==Zg==", "=Zg=", "Z=g="};
	uint8_t out[16];
	size_t n;
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(pair); i++) {
		char text[16];
		crypto_base64((const uint8_t *)pair[i][0], strlen(pair[i][0]), text);
		assert_string_equal(text, pair[i][1]);
		assert_ok(crypto_unbase64(text, strlen(text), out, sizeof out, &n));
		assert_int_equal(n, strlen(pair[i][0]));
		assert_memory_equal(out, pair[i][0], n);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		if (crypto_unbase64(bad[i], strlen(bad[i]), out, sizeof out, &n) != -EINVAL)
			fail_msg("accepted: %s", bad[i]);
	assert_int_equal(crypto_unbase64("Zm9v", 4, out, 2, &n), -ENOBUFS);
	assert_ok(crypto_unbase64("Zm8=", 4, out, 2, &n));
}

static void test_equal(void **state)
{
	(void)state;
	assert_true(crypto_equal("abc", "abc", 3));
	assert_false(crypto_equal("abc", "abd", 3));
	assert_true(crypto_equal_str("abc", 3, "abc", 3));
	assert_true(crypto_equal_str("", 0, "", 0));
	assert_false(crypto_equal_str("abc", 3, "ab", 2));
	assert_false(crypto_equal_str("abc", 3, "abd", 3));
}

static void test_handshake_mac_is_over_the_joined_text(void **state)
{
	static const char joined[] = "GET|/agent/ws|2026-11-20T11:09:00.123Z|n-1|gw-1";
	uint8_t whole[SHA256_BYTES], parts[SHA256_BYTES];
	(void)state;
	crypto_hmac_sha256("s3cret", 6, joined, strlen(joined), whole);
	crypto_handshake_mac("s3cret", "/agent/ws", "2026-11-20T11:09:00.123Z", "n-1", "gw-1",
			     parts);
	assert_memory_equal(whole, parts, SHA256_BYTES);
}

static void test_wipe(void **state)
{
	char secret[8] = "secret!";
	(void)state;
	crypto_wipe(secret, sizeof secret);
	for (size_t i = 0; i < sizeof secret; i++)
		assert_int_equal(secret[i], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_hmac_rfc4231),
	    cmocka_unit_test(test_hmac_empty_key),
	    cmocka_unit_test(test_sha256),
	    cmocka_unit_test(test_unhex),
	    cmocka_unit_test(test_base64),
	    cmocka_unit_test(test_equal),
	    cmocka_unit_test(test_handshake_mac_is_over_the_joined_text),
	    cmocka_unit_test(test_wipe),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
