/* One GET of a bridge's internal endpoint, with the admin token. */
#pragma once

#include "base/buf.h"
#include "viwctl.h"

/* Body appended to out (cap: out's). 0 and *ret_status, or -errno-like with msg. */
int http_get(const struct ctl *c, const char *path, struct buf *out, long *ret_status, char *msg,
	     size_t msg_cap) MUST_CHECK;
