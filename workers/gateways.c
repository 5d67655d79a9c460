#include "gateways.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"

enum fact_kind { FACT_HELLO, FACT_CONNECTED, FACT_DISCONNECTED, FACT_AUDIT, FACT_SEEN };

struct fact {
	enum fact_kind kind;
	size_t order; /* in the batch */
	struct origin o;
	struct span reason;
	/* Of a HELLO: */
	struct span version, hostname, site, labels, capabilities, verbs;
};

/* ---- statements ---- */

/* A row that would only move last_seen by seconds is not touched at all, not even locked: that
 * keeps telemetry from writing two more rows a frame. */
static const struct pg_stmt upsert_gateways = {
    "gateways",
    "WITH u AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], "
    "$4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[], $9::text[], "
    "$10::text[], $11::text[], $12::jsonb[], $13::jsonb[], $14::jsonb[], $15::boolean[]) "
    "AS u (agent_id, epoch, disc, bridge_id, conn_id, ip, first_seen, seen, version, hostname, "
    "site, labels, capabilities, verbs, must)), up AS ("
    "INSERT INTO os_gateways AS g (agent_id, epoch, disconnected_epoch, bridge_id, conn_id, ip, "
    "first_seen, last_seen, version, hostname, site, labels, capabilities, supported_verbs, "
    "reported_site, reported_labels, status) "
    "SELECT u.agent_id, u.epoch, u.disc, u.bridge_id, u.conn_id, u.ip, u.first_seen, u.seen, "
    "u.version, u.hostname, u.site, u.labels, u.capabilities, u.verbs, u.site, u.labels, "
    "CASE WHEN u.epoch > COALESCE(u.disc, -1) THEN 'online' ELSE 'offline' END "
    "FROM u LEFT JOIN os_gateways o ON o.agent_id = u.agent_id "
    "WHERE o.agent_id IS NULL OR u.must OR u.epoch > COALESCE(o.epoch, -1) "
    "OR (u.epoch = o.epoch AND (o.last_seen IS NULL OR o.last_seen < u.seen - interval '15 s' "
    "OR (o.status IN ('offline', 'expected') AND u.epoch > COALESCE(o.disconnected_epoch, -1) "
    "AND u.seen > now() - interval '20 s'))) "
    "ORDER BY u.agent_id COLLATE \"C\" "
    "ON CONFLICT (agent_id) DO UPDATE SET "
    "epoch = GREATEST(g.epoch, excluded.epoch), "
    "disconnected_epoch = GREATEST(g.disconnected_epoch, excluded.disconnected_epoch), "
    "bridge_id = CASE WHEN excluded.epoch < g.epoch THEN g.bridge_id "
    "ELSE COALESCE(excluded.bridge_id, g.bridge_id) END, "
    "conn_id = CASE WHEN excluded.epoch < g.epoch THEN g.conn_id "
    "ELSE COALESCE(excluded.conn_id, g.conn_id) END, "
    "ip = CASE WHEN excluded.epoch < g.epoch THEN g.ip ELSE COALESCE(excluded.ip, g.ip) END, "
    "first_seen = COALESCE(g.first_seen, excluded.first_seen), "
    "last_seen = GREATEST(g.last_seen, excluded.last_seen), "
    /* HELLO always has a version: its absence says there was none. */
    "version = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch THEN g.version "
    "ELSE excluded.version END, "
    "hostname = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch THEN g.hostname "
    "ELSE COALESCE(excluded.hostname, g.hostname) END, "
    "capabilities = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "THEN g.capabilities ELSE excluded.capabilities END, "
    "supported_verbs = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "THEN g.supported_verbs ELSE COALESCE(excluded.supported_verbs, g.supported_verbs) END, "
    /* What a person wrote differs from what was reported, and stays. */
    "site = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "OR g.site IS DISTINCT FROM g.reported_site THEN g.site ELSE excluded.site END, "
    "reported_site = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "THEN g.reported_site ELSE excluded.reported_site END, "
    "labels = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "OR g.labels IS DISTINCT FROM g.reported_labels THEN g.labels ELSE excluded.labels END, "
    "reported_labels = CASE WHEN excluded.version IS NULL OR excluded.epoch < g.epoch "
    "THEN g.reported_labels ELSE excluded.reported_labels END, "
    "status = CASE WHEN g.status = 'decommissioned' OR excluded.epoch < g.epoch THEN g.status "
    "WHEN GREATEST(g.epoch, excluded.epoch) > "
    "GREATEST(COALESCE(g.disconnected_epoch, -1), COALESCE(excluded.disconnected_epoch, -1)) "
    "THEN 'online' ELSE 'offline' END "
    "RETURNING g.agent_id), hb AS ("
    "UPDATE agent_sessions s SET last_heartbeat_at = GREATEST(s.last_heartbeat_at, u.seen), "
    "disconnected_at = NULL, close_reason = NULL "
    "FROM up JOIN u ON u.agent_id = up.agent_id WHERE s.conn_id = u.conn_id "
    "AND (s.disconnected_at IS NULL OR (s.close_reason = 'bridge_lost' AND u.seen > "
    "s.disconnected_at)) "
    "RETURNING 1) "
    "SELECT (SELECT count(*) FROM up), (SELECT count(*) FROM hb)"};
