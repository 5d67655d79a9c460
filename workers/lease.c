#include "lease.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "worker_metrics.h"

enum { EVERY_MS = 2000, GRACE_MS = 10000, BRIDGES_MAX = 256, ID_MAX = 128 };

struct bridge {
	char id[ID_MAX + 1];
	int64_t missing_since_ms; /* 0: there */
	int64_t started_ms;	  /* last seen in its key */
};
struct lease {
	char *prefix;
	struct bridge bridge[BRIDGES_MAX];
	size_t n;
	int64_t next_ms;
};

/* One step in the index a bridge, however many gateways it has. */
static const struct pg_stmt list = {
    "lease_list",
    "WITH RECURSIVE g (id) AS ((SELECT bridge_id FROM os_gateways WHERE status = 'online' "
    "ORDER BY bridge_id LIMIT 1) UNION ALL SELECT (SELECT o.bridge_id FROM os_gateways o "
    "WHERE o.status = 'online' AND o.bridge_id > g.id ORDER BY o.bridge_id LIMIT 1) "
    "FROM g WHERE g.id IS NOT NULL), "
    "s (id) AS ((SELECT bridge_id FROM agent_sessions WHERE disconnected_at IS NULL "
    "ORDER BY bridge_id LIMIT 1) UNION ALL SELECT (SELECT a.bridge_id FROM agent_sessions a "
    "WHERE a.disconnected_at IS NULL AND a.bridge_id > s.id ORDER BY a.bridge_id LIMIT 1) "
    "FROM s WHERE s.id IS NOT NULL) "
    "SELECT id FROM g WHERE id IS NOT NULL UNION SELECT id FROM s WHERE id IS NOT NULL LIMIT 256"};
/* Locked in the order the writers lock: agents first, by id. */
static const struct pg_stmt close_bridge = {
    "lease_close",
    "WITH gone AS (SELECT agent_id FROM os_gateways WHERE bridge_id = $1 AND epoch < $2::bigint "
    "AND status = 'online' ORDER BY agent_id FOR UPDATE), "
    "off AS (UPDATE os_gateways g SET status = 'offline' FROM gone WHERE g.agent_id = "
    "gone.agent_id "
    "RETURNING 1), "
    "ended AS (UPDATE agent_sessions SET disconnected_at = now(), close_reason = $3 "
    "WHERE bridge_id = $1 AND epoch < $2::bigint AND disconnected_at IS NULL RETURNING 1) "
    "SELECT (SELECT count(*) FROM off), (SELECT count(*) FROM ended)"};

int lease_new(const char *prefix, struct lease **ret)
{
	struct lease *l = calloc(1, sizeof *l);

	if (l)
		l->prefix = strdup(prefix);
	if (!l || !l->prefix) {
		free(l);
		return -ENOMEM;
	}
	*ret = l;
	return 0;
}

void lease_free(struct lease *l)
{
	if (!l)
		return;
	free(l->prefix);
	free(l);
}

static struct bridge *lease_bridge(struct lease *l, struct span id)
{
	for (size_t i = 0; i < l->n; i++)
		if (span_eq(id, l->bridge[i].id))
			return &l->bridge[i];
	if (l->n == BRIDGES_MAX)
		l->n = 0; /* names come and go; what is forgotten is only a grace begun */
	struct bridge *b = &l->bridge[l->n];
	*b = (struct bridge){0};
	if (span_copy(id, b->id, sizeof b->id) < 0)
		return NULL;
	l->n++;
	return b;
}

static enum pg_verdict lease_close(struct worker *w, const struct bridge *b, int64_t below_epoch,
				   const char *reason)
{
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_TEXT, .text = span_of(b->id)},
	    {.kind = PG_PARAM_INT8, .int8 = below_epoch},
	    {.kind = PG_PARAM_TEXT, .text = span_of(reason)},
	};
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), &close_bridge, ARRAY_LEN(param), param, &rows);

	if (v != PG_OK) {
		worker_pg_failed(w, "lease", v);
		return v;
	}
	uint64_t off = (uint64_t)pg_rows_int(rows, 0, 0), ended = (uint64_t)pg_rows_int(rows, 0, 1);
	pg_rows_free(rows);
	worker_count_rows(w, "os_gateways", off);
	worker_count_rows(w, "agent_sessions", ended);
	metric_add(metrics_get(worker_metrics_of(w), M_offline, NULL, NULL), off);
	if (off || ended)
		LOG_WARN(FIELDS(.event = "bridge_lapsed", .error = reason, .detail = b->id,
				.has_count = true, .count = (int64_t)off),
			 "gateways of a bridge that ended without a word are offline");
	return v;
}

/* 1 there, 0 gone, -errno unknown. */
static int lease_look(const struct lease *l, struct worker *w, struct bridge *b,
		      int64_t *ret_started_ms)
{
	char key[256];
	int error;

	snprintf(key, sizeof key, "%s.bridge.%s", l->prefix, b->id);
	const struct span argv[] = {SPAN("GET"), span_of(key)};
	const struct redis_reply *r =
	    redis_sync_cmd(intake_control(worker_intake(w)), &error, ARRAY_LEN(argv), argv);
	if (!r)
		return error;
	if (redis_type(r) == REDIS_NIL)
		return 0;
	if (redis_type(r) != REDIS_STR)
		return -EAGAIN;
	struct span text = redis_str(r);
	const char *bar = memchr(text.p, '|', text.n);
	if (!bar || json_int((struct span){text.p, (size_t)(bar - text.p)}, ret_started_ms) < 0)
		*ret_started_ms = 0;
	return 1;
}

static void lease_check(const struct lease *l, struct worker *w, struct bridge *b, int64_t now_ms)
{
	int64_t started_ms = 0;
	int there = lease_look(l, w, b, &started_ms);

	if (there < 0)
		return;
	if (there) {
		b->missing_since_ms = 0;
		if (started_ms && started_ms != b->started_ms &&
		    lease_close(w, b, started_ms, "bridge_restarted") == PG_OK)
			b->started_ms = started_ms;
		return;
	}
	if (!b->missing_since_ms)
		b->missing_since_ms = now_ms;
	if (now_ms - b->missing_since_ms >= GRACE_MS)
		(void)lease_close(w, b, INT64_MAX, "bridge_lost");
}

void lease_chore(struct lease *l, struct worker *w, int64_t now_ms)
{
	struct pg_rows *rows = NULL;

	if (now_ms < l->next_ms)
		return;
	l->next_ms = now_ms + EVERY_MS;
	enum pg_verdict v = pg_exec(worker_pg(w), &list, 0, NULL, &rows);
	if (v != PG_OK) {
		worker_pg_failed(w, "lease", v);
		return;
	}
	for (size_t i = 0; i < pg_rows_len(rows); i++) {
		struct bridge *b = lease_bridge(l, pg_rows_text(rows, i, 0));
		if (b)
			lease_check(l, w, b, now_ms);
	}
	pg_rows_free(rows);
}
