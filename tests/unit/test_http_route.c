/* Routes, guards, repeated headers: the parts of lib/http that know no sockets. */
#include "http/http_head.h"
#include "http/http_internal.h"
#include "unit.h"

static void test_match(void **state)
{
	static const struct {
		const char *pattern, *path;
		bool fits;
		const char *first, *second;
	} cases[] = {
	    {"/a", "/a", true, "", ""},
	    {"/a", "/a/", false, "", ""},
	    {"/a", "/ab", false, "", ""},
	    {"/a/:id", "/a/x", true, "x", ""},
	    {"/a/:id", "/a/", false, "", ""},
	    {"/a/:id", "/a/x/y", false, "", ""},
	    {"/a/:id/b/:other", "/a/x.1/b/y:2", true, "x.1", "y:2"},
	    {"/a/:id/b", "/a/x/c", false, "", ""},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char param[2][HTTP_PARAM_MAX] = {"", ""};

		assert_int_equal(http_route_match(cases[i].pattern, cases[i].path, param),
				 cases[i].fits);
		if (!cases[i].fits)
			continue;
		assert_string_equal(param[0], cases[i].first);
		assert_string_equal(param[1], cases[i].second);
	}
}

static void test_match_parameter_is_capped(void **state)
{
	char path[HTTP_PARAM_MAX + 8] = "/", param[2][HTTP_PARAM_MAX];

	(void)state;
	memset(path + 1, 'x', HTTP_PARAM_MAX - 1);
	assert_true(http_route_match("/:id", path, param));
	path[HTTP_PARAM_MAX] = 'x';
	assert_false(http_route_match("/:id", path, param));
}

static void test_find(void **state)
{
	static const struct http_route routes[] = {{HTTP_GET, "/a/:id", HTTP_OPEN, NULL},
						   {HTTP_POST, "/a/:id", HTTP_INTERNAL, NULL},
						   {HTTP_GET, "/b", HTTP_OPEN, NULL}};
	const struct http_table t = {.route = routes, .n = ARRAY_LEN(routes)};
	const struct http_route *r;
	char param[2][HTTP_PARAM_MAX], allow[32];
	enum http_guard g;

	(void)state;
	assert_int_equal(http_route_find(&t, "/a/7", HTTP_POST, param, &r, &g),
			 HTTP_GET | HTTP_POST);
	assert_ptr_equal(r, &routes[1]);
	assert_string_equal(param[0], "7");
	http_allow_text(HTTP_GET | HTTP_POST, allow, sizeof(allow));
	assert_string_equal(allow, "GET, POST");
	assert_int_equal(http_route_find(&t, "/b", HTTP_DELETE, param, &r, &g), HTTP_GET);
	assert_null(r);
	assert_int_equal(http_route_find(&t, "/c", HTTP_GET, param, &r, &g), 0);
}

static void test_guard(void **state)
{
	struct http_table t = {.token = "tok"};
	struct netaddr local, far;
	struct cidr_list proxies;

	(void)state;
	assert_int_equal(netaddr_parse_hostport("127.0.0.1:1", &local), 0);
	assert_int_equal(netaddr_parse_hostport("192.0.2.1:1", &far), 0);
	assert_int_equal(http_guard_check(&t, HTTP_OPEN, NULL, true, &far), 0);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, NULL, false, &local), 401);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, "Bearer to", false, &local), 401);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, "Bearer tokk", false, &local), 401);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, "tok", false, &local), 401);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, "bearer tok", true, &far), 0);
	t.token = NULL;
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, NULL, false, &local), 0);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, NULL, true, &local), 403);
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, NULL, false, &far), 403);
	assert_int_equal(http_guard_check(&t, HTTP_TOKEN, "Bearer ", false, &local), 404);
	assert_int_equal(cidr_list_parse("127.0.0.0/8", &proxies), 0);
	t.trusted_proxies = &proxies;
	assert_int_equal(http_guard_check(&t, HTTP_INTERNAL, NULL, false, &local), 403);
	cidr_list_fini(&proxies);
}

static void test_head(void **state)
{
	static const char *const names[] = {"x-agent-id", "x-nonce", NULL};
	static const char once[] =
	    "GET / HTTP/1.1\r\nX-Agent-Id: a\r\nX-Agent-Idx: b\r\nX-Nonce: 1\r\n\r\nX";
	static const char twice[] = "GET / HTTP/1.1\nx-nonce: a\nHost: x-agent-id: 1\nX-NONCE:\n\n";

	(void)state;
	assert_int_equal(http_head_length(once, sizeof(once) - 1), sizeof(once) - 2);
	for (size_t n = 0; n < sizeof(once) - 2; n++)
		assert_int_equal(http_head_length(once, n), 0);
	assert_int_equal(http_head_length(twice, sizeof(twice) - 1), sizeof(twice) - 1);
	assert_int_equal(http_head_repeated(once, sizeof(once) - 1, names), 0);
	assert_int_equal(http_head_repeated(twice, sizeof(twice) - 1, names), 2);
	assert_int_equal(http_head_repeated("", 0, names), 0);
}