enum {
	G_AGENT,
	G_EPOCH,
	G_DISC,
	G_BRIDGE,
	G_CONN,
	G_IP,
	G_FIRST,
	G_SEEN,
	G_VERSION,
	G_HOSTNAME,
	G_SITE,
	G_LABELS,
	G_CAPABILITIES,
	G_VERBS,
	G_MUST
};
#define GATEWAY_TYPES "tlltttzztttjjjb"

static const struct pg_stmt upsert_sessions = {
    "sessions",
    "INSERT INTO agent_sessions AS s (conn_id, agent_id, bridge_id, epoch, ip, connected_at, "
    "last_heartbeat_at, disconnected_at, close_reason) "
    "SELECT u.conn_id, u.agent_id, u.bridge_id, u.epoch, u.ip, u.connected_at, u.seen, "
    "u.disconnected_at, u.reason "
    "FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::timestamptz[], "
    "$7::timestamptz[], $8::timestamptz[], $9::text[]) AS u (conn_id, agent_id, bridge_id, epoch, "
    "ip, connected_at, seen, disconnected_at, reason) ORDER BY u.conn_id COLLATE \"C\" "
    "ON CONFLICT (conn_id) DO UPDATE SET "
    "connected_at = COALESCE(s.connected_at, excluded.connected_at), "
    "last_heartbeat_at = GREATEST(s.last_heartbeat_at, excluded.last_heartbeat_at), "
    "disconnected_at = COALESCE(excluded.disconnected_at, s.disconnected_at), "
    "close_reason = CASE WHEN excluded.disconnected_at IS NULL THEN s.close_reason "
    "ELSE excluded.close_reason END"};
enum { S_CONN, S_AGENT, S_BRIDGE, S_EPOCH, S_IP, S_CONNECTED, S_SEEN, S_DISCONNECTED, S_REASON };
#define SESSION_TYPES "tttltzzzt"

/* A newer connection ends what is left open of older ones, whose bridge may have died silently. */
static const struct pg_stmt close_superseded = {
    "superseded",
    "UPDATE agent_sessions s SET disconnected_at = GREATEST(u.at, s.connected_at), "
    "close_reason = 'superseded' "
    "FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS u (agent_id, epoch, at) "
    "WHERE s.agent_id = u.agent_id AND s.epoch < u.epoch AND s.disconnected_at IS NULL"};
#define SUPERSEDED_TYPES "tlz"

static const struct pg_stmt insert_events = {
    "events",
    "INSERT INTO agent_events (at, entry_id, agent_id, event, reason, conn_id, bridge_id, epoch, "
    "ip, frame) SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], "
    "$5::text[], $6::text[], $7::text[], $8::bigint[], $9::text[], $10::jsonb[]) "
    "ON CONFLICT (at, entry_id) DO NOTHING"};
enum { E_AT, E_ENTRY, E_AGENT, E_EVENT, E_REASON, E_CONN, E_BRIDGE, E_EPOCH, E_IP, E_FRAME };
#define EVENT_TYPES "zttttttltj"

