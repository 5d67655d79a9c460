/*
 * The one router among all bridges: holds the fenced lease `router`, reads viw.commands, ROUTEs
 * each entry into its agent's mailbox, ends what expired unoffered, trims streams behind the
 * slowest group. Every bridge runs this; the lease decides who works.
 */
#pragma once

#include "base/macros.h"
#include "store.h"

struct router;
struct dispatch;
struct router_config {
	const char *redis_url, *prefix, *bridge_id;
	const char *allowed_agent_ids; /* CSV or NULL */
	struct dispatch *dispatch;     /* told of this bridge's own agents at once; may be NULL */
};
int router_open(struct loop *l, struct metrics *m, struct store *s, const struct router_config *cfg,
		struct router **ret) MUST_CHECK;
/* Gives the lease back at once, so that another takes over without waiting. */
void router_close(struct router *r); /* before dispatch_close and store_close */
/* The allowlist was reloaded. -ENOMEM: the old one stays. */
int router_set_allowed(struct router *r, const char *csv) MUST_CHECK;
bool router_is_leader(const struct router *r);
