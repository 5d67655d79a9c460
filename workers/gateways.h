/*
 * Gateways, their connections and their events: what a batch's hellos, events and telemetry say,
 * folded to one row an agent.
 *
 * status: `online` while the newest connection known has not ended; a connection ends by its
 * `disconnected` event or by its bridge's lapsed lease (lease.c). A lapsed one that is heard of
 * again is online again. `decommissioned` is an operator's word and stays.
 *
 * Locks: rows of os_gateways first, in order of agent_id; the rows of agent_sessions touched then
 * all belong to agents whose row is held.
 */
#pragma once

#include "arena.h"
#include "columns.h"
#include "origin.h"
#include "wire/wire.h"

struct fact;
struct gateways {
	struct fact *fact;
	size_t n, cap;
	bool sessions; /* one of them begins or ends a connection */
	struct arena arena;
	struct wire_decoder *decoder;
	struct columns gateway, session, superseded, event;
	uint64_t wrote_gateways, wrote_sessions, wrote_events;
	int64_t day_min, day_max; /* of staged events, days since 1970; min > max: none */
};

int gateways_init(struct gateways *g) MUST_CHECK;
void gateways_fini(struct gateways *g);
void gateways_clear(struct gateways *g);
/* Each returns NULL or the reason of a dead letter. */
const char *gateways_stage_hello(struct gateways *g, const struct stream_entry *e);
const char *gateways_stage_event(struct gateways *g, const struct stream_entry *e);
/* A frame was received: the gateway lives. o must live until clear. */
const char *gateways_stage_seen(struct gateways *g, const struct origin *o);
/* Makes the rows of what was staged. True: did so; flush does it otherwise. */
bool gateways_fold(struct gateways *g);
enum pg_verdict gateways_flush(struct gateways *g, struct pg *p) MUST_CHECK;
