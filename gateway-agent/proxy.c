/* See proxy.h. */
#include "proxy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool ends_with_name(const char *host, const char *suffix, size_t n)
{
	size_t h = strlen(host);

	if (n > 0 && *suffix == '.') {
		suffix++;
		n--;
	}
	if (n == 0 || h < n || strncasecmp(host + h - n, suffix, n) != 0)
		return false;
	return h == n || host[h - n - 1] == '.';
}

static bool is_exempt(const char *no_proxy, const char *host)
{
	const char *s = no_proxy;

	while (s && *s) {
		size_t n;

		s += strspn(s, ", \t");
		n = strcspn(s, ", \t");
		if ((n == 1 && *s == '*') || ends_with_name(host, s, n))
			return true;
		s += n;
	}
	return false;
}

static int bad(char *why, size_t cap)
{
	(void)snprintf(why, cap,
		       "https_proxy is not valid: write http://[user:password@]host:port");
	return -EINVAL;
}

int proxy_parse(const char *proxy, const char *no_proxy, const char *host, bool *ret_use,
		struct proxy *ret, char *why, size_t cap)
{
	struct proxy p = {0};
	const char *s = proxy, *at, *end, *colon;
	char *num_end;
	unsigned long port;

	*ret_use = false;
	if (!s || !*s || is_exempt(no_proxy, host))
		return 0;
	if (strncasecmp(s, "http://", 7) == 0)
		s += 7;
	else if (strstr(s, "://"))
		return bad(why, cap);
	end = s + strcspn(s, "/");
	at = memrchr(s, '@', (size_t)(end - s));
	if (at) {
		if ((size_t)(at - s) >= sizeof p.userinfo)
			return bad(why, cap);
		memcpy(p.userinfo, s, (size_t)(at - s));
		s = at + 1;
	}
	if (*s == '[') {
		const char *close = memchr(s, ']', (size_t)(end - s));

		if (!close)
			return bad(why, cap);
		colon = close + 1;
		if ((size_t)(close - s - 1) >= sizeof p.host)
			return bad(why, cap);
		memcpy(p.host, s + 1, (size_t)(close - s - 1));
	} else {
		colon = memchr(s, ':', (size_t)(end - s));
		if (!colon || (size_t)(colon - s) >= sizeof p.host)
			return bad(why, cap);
		memcpy(p.host, s, (size_t)(colon - s));
	}
	if (!p.host[0] || *colon != ':')
		return bad(why, cap);
	errno = 0;
	port = strtoul(colon + 1, &num_end, 10);
	if (errno || num_end != end || num_end == colon + 1 || port == 0 || port > 65535)
		return bad(why, cap);
	p.port = (uint16_t)port;
	*ret = p;
	*ret_use = true;
	return 0;
}

static const char *env_either(const char *lower, const char *upper)
{
	const char *v = getenv(lower);

	return v && *v ? v : getenv(upper);
}

int proxy_for(const char *host, bool *ret_use, struct proxy *ret, char *why, size_t cap)
{
	const char *proxy = env_either("https_proxy", "HTTPS_PROXY");

	if (!proxy || !*proxy)
		proxy = env_either("all_proxy", "ALL_PROXY");
	return proxy_parse(proxy, env_either("no_proxy", "NO_PROXY"), host, ret_use, ret, why, cap);
}
