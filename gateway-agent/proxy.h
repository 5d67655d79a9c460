/* The HTTP CONNECT proxy the environment names (https_proxy, HTTPS_PROXY, ALL_PROXY; no_proxy,
 * NO_PROXY), as curl reads them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct proxy {
	char host[256];
	uint16_t port;
	char userinfo[256]; /* user:password, secret; "": none */
};

/* True and ret filled when host is to be reached through a proxy; -EINVAL with why when the
 * variable cannot be read (a proxy that was asked for is never skipped). */
int proxy_for(const char *host, bool *ret_use, struct proxy *ret, char *why, size_t cap) MUST_CHECK;
/* The same from given texts, NULL: unset. */
int proxy_parse(const char *proxy, const char *no_proxy, const char *host, bool *ret_use,
		struct proxy *ret, char *why, size_t cap) MUST_CHECK;
