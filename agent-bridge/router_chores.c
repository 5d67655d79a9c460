/*
 * What the router does beside routing: it ends what is past its time, and drops from the streams
 * what every group has acknowledged, one stream after another.
 */
#include "router_internal.h"

#include <stdio.h>

#include "base/crash.h"
#include "base/log.h"
#include "bridge_metrics.h"

#define EXPIRE_BATCH 64
#define TRIM_IDLE_MS 10000

/* Who must have acknowledged before an entry goes. */
static const struct trimmed {
	const char *stream, *groups[2];
} trimmed[ROUTER_TRIMMED] = {
    {"commands", {"agent-bridge", "results-writer"}},
    {"command_results", {"results-writer"}},
    {"command_events", {"results-writer"}},
    {"dead_letters", {"results-writer"}},
    {"agent_hello", {"telemetry-writer"}},
    {"agent_events", {"telemetry-writer"}},
    {"telemetry", {"telemetry-writer"}},
};

/* ---- expiry ---- */

void router_expire_in(struct router *r, int64_t ms)
{
	if (ms > ROUTER_EXPIRE_MAX_WAIT_MS)
		ms = ROUTER_EXPIRE_MAX_WAIT_MS;
	loop_timer_start(r->expire, ms < 0 ? 0 : ms + 1, 0);
}

static void expire_answered(struct router *r, const struct redis_reply *reply)
{
	int64_t next_ms = redis_int(redis_at(reply, 0)), ended = redis_int(redis_at(reply, 1));
	char agent[AGENT_ID_MAX + 1];

	r->expiring = false;
	if (router_is_fenced(reply)) {
		router_step_down(r, "fenced");
		return;
	}
	if (redis_type(reply) != REDIS_ARR) {
		store_note_refused(r->store, STORE_REFUSED_ENDING, NULL, reply);
		router_expire_in(r, 1000);
		return;
	}
	store_note_offers(r->store, redis_at(reply, 2), redis_at(reply, 3));
	metric_add(metrics_get(r->metrics, M_commands_routed, "expired", NULL), (uint64_t)ended);
	for (size_t i = 4; r->dispatch && i < redis_len(reply); i++)
		if (span_copy(redis_str(redis_at(reply, i)), agent, sizeof(agent)) == 0)
			dispatch_poke(r->dispatch, agent);
	/* Without deadlines the next ROUTE starts the timer; a slow look stays, should one be
	 * missed. */
	router_expire_in(r, next_ms >= 0 ? next_ms : ROUTER_EXPIRE_MAX_WAIT_MS);
}

void router_on_expire_timer(void *arg)
{
	struct router *r = arg;
	char count[8];
	struct span argv[] = {span_of(store_prefix(r->store)),
			      span_of(r->lease),
			      span_of(store_bridge_id(r->store)),
			      store_now_text(r->store),
			      store_offers(r->store),
			      {0}};

	if (!r->leader || r->expiring)
		return;
	(void)snprintf(count, sizeof(count), "%d", EXPIRE_BATCH);
	argv[5] = span_of(count);
	CRASH_POINT("router.before_expire");
	r->expiring = !router_must_tell(r) &&
		      router_eval(r, SCRIPT_expire, expire_answered, ARRAY_LEN(argv), argv) == 0;
	if (!r->expiring)
		router_expire_in(r, 1000);
}

/* ---- trimming: one stream after another ---- */

static void trim_next(struct router *r);

static void trim_answered(struct router *r, const struct redis_reply *reply)
{
	struct span word = redis_str(redis_at(reply, 0));
	bool missing = span_eq(word, "no_group");
	bool refused = redis_error_is_lasting(redis_error_class(reply));
	const struct trimmed *t = &trimmed[r->trim_at];

	if (router_is_fenced(reply)) {
		router_step_down(r, "fenced");
		return;
	}
	if (missing && !r->trim_missing[r->trim_at])
		LOG_WARN(FIELDS(.event = "trim_refused", .stream = t->stream,
				.detail = redis_str(redis_at(reply, 1)).p),
			 "a consumer group is missing; its stream is not trimmed");
	if (refused && !r->trim_missing[r->trim_at])
		LOG_WARN(FIELDS(.event = "trim_refused", .stream = t->stream,
				.error = redis_str(reply).p),
			 "Redis refuses to look after a stream; it is not trimmed");
	r->trim_missing[r->trim_at] = missing || refused;
	if (redis_int(redis_at(reply, 1)) > 0)
		r->trim_busy_until_ms = loop_now_ms(r->loop) + ROUTER_TRIM_BUSY_FOR_MS;
	if (span_eq(word, "trimmed"))
		metric_add(metrics_get(r->metrics, M_trimmed, t->stream, NULL),
			   (uint64_t)redis_int(redis_at(reply, 1)));
	r->trim_at++;
	trim_next(r);
}

static void trim_next(struct router *r)
{
	const struct trimmed *t = &trimmed[r->trim_at];
	struct span argv[5];
	size_t n = 3;

	r->trimming = r->trim_at < ARRAY_LEN(trimmed);
	if (r->trimming) {
		argv[0] = span_of(store_prefix(r->store));
		argv[1] = span_of(r->lease);
		argv[2] = span_of(t->stream);
		for (size_t i = 0; i < ARRAY_LEN(t->groups) && t->groups[i]; i++)
			argv[n++] = span_of(t->groups[i]);
		r->trimming = router_eval(r, SCRIPT_trim, trim_answered, n, argv) == 0;
	}
	if (!r->trimming)
		loop_timer_start(r->trim,
				 loop_now_ms(r->loop) < r->trim_busy_until_ms ? ROUTER_TRIM_BUSY_MS
									      : TRIM_IDLE_MS,
				 0);
}

void router_on_trim_timer(void *arg)
{
	struct router *r = arg;

	if (!r->leader)
		return;
	r->pending = true; /* without a pause in the traffic nothing else would look */
	r->trim_at = 0;
	trim_next(r);
}
