/* The atomic steps, one Lua file each in the folder redis, embedded at build time. */
#pragma once

#include "redis/redis.h"

#define SCRIPTS(X)      \
	X(bridge_lease) \
	X(check)        \
	X(claim)        \
	X(expire)       \
	X(lookup)       \
	X(offer)        \
	X(post)         \
	X(reclaim)      \
	X(release)      \
	X(result)       \
	X(route)        \
	X(router_lease) \
	X(router_read)  \
	X(router_yield) \
	X(trim)         \
	X(trim_bytes)

enum script {
#define X(name) SCRIPT_##name,
	SCRIPTS(X)
#undef X
	    SCRIPT_NONE
};

/* Lives as long as the program. */
struct redis_script *script_get(enum script s);