/* ---- staging ---- */

int gateways_init(struct gateways *g)
{
	*g = (struct gateways){0};
	arena_init(&g->arena);
	int r = wire_decoder_new(WIRE_MAX_FRAME_BYTES_MOST, &g->decoder);
	if (r == 0)
		r = columns_init(&g->gateway, GATEWAY_TYPES);
	if (r == 0)
		r = columns_init(&g->session, SESSION_TYPES);
	if (r == 0)
		r = columns_init(&g->superseded, SUPERSEDED_TYPES);
	if (r == 0)
		r = columns_init(&g->event, EVENT_TYPES);
	if (r < 0)
		gateways_fini(g);
	else
		gateways_clear(g);
	return r;
}

void gateways_fini(struct gateways *g)
{
	wire_decoder_free(g->decoder);
	columns_fini(&g->gateway);
	columns_fini(&g->session);
	columns_fini(&g->superseded);
	columns_fini(&g->event);
	arena_fini(&g->arena);
	free(g->fact);
	*g = (struct gateways){0};
}

void gateways_clear(struct gateways *g)
{
	g->n = 0;
	g->sessions = false;
	arena_clear(&g->arena);
	columns_clear(&g->gateway);
	columns_clear(&g->session);
	columns_clear(&g->superseded);
	columns_clear(&g->event);
	g->wrote_gateways = g->wrote_sessions = g->wrote_events = 0;
	g->day_min = INT64_MAX;
	g->day_max = INT64_MIN;
}

static struct fact *gateways_fact(struct gateways *g, enum fact_kind kind, const struct origin *o)
{
	if (grow(&g->fact, g->n, &g->cap, 64, sizeof *g->fact) < 0)
		return NULL;
	struct fact *f = &g->fact[g->n];
	*f = (struct fact){.kind = kind, .order = g->n, .o = *o};
	g->sessions |= kind == FACT_CONNECTED || kind == FACT_DISCONNECTED;
	g->n++;
	return f;
}

const char *gateways_stage_hello(struct gateways *g, const struct stream_entry *e)
{
	struct origin o;
	struct wire_frame f;
	struct wire_refusal_info info = {0};
	const char *bad = origin_parse(e, &o);

	if (bad)
		return bad;
	if (!o.frame.p ||
	    wire_decode(g->decoder, WIRE_FROM_AGENT, o.frame.p, o.frame.n, &f, &info) != WIRE_OK ||
	    f.type != WIRE_HELLO)
		return info.no_memory ? no_memory : "bad_frame";
	if (span_order(f.hello.agent_id, o.agent_id) != 0)
		return "agent_mismatch";
	struct fact *x = gateways_fact(g, FACT_HELLO, &o);
	if (!x)
		return no_memory;
	x->version = arena_copy(&g->arena, f.hello.version);
	x->hostname = arena_copy(&g->arena, f.hello.hostname);
	x->site = arena_copy(&g->arena, f.hello.site);
	x->labels = f.hello.labels;
	x->capabilities = f.hello.capabilities;
	x->verbs = f.hello.supported_verbs;
	return g->arena.err ? no_memory : NULL;
}

static const struct {
	const char *word;
	enum fact_kind kind;
} events[] = {
    {"connected", FACT_CONNECTED},
    {"disconnected", FACT_DISCONNECTED},
    {"audit", FACT_AUDIT},
};