static void test_head_names_a_path_literally(void **state)
{
	static const char *const paths[] = {"/agent/ws", "/ws", NULL};
	static const char *const good[] = {"GET /agent/ws HTTP/1.1\r\n\r\n", "GET /ws HTTP/1.0\n\n",
					   "GET /ws?/x HTTP/1.1\r\n\r\n"};
	static const char *const bad[] = {
	    "GET /agent/%77s HTTP/1.1\r\n\r\n",
	    "GET //ws HTTP/1.1\r\n\r\n",
	    "GET /agent/../ws HTTP/1.1\r\n\r\n",
	    "GET /./ws HTTP/1.1\r\n\r\n",
	    "GET /ws/ HTTP/1.1\r\n\r\n",
	    "GET /ws%3fx HTTP/1.1\r\n\r\n",
	    "GET /w HTTP/1.1\r\nX: /ws \r\n\r\n",
	    "GET / HTTP/1.1\r\n\r\n",
	    "GET /WS HTTP/1.1\r\n\r\n",
	    "GET",
	    "GET ",
	    "",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		assert_true(http_head_names(good[i], strlen(good[i]), paths));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_false(http_head_names(bad[i], strlen(bad[i]), paths));
	assert_false(http_head_names(good[1], 6, paths)); /* cut short */
}

static int fault_of(const char *head, size_t n)
{
	int status;

	return http_head_fault(head, n, &status) ? status : 0;
}

static void test_head_fault(void **state)
{
	static const char *const good[] = {
	    "GET / HTTP/1.1\r\n\r\n",
	    "GET / HTTP/1.0\n\n",
	    "POST /a%20b%41%fF?x=%e2%82%ac&y HTTP/1.1\r\nHost: x\r\nA:\r\nb-C: \t\xc3\xa9\r\n\r\n",
	    "CONNECTED /x HTTP/1.1\r\n\r\n",
	};
	static const char *const bad[] = {
	    "GET /%00 HTTP/1.1\r\n\r\n",
	    "GET /%0 HTTP/1.1\r\n\r\n",
	    "GET /%g0 HTTP/1.1\r\n\r\n",
	    "GET /%:0 HTTP/1.1\r\n\r\n",
	    "GET x HTTP/1.1\r\n\r\n",
	    "GET  / HTTP/1.1\r\n\r\n",
	    "get / HTTP/1.1\r\n\r\n",
	    "GET / HTTP/1.2\r\n\r\n",
	    "GET / HTTP/1.11\r\n\r\n",
	    "GET / HTTP/2.0\r\n\r\n",
	    "GET / http/1.1\r\n\r\n",
	    "GET /\r\n\r\n",
	    "GET /\t HTTP/1.1\r\n\r\n",
	    "CONNECT /x HTTP/1.1\r\n\r\n",
	    "GET / HTTP/1.1\r\n: x\r\n\r\n",
	    "GET / HTTP/1.1\r\na b: x\r\n\r\n",
	    "GET / HTTP/1.1\r\na : x\r\n\r\n",
	    "GET / HTTP/1.1\r\na: x\r\n y\r\n\r\n",
	    "GET / HTTP/1.1\r\na\r\n\r\n",
	    "GET / HTTP/1.1\r\na: x\ry\r\n\r\n",
	    "GET / HTTP/1.1\r\na: \x01\r\n\r\n",
	    "GET / HTTP/1.1\r\r\n\r\n",
	    "\r\nGET / HTTP/1.1\r\n\r\n",
	    " / HTTP/1.1\r\n\r\n",
	    "ABCDEFGHIJKLMNOPQRS / HTTP/1.1\r\n\r\n",
	};
	char large[HTTP_HEAD_MAX + 1];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		for (size_t n = 0; n <= strlen(good[i]); n++)
			assert_int_equal(fault_of(good[i], n), 0);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(fault_of(bad[i], strlen(bad[i])), 400);
	assert_int_equal(fault_of("GET /a\0b", 8), 400);
	assert_int_equal(fault_of("GET / HTTP/1.1\r\na: \0", 20), 400);
	memset(large, 'x', sizeof(large));
	memcpy(large, "GET / HTTP/1.1\r\na: ", 19);
	assert_int_equal(fault_of(large, sizeof(large) - 2), 0);
	assert_int_equal(fault_of(large, sizeof(large) - 1), 431);
	memcpy(large + sizeof(large) - 5, "\r\n\r\n", 4);
	assert_int_equal(fault_of(large, sizeof(large) - 1), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_match),      cmocka_unit_test(test_match_parameter_is_capped),
	    cmocka_unit_test(test_find),       cmocka_unit_test(test_guard),
	    cmocka_unit_test(test_head),       cmocka_unit_test(test_head_names_a_path_literally),
	    cmocka_unit_test(test_head_fault),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
