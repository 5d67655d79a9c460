/* See fleet.h. */
#include "fleet.h"

#include <stdlib.h>

#include "base/clock.h"
#include "worker_metrics.h"

enum {
	EVERY_MS = 60000,
	REST_TIMES = 100, /* it reads the whole fleet: at most a hundredth of the time */
};

static const struct pg_stmt by_status = {
    "fleet_status", "SELECT s, count(g.*) FROM unnest(array['expected', 'online', 'offline', "
		    "'decommissioned']) s LEFT JOIN os_gateways g ON g.status = s GROUP BY s"};

/* What agents say may be anything: a path compares what are numbers and fails on nothing. */
static const struct pg_stmt reported = {
    "fleet_reported",
    "SELECT count(*) FILTER (WHERE g.status = 'online' AND s.metrics ->> 'helper' = 'down'), "
    "count(*) FILTER (WHERE s.metrics @? '$.cert_days_left ? (@.client < 30 || "
    "@.trust_bundle < 30 || @.backend < 30)') "
    "FROM os_gateways g JOIN os_gateway_status s USING (agent_id) WHERE g.status <> "
    "'decommissioned'"};

/* Of the last day, for gateways that are older than it: connected seconds over a day, the worst
 * gateway and the mean of all. Overlapping connections (a take-over) count once at most in sum. */
static const struct pg_stmt uptime = {
    "fleet_uptime",
    "WITH s AS (SELECT agent_id, connected_at, now() AS until FROM agent_sessions "
    "WHERE disconnected_at IS NULL UNION ALL SELECT agent_id, connected_at, disconnected_at FROM "
    "agent_sessions WHERE disconnected_at > now() - interval '1 day') "
    "SELECT min(up), avg(up) FROM (SELECT least(1, coalesce(sum(extract(epoch FROM "
    "s.until - greatest(s.connected_at, now() - interval '1 day'))), 0) / 86400) AS up "
    "FROM os_gateways g LEFT JOIN s ON s.agent_id = g.agent_id AND s.connected_at IS NOT NULL "
    "WHERE g.status IN ('online', 'offline') AND g.first_seen < now() - interval '1 day' "
    "GROUP BY g.agent_id) u"};

static void set(struct worker *w, int metric, const char *label, double value)
{
	metric_set(metrics_get(worker_metrics_of(w), metric, label, NULL), value);
}

static enum pg_verdict measure(struct worker *w)
{
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), &by_status, 0, NULL, &rows);

	for (size_t i = 0; v == PG_OK && i < pg_rows_len(rows); i++)
		set(w, M_gateways, pg_rows_text(rows, i, 0).p, (double)pg_rows_int(rows, i, 1));
	pg_rows_free(rows);
	rows = NULL;
	if (v == PG_OK)
		v = pg_exec(worker_pg(w), &reported, 0, NULL, &rows);
	if (v == PG_OK) {
		set(w, M_helper_down, NULL, (double)pg_rows_int(rows, 0, 0));
		set(w, M_certificate_ends, NULL, (double)pg_rows_int(rows, 0, 1));
	}
	pg_rows_free(rows);
	rows = NULL;
	if (v == PG_OK)
		v = pg_exec(worker_pg(w), &uptime, 0, NULL, &rows);
	for (size_t i = 0; v == PG_OK && i < 2; i++) {
		struct span text = pg_rows_text(rows, 0, i); /* NULL: no gateway is a day old */
		set(w, M_uptime, i == 0 ? "worst" : "mean", text.p ? strtod(text.p, NULL) : 1);
	}
	pg_rows_free(rows);
	return v;
}

void fleet_chore(struct fleet *f, struct worker *w, int64_t now_ms)
{
	if (now_ms < f->next_ms)
		return;
	enum pg_verdict v = measure(w);
	int64_t rest_ms = REST_TIMES * (clock_boot_ms() - now_ms);
	f->next_ms = now_ms + (rest_ms > EVERY_MS ? rest_ms : EVERY_MS);
	if (v != PG_OK)
		worker_pg_failed(w, "fleet", v);
}
