/* Small readers of text that strangers send: times, addresses, CIDR lists, UTF-8, hex, base64,
 * identifiers. First byte: which. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "base/netaddr.h"
#include "base/utf8.h"
#include "crypto/crypto.h"
#include "fuzz.h"

static void read_time(const char *s, size_t n)
{
	char text[CLOCK_RFC3339_LEN + 1];
	int64_t ms, again;

	if (clock_parse_rfc3339(s, n, &ms) < 0)
		return;
	clock_format_rfc3339(ms, text);
	FUZZ_CHECK(clock_parse_rfc3339(text, strlen(text), &again) == 0 && again == ms);
}

static void read_address(const char *s, size_t n)
{
	char text[NETADDR_TEXT_MAX];
	struct netaddr a, b;

	(void)n;
	if (netaddr_parse_hostport(s, &a) < 0)
		return;
	netaddr_format_hostport(&a, text);
	FUZZ_CHECK(netaddr_parse_hostport(text, &b) == 0);
	FUZZ_CHECK(netaddr_port(&a) == netaddr_port(&b));
	FUZZ_CHECK(netaddr_is_loopback(&a) == netaddr_is_loopback(&b));
}

static void read_cidrs(const char *s, size_t n)
{
	struct cidr_list l = {0};
	struct netaddr a;

	(void)n;
	if (cidr_list_parse(s, &l) < 0)
		return;
	if (netaddr_parse_hostport("127.0.0.1:1", &a) == 0)
		(void)cidr_list_contains(&l, &a);
	cidr_list_fini(&l);
}

static void read_bytes(const char *s, size_t n)
{
	uint8_t *bytes = malloc(n + 1);
	char *back = malloc(2 * n + 8);
	size_t got;

	if (!bytes || !back)
		abort();
	if (crypto_unhex(s, n, bytes) == 0) {
		crypto_hex(bytes, n / 2, back);
		FUZZ_CHECK(strlen(back) == n);
	}
	if (crypto_unbase64(s, n, bytes, n, &got) == 0) {
		crypto_base64(bytes, got, back);
		FUZZ_CHECK(strlen(back) == n && memcmp(back, s, n) == 0);
	}
	free(bytes);
	free(back);
}

static void read_words(const char *s, size_t n)
{
	size_t prefix = utf8_valid_prefix(s, n);

	FUZZ_CHECK(prefix <= n && utf8_is_valid(s, prefix));
	FUZZ_CHECK(utf8_is_valid(s, n) == (prefix == n));
	if (ident_is_agent_id(s, n))
		FUZZ_CHECK(n <= AGENT_ID_MAX && ident_is_correlation_id(s, n));
	if (ident_is_uuid4(s, n))
		FUZZ_CHECK(n == UUID_LEN && ident_is_agent_id(s, n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static void (*const readers[])(const char *, size_t) = {read_time, read_address, read_cidrs,
								read_bytes, read_words};
	char *text;

	if (n == 0)
		return 0;
	text = malloc(n); /* exactly, with its NUL, for the sanitizer */
	if (!text)
		abort();
	memcpy(text, data + 1, n - 1);
	text[n - 1] = '\0';
	readers[data[0] % ARRAY_LEN(readers)](text, n - 1);
	free(text);
	return 0;
}
