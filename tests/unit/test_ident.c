/* ident, utf8 and netaddr: what text counts as what. */
#include "unit.h"

#include <errno.h>

#include "base/ident.h"
#include "base/netaddr.h"
#include "base/utf8.h"

static void test_agent_id(void **state)
{
	char longest[66];
	(void)state;
	memset(longest, 'a', 65);
	longest[65] = '\0';
	assert_true(ident_is_agent_id(longest, 64));
	assert_false(ident_is_agent_id(longest, 65));
	assert_true(ident_is_agent_id("0", 1));
	assert_true(ident_is_agent_id("gw-1._Z", 7));
	assert_false(ident_is_agent_id("", 0));
	assert_false(ident_is_agent_id("-gw", 3));
	assert_false(ident_is_agent_id("a:b", 3));
	assert_false(ident_is_agent_id("a\0b", 3));
	assert_false(ident_is_agent_id("a b", 3));
	assert_false(ident_is_agent_id("\xc3\xa4", 2));
}

static void test_correlation_id(void **state)
{
	(void)state;
	assert_true(ident_is_correlation_id("a:b.c_d-e", 9));
	assert_false(ident_is_correlation_id(":a", 2));
	assert_false(ident_is_correlation_id("a/b", 3));
	assert_false(ident_is_correlation_id("a\n", 2));
}

static void test_uuid4(void **state)
{
	char a[UUID_LEN + 1], b[UUID_LEN + 1];
	(void)state;
	for (int i = 0; i < 200; i++) {
		ident_uuid4(a);
		assert_true(ident_is_uuid4(a, strlen(a)));
	}
	ident_uuid4(b);
	assert_string_not_equal(a, b);
	assert_true(ident_is_uuid4("A987FBC9-4BED-4078-8F07-9141BA07C9F3", 36));
	assert_false(ident_is_uuid4("A987FBC9-4BED-3078-8F07-9141BA07C9F3", 36)); /* version 3 */
	assert_false(ident_is_uuid4("A987FBC9-4BED-4078-CF07-9141BA07C9F3", 36)); /* variant */
	assert_false(ident_is_uuid4("A987FBC994BED-4078-8F07-9141BA07C9F3", 36));
	assert_false(ident_is_uuid4("A987FBC9-4BED-4078-8F07-9141BA07C9F", 35));
	assert_false(ident_is_uuid4("A987FBC9-4BED-4078-8F07-9141BA07C9FG", 36));
}

static void test_random_below(void **state)
{
	unsigned seen[7] = {0};
	(void)state;
	for (int i = 0; i < 7000; i++)
		seen[ident_random_below(7)]++;
	for (int i = 0; i < 7; i++)
		assert_in_range(seen[i], 800, 1200); /* 8 standard deviations */
	assert_int_equal(ident_random_below(1), 0);
}

static void test_utf8(void **state)
{
	static const struct {
		const char *s;
		size_t valid;
	} t[] = {
	    {"plain ascii text over eight", 27},
	    {"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9},
	    {"ab\xc0\x80", 2},
	    {"\xe0\x80\x80", 0},
	    {"\xed\x9f\xbf", 3},
	    {"\xed\xa0\x80", 0},
	    {"\xee\x80\x80", 3},
	    {"\xf0\x80\x80\x80", 0},
	    {"\xf4\x8f\xbf\xbf", 4},
	    {"\xf4\x90\x80\x80", 0},
	    {"\xf5\x80\x80\x80", 0},
	    {"\x80", 0},
	    {"12345678\xe2\x82", 8},
	    {"\xe2\x28\xa1", 0},
	    {"\xff", 0},
	    {"", 0},
	    {"\xc2", 0},
	};
	(void)state;
	for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
		assert_int_equal(utf8_valid_prefix(t[i].s, strlen(t[i].s)), t[i].valid);
		assert_int_equal(utf8_is_valid(t[i].s, strlen(t[i].s)),
				 t[i].valid == strlen(t[i].s));
	}
	assert_int_equal(utf8_sequence("\xe2\x82\xac", 2), 0);
	assert_true(utf8_is_valid("a\0b", 3));
}

