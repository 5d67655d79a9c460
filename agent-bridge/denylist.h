/* The sets viw.decommissioned and viw.revoked, copied from Redis every few seconds, so that a
 * handshake is refused at once. CLAIM in Redis has the last word. Long sets are read in pieces, and
 * only what changed costs more than a look. */
#pragma once

#include <stdbool.h>

#include "base/macros.h"

struct loop;
struct redis;
struct denylist;

/* on_change: something was put on a list. */
int denylist_open(struct loop *l, struct redis *r, const char *prefix, void (*on_change)(void *arg),
		  void *arg, struct denylist **ret) MUST_CHECK;
void denylist_close(struct denylist *d);
/* Redis answers (again): look now. */
void denylist_refresh(struct denylist *d);
bool denylist_has_agent(const struct denylist *d, const char *agent_id);
bool denylist_has_fingerprint(const struct denylist *d, const char *hex);
