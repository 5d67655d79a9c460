/* What router.c and router_chores.c share. */
#pragma once

#include "command.h"
#include "dispatch.h"
#include "router.h"
#include "store.h"

#include "base/metrics.h"
#include "loop/loop.h"

#define ROUTER_BATCH		  64
#define ROUTER_TRIMMED		  7 /* streams */
#define ROUTER_EXPIRE_MAX_WAIT_MS 10000
#define ROUTER_TRIM_BUSY_MS	  2000
#define ROUTER_TRIM_BUSY_FOR_MS	  15000 /* after the last command routed or entry trimmed */

enum router_step { IDLE, READING, ROUTING, WAITING, PAUSED };

struct router {
	struct loop *loop;
	struct store *store;
	struct dispatch *dispatch;
	struct redis *wait; /* blocked in XREAD */
	struct store_part part;
	struct allowlist allowed;

	bool leader, lease_asked;
	bool back, back_told; /* Redis may have forgotten: the next lease says so; this one did */
	char token[24], lease[160];
	enum router_step step;
	bool pending; /* entries read and not yet routed come first */
	bool wait_asked;
	char last_id[48];
	bool expiring, trimming;
	size_t trim_at;
	int64_t trim_busy_until_ms;
	bool trim_missing[ROUTER_TRIMMED];
	struct loop_timer *tick, *pause, *expire, *trim;
	uint64_t term; /* rises with each loss of the lease */
	size_t calls;
	bool closed;
	struct metric *m_leader;
	struct metrics *metrics;

	struct command batch[ROUTER_BATCH];
	char batch_id[ROUTER_BATCH][48];
	size_t batch_n;
};

/* ---- router.c ---- */
/* -errno: answered is not called. It is not called either when the lease was lost meanwhile. */
int router_eval(struct router *r, enum script s,
		void (*answered)(struct router *, const struct redis_reply *), size_t argc,
		const struct span *argv) MUST_CHECK;
bool router_is_fenced(const struct redis_reply *reply);
void router_step_down(struct router *r, const char *why);
/* Nothing is routed or ended before Redis was told what it may have forgotten. */
bool router_must_tell(const struct router *r);

/* ---- router_chores.c ---- */
void router_expire_in(struct router *r, int64_t ms);
/* Callbacks of the timers expire and trim, arg the router. */
void router_on_expire_timer(void *arg);
void router_on_trim_timer(void *arg);