static void expect_addr(const char *text, const char *back, bool loopback)
{
	struct netaddr a;
	char out[NETADDR_TEXT_MAX];
	assert_ok(netaddr_parse_hostport(text, &a));
	netaddr_format_hostport(&a, out);
	assert_string_equal(out, back);
	assert_int_equal(netaddr_is_loopback(&a), loopback);
}

static void test_hostport(void **state)
{
	static const char *const bad[] = {"",
					  "1.2.3.4",
					  "1.2.3.4:",
					  "1.2.3.4:65536",
					  "1.2.3.4:-1",
					  "localhost:80",
					  "::1:80",
					  "[::1]",
					  "[::1]80",
					  "[1.2.3.4]:80",
					  "1.2.3:80",
					  "1.2.3.4:80 ",
					  "1.2.3.4:080000",
					  "[::1:80",
					  "1.2.3.4:8:0"};
	struct netaddr a;
	(void)state;
	expect_addr("0.0.0.0:8082", "0.0.0.0:8082", false);
	expect_addr(":0", "0.0.0.0:0", false);
	expect_addr("127.9.9.9:1", "127.9.9.9:1", true);
	expect_addr("[::1]:65535", "[::1]:65535", true);
	expect_addr("[2001:db8::1]:443", "[2001:db8::1]:443", false);
	expect_addr("[::ffff:127.0.0.1]:5", "127.0.0.1:5", true);
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		if (netaddr_parse_hostport(bad[i], &a) != -EINVAL)
			fail_msg("accepted: %s", bad[i]);
}

static bool in_list(const char *csv, const char *hostport)
{
	struct cidr_list l;
	struct netaddr a;
	assert_ok(cidr_list_parse(csv, &l));
	assert_ok(netaddr_parse_hostport(hostport, &a));
	bool in = cidr_list_contains(&l, &a);
	cidr_list_fini(&l);
	return in;
}

static void test_cidr(void **state)
{
	static const char *const bad[] = {"10.0.0.1/8",
					  "10.0.0.0/33",
					  "10.0.0.0/",
					  "::1/129",
					  ",",
					  "10.0.0.0/8,",
					  "host/8",
					  "10.0.0.0/8 11.0.0.0/8",
					  "2001:db8::1/32",
					  "10.0.0.0/-1"};
	struct cidr_list l;
	(void)state;
	assert_true(in_list("10.0.0.0/8, 192.168.1.7", "10.255.1.2:1"));
	assert_true(in_list("10.0.0.0/8, 192.168.1.7", "192.168.1.7:1"));
	assert_false(in_list("10.0.0.0/8, 192.168.1.7", "192.168.1.8:1"));
	assert_false(in_list("10.0.0.0/8", "11.0.0.0:1"));
	assert_true(in_list("10.0.0.0/8", "[::ffff:10.1.2.3]:1"));
	assert_true(in_list("172.16.0.0/12", "172.31.255.255:1"));
	assert_false(in_list("172.16.0.0/12", "172.32.0.0:1"));
	assert_true(in_list("2001:db8::/33", "[2001:db8:7fff::1]:1"));
	assert_false(in_list("2001:db8::/33", "[2001:db8:8000::1]:1"));
	assert_true(in_list("0.0.0.0/0", "1.2.3.4:1"));
	assert_false(in_list("0.0.0.0/0", "[2001:db8::1]:1"));
	assert_true(in_list("::/0", "1.2.3.4:1"));
	assert_false(in_list("", "1.2.3.4:1"));
	assert_ok(cidr_list_parse(NULL, &l));
	assert_int_equal(l.n, 0);
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		if (cidr_list_parse(bad[i], &l) != -EINVAL)
			fail_msg("accepted: %s", bad[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_agent_id), cmocka_unit_test(test_correlation_id),
	    cmocka_unit_test(test_uuid4),    cmocka_unit_test(test_random_below),
	    cmocka_unit_test(test_utf8),     cmocka_unit_test(test_hostport),
	    cmocka_unit_test(test_cidr),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