const char *gateways_stage_event(struct gateways *g, const struct stream_entry *e)
{
	struct origin o;
	struct span event = stream_field(e, "event"), reason = stream_field(e, "reason");
	const char *bad = origin_parse(e, &o);
	size_t i = 0;

	if (bad)
		return bad;
	while (i < ARRAY_LEN(events) && !span_eq(event, events[i].word))
		i++;
	if (i == ARRAY_LEN(events))
		return "unknown_event";
	if (events[i].kind != FACT_AUDIT && !o.conn_id.n)
		return "bad_field";
	if (!origin_is_word(reason)) /* the end of a connection counts without it, too */
		reason = (struct span){0};
	struct json_fault fault;
	int valid = o.frame.n ? json_validate(o.frame.p, o.frame.n, WIRE_MAX_DEPTH, &fault) : 0;
	if (valid < 0)
		return valid == -ENOMEM ? no_memory : "bad_frame";
	struct fact *x = gateways_fact(g, events[i].kind, &o);
	if (!x)
		return no_memory;
	x->reason = reason;
	struct columns *c = &g->event;
	columns_int(c, E_AT, o.received_ms);
	columns_text(c, E_ENTRY, e->id);
	columns_text(c, E_AGENT, o.agent_id);
	columns_text(c, E_EVENT, event);
	columns_text(c, E_REASON, reason);
	columns_text(c, E_CONN, o.conn_id);
	columns_text(c, E_BRIDGE, o.bridge_id);
	columns_int(c, E_EPOCH, o.epoch);
	columns_text(c, E_IP, o.ip);
	columns_text(c, E_FRAME, o.frame.n ? o.frame : (struct span){0});
	int64_t day = o.received_ms / 86400000;
	g->day_min = day < g->day_min ? day : g->day_min;
	g->day_max = day > g->day_max ? day : g->day_max;
	return NULL;
}

const char *gateways_stage_seen(struct gateways *g, const struct origin *o)
{
	/* Frames of one agent in a row are one fact. */
	struct fact *last = g->n ? &g->fact[g->n - 1] : NULL;

	if (last && last->kind == FACT_SEEN && last->o.epoch == o->epoch &&
	    span_order(last->o.agent_id, o->agent_id) == 0) {
		if (o->received_ms > last->o.received_ms)
			last->o.received_ms = o->received_ms;
		return NULL;
	}
	return gateways_fact(g, FACT_SEEN, o) ? NULL : no_memory;
}

/* ---- folding ---- */

static int by_agent(const void *a, const void *b)
{
	const struct fact *x = a, *y = b;
	int r = span_order(x->o.agent_id, y->o.agent_id);

	return r ? r : (x->order > y->order) - (x->order < y->order);
}

static int by_conn(const void *a, const void *b)
{
	const struct fact *x = a, *y = b;
	int r = span_order(x->o.conn_id, y->o.conn_id);

	return r ? r : (x->order > y->order) - (x->order < y->order);
}

/* Facts [from, to) of one agent become one row. */
static void gateways_fold_agent(struct gateways *g, const struct fact *from, const struct fact *to)
{
	const struct fact *newest = from, *hello = NULL, *connected = NULL;
	int64_t disc = -1, first_ms = from->o.received_ms, seen_ms = first_ms;
	bool must = false;
	struct columns *c = &g->gateway;

	for (const struct fact *f = from; f < to; f++) {
		if (f->o.epoch >= newest->o.epoch)
			newest = f;
		if (f->kind == FACT_HELLO && (!hello || f->o.epoch >= hello->o.epoch))
			hello = f;
		if (f->kind == FACT_CONNECTED && (!connected || f->o.epoch >= connected->o.epoch))
			connected = f;
		if (f->kind == FACT_DISCONNECTED && f->o.epoch > disc)
			disc = f->o.epoch;
		must |= f->kind == FACT_HELLO || f->kind == FACT_CONNECTED ||
			f->kind == FACT_DISCONNECTED;
		if (f->o.received_ms < first_ms)
			first_ms = f->o.received_ms;
		if (f->o.received_ms > seen_ms)
			seen_ms = f->o.received_ms;
	}
	if (hello && hello->o.epoch < newest->o.epoch)
		hello = NULL; /* of a connection that is history */
	columns_text(c, G_AGENT, from->o.agent_id);
	columns_int(c, G_EPOCH, newest->o.epoch);
	columns_int_if(c, G_DISC, disc >= 0, disc);
	columns_text(c, G_BRIDGE, newest->o.bridge_id);
	columns_text(c, G_CONN, newest->o.conn_id);
	columns_text(c, G_IP, newest->o.ip);
	columns_int(c, G_FIRST, first_ms);
	columns_int(c, G_SEEN, seen_ms);
	columns_text(c, G_VERSION, hello ? hello->version : (struct span){0});
	columns_text(c, G_HOSTNAME, hello ? hello->hostname : (struct span){0});
	columns_text(c, G_SITE, hello ? hello->site : (struct span){0});
	columns_text(c, G_LABELS, hello ? hello->labels : (struct span){0});
	columns_text(c, G_CAPABILITIES, hello ? hello->capabilities : (struct span){0});
	columns_text(c, G_VERBS, hello ? hello->verbs : (struct span){0});
	columns_int(c, G_MUST, must);
	if (connected) {
		columns_text(&g->superseded, 0, from->o.agent_id);
		columns_int(&g->superseded, 1, connected->o.epoch);
		columns_int(&g->superseded, 2, connected->o.received_ms);
	}
}

