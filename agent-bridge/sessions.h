/*
 * All sessions of this bridge: by sid (never reused), by agent id (the claimed one), and pages of
 * them in order of agent id. Owns them, their rings and the rings' budgets.
 */
#pragma once

#include "session.h"

struct sessions {
	struct session *first, *last; /* in order of sid */
	size_t all;		      /* how many, with those closing */
	struct rings rings, results;  /* each with a budget of its own */
	size_t held_bytes;
	/* heartbeat.c: when each is to be looked at (boot clock), beside each other, so that a walk
	 * over those of whom nothing is due reads no session. Those before at have had their turn
	 * in this round; at is less than all, but for none. */
	struct session_beat {
		int64_t look_ms;
		struct session *s;
	} * beats; /* `all` of them */
	size_t beats_cap, at;
	int64_t ticked_ms; /* 0: not yet */
	uint64_t last_sid;
	struct session **by_sid, **by_agent; /* hash tables */
	size_t buckets;
};

int sessions_init(struct sessions *all, size_t ring_frames, size_t ring_bytes) MUST_CHECK;
void sessions_fini(struct sessions *all); /* frees those left */

/* A new one, CLAIMING, with its sid and conn_id. -ENOMEM. */
int sessions_add(struct sessions *all, const char *agent_id, const char *ip,
		 struct session **ret) MUST_CHECK;
/* Frees it. */
void sessions_remove(struct sessions *all, struct session *s);
struct session *sessions_find(const struct sessions *all, uint64_t sid);

/* Makes s the agent's one; its former one, which is returned or NULL, gives s its ring and last
 * result. */
struct session *sessions_claim(struct sessions *all, struct session *s);
struct session *sessions_by_agent(const struct sessions *all, const char *agent_id);

/* The first `cap` open claimed sessions whose agent_id sorts after `after` ("" for the first page).
 * *ret_more says whether there are further ones. Stable while agents come and go. */
size_t sessions_page(const struct sessions *all, const char *after, struct session **out,
		     size_t cap, bool *ret_more);
