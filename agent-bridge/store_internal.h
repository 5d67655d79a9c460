/* What store.c and store_telemetry.c share. */
#pragma once

#include "backlog.h"
#include "ops.h"
#include "store.h"

#include "base/clock.h"
#include "base/ident.h"
#include "base/log_limit.h"
#include "base/metrics.h"
#include "loop/loop.h"

struct store {
	struct loop *loop;
	const struct store_ops *socket;
	void *arg;
	struct redis *redis, *wake;
	struct ops ops;
	struct store_part *parts;
	char prefix[64], bridge_id[128], instance[UUID_LEN + 1], started[24];
	int64_t offers; /* -1: not told yet */
	char offers_text[24];

	bool up, impaired, pressed, first_up_done;
	bool readonly; /* impaired by it: a failover may have moved the writable server */
	bool forgets;  /* since it was up last */
	int64_t up_since_ms;
	char reason[192];
	struct loop_timer *probe, *lease, *drain, *wake_again;
	void (*drained)(void *arg);
	void *drained_arg;
	int64_t drain_until_ms;

	/* store_telemetry.c */
	struct store_head { /* telemetry's XADD up to the agent's id */
		char text[256];
		size_t n;
	} head, head_trim; /* the second with MAXLEN */
	uint64_t heads_put;
	struct backlog backlog;
	struct log_limit refused[STORE_REFUSALS];
	uint64_t telemetry_sent, sample_us; /* sample_us 0: none under way */
	/* Bytes written and not yet marked, how many a mark comes at, how many one is asked for. */
	uint64_t unmarked, mark_due, marking;
	int64_t telemetry_max_bytes;

	int64_t now_ms;
	char now_text[CLOCK_RFC3339_LEN + 1];

	struct metric *m_up, *m_reply, *m_drop_away, *m_drop_full;
};

/* ---- store.c ---- */
/* A write has succeeded. */
void store_note_success(struct store *s);
/* Sends what waits, kept writes first. */
void store_pump(struct store *s);
/* Is the drain over? The last thing its callers do: the owner closes the store. */
void store_drain_check(struct store *s);

/* ---- store_telemetry.c ---- */
void store_telemetry_init(struct store *s, const struct store_config *cfg);
void store_telemetry_fini(struct store *s);
/* Sends what waits, at most so many. */
void store_telemetry_pump(struct store *s, size_t max);