static void gateways_fold_session(struct gateways *g, const struct fact *from,
				  const struct fact *to)
{
	const struct fact *on = NULL, *off = NULL;
	int64_t seen_ms = from->o.received_ms;
	struct columns *c = &g->session;

	for (const struct fact *f = from; f < to; f++) {
		if (f->kind == FACT_CONNECTED && !on)
			on = f;
		if (f->kind == FACT_DISCONNECTED && !off)
			off = f;
		if (f->o.received_ms > seen_ms)
			seen_ms = f->o.received_ms;
	}
	if (!on && !off)
		return;
	columns_text(c, S_CONN, from->o.conn_id);
	columns_text(c, S_AGENT, from->o.agent_id);
	columns_text(c, S_BRIDGE, from->o.bridge_id);
	columns_int(c, S_EPOCH, from->o.epoch);
	columns_text(c, S_IP, from->o.ip);
	columns_int_if(c, S_CONNECTED, on != NULL, on ? on->o.received_ms : 0);
	columns_int(c, S_SEEN, seen_ms);
	columns_int_if(c, S_DISCONNECTED, off != NULL, off ? off->o.received_ms : 0);
	columns_text(c, S_REASON, off ? off->reason : (struct span){0});
}

static void gateways_fold_sessions(struct gateways *g)
{
	qsort(g->fact, g->n, sizeof *g->fact, by_conn);
	for (size_t i = 0, j; i < g->n; i = j) {
		for (j = i + 1;
		     j < g->n && span_order(g->fact[j].o.conn_id, g->fact[i].o.conn_id) == 0;)
			j++;
		if (g->fact[i].o.conn_id.n)
			gateways_fold_session(g, g->fact + i, g->fact + j);
	}
}

bool gateways_fold(struct gateways *g)
{
	if (!g->n)
		return false;
	qsort(g->fact, g->n, sizeof *g->fact, by_agent);
	for (size_t i = 0, j; i < g->n; i = j) {
		for (j = i + 1;
		     j < g->n && span_order(g->fact[j].o.agent_id, g->fact[i].o.agent_id) == 0;)
			j++;
		gateways_fold_agent(g, g->fact + i, g->fact + j);
	}
	if (g->sessions)
		gateways_fold_sessions(g);
	g->n = 0; /* folded once, however often the transaction is tried */
	return true;
}

/* ---- writing ---- */

static enum pg_verdict gateways_write_rows(struct gateways *g, struct pg *p)
{
	struct pg_rows *rows = NULL;
	enum pg_verdict v = columns_exec(&g->gateway, p, &upsert_gateways, &rows);

	if (v == PG_OK && rows) {
		g->wrote_gateways = (uint64_t)pg_rows_int(rows, 0, 0);
		g->wrote_sessions = (uint64_t)pg_rows_int(rows, 0, 1);
	}
	pg_rows_free(rows);
	return v;
}

enum pg_verdict gateways_flush(struct gateways *g, struct pg *p)
{
	gateways_fold(g);
	enum pg_verdict v = gateways_write_rows(g, p);
	if (v == PG_OK)
		v = columns_exec(&g->session, p, &upsert_sessions, NULL);
	if (v == PG_OK)
		v = columns_exec(&g->superseded, p, &close_superseded, NULL);
	if (v == PG_OK)
		v = columns_exec(&g->event, p, &insert_events, NULL);
	if (v == PG_OK) {
		g->wrote_sessions += g->session.rows;
		g->wrote_events = g->event.rows;
	}
	return v;
}
