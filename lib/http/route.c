/* Which route serves a path, and who may use it. Pure: no sockets, no lws. */
#include <string.h>

#include "crypto/crypto.h"
#include "http/http_internal.h"

static bool param_take(const char *text, size_t n, char out[HTTP_PARAM_MAX])
{
	if (n == 0 || n >= HTTP_PARAM_MAX)
		return false;
	memcpy(out, text, n);
	out[n] = '\0';
	return true;
}

bool http_route_match(const char *pattern, const char *path, char param[2][HTTP_PARAM_MAX])
{
	unsigned params = 0;

	while (*pattern) {
		if (*pattern == ':') {
			size_t name_n = strcspn(pattern, "/"), n = strcspn(path, "/");

			if (params == 2 || !param_take(path, n, param[params++]))
				return false;
			pattern += name_n;
			path += n;
		} else if (*pattern++ != *path++) {
			return false;
		}
	}
	return *path == '\0';
}

unsigned http_route_find(const struct http_table *t, const char *path, enum http_method m,
			 char param[2][HTTP_PARAM_MAX], const struct http_route **ret_route,
			 enum http_guard *ret_guard)
{
	char scratch[2][HTTP_PARAM_MAX];
	unsigned methods = 0;

	*ret_route = NULL;
	*ret_guard = HTTP_OPEN;
	for (size_t i = 0; i < t->n; i++) {
		const struct http_route *r = &t->route[i];

		memset(scratch, 0, sizeof(scratch));
		if (!http_route_match(r->path, path, scratch))
			continue;
		methods |= r->method;
		if (r->guard > *ret_guard)
			*ret_guard = r->guard;
		if (r->method == m && !*ret_route) {
			*ret_route = r;
			memcpy(param, scratch, sizeof(scratch));
		}
	}
	return methods;
}

void http_allow_text(unsigned methods, char *out, size_t cap)
{
	static const struct {
		unsigned method;
		const char *word;
	} words[] = {{HTTP_GET, "GET"}, {HTTP_POST, "POST"}, {HTTP_DELETE, "DELETE"}};
	size_t n = 0;

	out[0] = '\0';
	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		size_t word_n = strlen(words[i].word);

		if (!(methods & words[i].method) || n + word_n + 3 > cap)
			continue;
		if (n) {
			memcpy(out + n, ", ", 2);
			n += 2;
		}
		memcpy(out + n, words[i].word, word_n + 1);
		n += word_n;
	}
}

static bool token_fits(const char *token, const char *authorization)
{
	static const char scheme[] = "Bearer ";
	const size_t scheme_n = sizeof(scheme) - 1;

	/* Auth schemes are case-insensitive (RFC 9110, 11.1). */
	if (!authorization || strncasecmp(authorization, scheme, scheme_n) != 0)
		return false;
	authorization += scheme_n;
	return crypto_equal_str(authorization, strlen(authorization), token, strlen(token));
}

int http_guard_check(const struct http_table *t, enum http_guard g, const char *authorization,
		     bool forwarded, const struct netaddr *peer)
{
	bool has_token = t->token && t->token[0];

	if (g == HTTP_OPEN)
		return 0;
	if (has_token)
		return token_fits(t->token, authorization) ? 0 : 401;
	if (g == HTTP_TOKEN)
		return 404;
	if (forwarded || !netaddr_is_loopback(peer))
		return 403;
	if (t->trusted_proxies && cidr_list_contains(t->trusted_proxies, peer))
		return 403;
	return 0;
}
