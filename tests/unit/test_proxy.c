/* Reading https_proxy and no_proxy. */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "proxy.h"

static bool via(const char *proxy, const char *no_proxy, const char *host, struct proxy *p)
{
	char why[200];
	bool use;

	assert_int_equal(proxy_parse(proxy, no_proxy, host, &use, p, why, sizeof why), 0);
	return use;
}

static void test_proxy_parse_forms(void **state)
{
	struct proxy p;

	(void)state;
	assert_false(via(NULL, NULL, "h", &p));
	assert_false(via("", NULL, "h", &p));
	assert_true(via("http://proxy.example:3128/", NULL, "h", &p));
	assert_string_equal(p.host, "proxy.example");
	assert_int_equal(p.port, 3128);
	assert_true(via("u:p@w@10.0.0.1:80", NULL, "h", &p));
	assert_string_equal(p.userinfo, "u:p@w");
	assert_string_equal(p.host, "10.0.0.1");
	assert_true(via("http://[::1]:8080", NULL, "h", &p));
	assert_string_equal(p.host, "::1");
}

static void test_proxy_parse_exempt(void **state)
{
	struct proxy p;

	(void)state;
	assert_false(via("p:1", "*", "h", &p));
	assert_false(via("p:1", "a.b, example.org", "x.example.org", &p));
	assert_false(via("p:1", ".example.org", "example.org", &p));
	assert_false(via("p:1", "127.0.0.1", "127.0.0.1", &p));
	assert_true(via("p:1", "ample.org", "example.org", &p));
}

/* A proxy that was asked for is never skipped. */
static void test_proxy_parse_refuses(void **state)
{
	static const char *const bad[] = {"proxy", "http://:80", "https://p:1", "socks5://p:1",
					  "p:0",   "p:70000",	 "p:8x",	"[::1:80"};
	struct proxy p;
	char why[200];
	bool use;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_LEN(bad); i++) {
		if (proxy_parse(bad[i], NULL, "h", &use, &p, why, sizeof why) != -EINVAL)
			fail_msg("`%s` was taken", bad[i]);
		assert_non_null(strstr(why, "http://"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_proxy_parse_forms),
	    cmocka_unit_test(test_proxy_parse_exempt),
	    cmocka_unit_test(test_proxy_parse_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
