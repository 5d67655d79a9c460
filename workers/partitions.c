#include "partitions.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker_metrics.h"

enum {
	EVERY_MS = 3600000,
	AGAIN_MS = 60000,
	SIZE_EVERY_MS = 300000,
	DAY_MS = 86400000,
	SESSIONS_AT_ONCE = 5000,
	AT_ONCE_DAYS = 400, /* viw_make_partitions refuses more */
};

static const char *const table_name[PARTITIONS_TABLES] = {"os_gateway_metrics", "agent_events"};

struct partitions {
	struct partitions_config c;
	int64_t first[PARTITIONS_TABLES], last[PARTITIONS_TABLES]; /* days known to exist */
	int64_t next_ms, size_at_ms;
};

void partitions_forget(struct partitions *x)
{
	for (size_t i = 0; i < PARTITIONS_TABLES; i++) {
		x->first[i] = INT64_MAX;
		x->last[i] = INT64_MIN;
	}
}

int partitions_new(const struct partitions_config *c, struct partitions **ret)
{
	struct partitions *x = calloc(1, sizeof *x);

	if (!x)
		return -ENOMEM;
	x->c = *c;
	partitions_forget(x);
	*ret = x;
	return 0;
}

void partitions_free(struct partitions *x)
{
	free(x);
}

/* ---- ahead ---- */

static int64_t least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

enum pg_verdict partitions_ensure(struct partitions *x, struct pg *p, enum partitions_table t,
				  int64_t first, int64_t last)
{
	static const struct pg_stmt make = {
	    "partitions", "SELECT viw_make_partitions($1, DATE '1970-01-01' + $2::integer, "
			  "DATE '1970-01-01' + $3::integer)"};

	if (first > last || (first >= x->first[t] && last <= x->last[t]))
		return PG_OK;
	/* Known days stay one range, and today is one of them: a day years away is refused by
	 * itself, and cannot make those of its neighbours too far. */
	int64_t from = least(first, x->first[t]), to = most(last, x->last[t]);
	if (to - from > AT_ONCE_DAYS || x->first[t] > x->last[t]) {
		int64_t today = clock_wall_ms() / DAY_MS;
		from = least(first, today);
		to = most(last, today);
	}
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_TEXT, .text = span_of(table_name[t])},
	    {.kind = PG_PARAM_INT8, .int8 = from},
	    {.kind = PG_PARAM_INT8, .int8 = to},
	};
	enum pg_verdict v = pg_exec(p, &make, ARRAY_LEN(param), param, NULL);
	if (v == PG_OK) {
		x->first[t] = from;
		x->last[t] = to;
	}
	return v;
}

/* ---- retention ---- */

static enum pg_verdict drop_partition(struct pg *p, struct span parent, struct span child,
				      bool attached, bool pending)
{
	char sql[400];
	enum pg_verdict v = PG_OK;

	/* Names come from the catalog and match _[0-9]{8}; quoted all the same. */
	if (attached) {
		snprintf(sql, sizeof sql,
			 "ALTER TABLE public.\"" SPAN_FMT
			 "\" DETACH PARTITION viw_partitions.\"" SPAN_FMT "\" %s",
			 SPAN_ARG(parent), SPAN_ARG(child), pending ? "FINALIZE" : "CONCURRENTLY");
		v = pg_script(p, sql);
	}
	if (v != PG_OK)
		return v;
	snprintf(sql, sizeof sql, "DROP TABLE viw_partitions.\"" SPAN_FMT "\"", SPAN_ARG(child));
	return pg_script(p, sql);
}

static enum pg_verdict drop_old(struct partitions *x, struct worker *w, enum partitions_table t,
				int64_t keep_days)
{
	static const struct pg_stmt old = {
	    "partitions_old",
	    "SELECT parent, child, attached, detach_pending FROM viw_partition_days "
	    "WHERE parent = $1 AND (NOT attached OR detach_pending OR "
	    "day < (now() AT TIME ZONE 'UTC')::date - $2::integer) ORDER BY day"};
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_TEXT, .text = span_of(table_name[t])},
	    {.kind = PG_PARAM_INT8, .int8 = keep_days},
	};
	struct pg *p = worker_pg(w);
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(p, &old, ARRAY_LEN(param), param, &rows);

	if (v != PG_OK || !pg_rows_len(rows)) {
		pg_rows_free(rows);
		return v;
	}
	/* Detaching waits for whoever reads the table; telemetry must not wait long with it. */
	v = pg_script(p, "SET ROLE viw_retention; SET lock_timeout = '1s'");
	for (size_t i = 0; v == PG_OK && i < pg_rows_len(rows); i++) {
		struct span child = pg_rows_text(rows, i, 1);
		v = drop_partition(p, pg_rows_text(rows, i, 0), child,
				   span_eq(pg_rows_text(rows, i, 2), "t"),
				   span_eq(pg_rows_text(rows, i, 3), "t"));
		if (v == PG_OK)
			LOG_INFO(FIELDS(.event = "partition_dropped", .detail = child.p),
				 "a day past its retention was dropped");
	}
	pg_rows_free(rows);
	/* The role must not outlive this, whatever happened. */
	pg_tidy(p, "RESET ROLE; SET lock_timeout = '5s'");
	if (v != PG_OK && pg_is_connected(p))
		LOG_WARN(FIELDS(.event = "retention_failed", .error = pg_error(p)),
			 "an old partition could not be dropped; trying again");
	/* Days that are gone are made again when a late frame needs one. */
	partitions_forget(x);
	return v;
}

/* true: there may be more. */
static bool drop_sessions(struct partitions *x, struct worker *w, enum pg_verdict *ret)
{
	static const struct pg_stmt old = {
	    "sessions_old",
	    "DELETE FROM agent_sessions WHERE conn_id = ANY (ARRAY(SELECT conn_id FROM "
	    "agent_sessions WHERE disconnected_at < now() - make_interval(days => $1::integer) "
	    "ORDER BY disconnected_at LIMIT 5000 FOR UPDATE SKIP LOCKED))"};
	const struct pg_param param[] = {{.kind = PG_PARAM_INT8, .int8 = x->c.sessions_days}};
	struct pg_rows *rows = NULL;
	bool more = false;

	*ret = pg_exec(worker_pg(w), &old, ARRAY_LEN(param), param, &rows);
	if (*ret == PG_OK)
		more = pg_rows_affected(rows) == SESSIONS_AT_ONCE;
	pg_rows_free(rows);
	return more;
}

/* ---- watermarks ---- */

static enum pg_verdict measure_ahead(struct worker *w)
{
	static const struct pg_stmt ahead = {
	    "partitions_ahead", "SELECT parent, max(day) - (now() AT TIME ZONE 'UTC')::date "
				"FROM viw_partition_days WHERE attached GROUP BY parent"};
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), &ahead, 0, NULL, &rows);

	for (size_t i = 0; v == PG_OK && i < pg_rows_len(rows); i++)
		metric_set(metrics_get(worker_metrics_of(w), M_partition_days,
				       pg_rows_text(rows, i, 0).p, NULL),
			   (double)pg_rows_int(rows, i, 1));
	pg_rows_free(rows);
	return v;
}

static enum pg_verdict measure_size(struct partitions *x, struct worker *w)
{
	static const struct pg_stmt size = {"database_size",
					    "SELECT pg_database_size(current_database())"};
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), &size, 0, NULL, &rows);

	if (v != PG_OK)
		return v;
	int64_t bytes = pg_rows_int(rows, 0, 0);
	pg_rows_free(rows);
	bool over = x->c.watermark_mb && bytes / 1048576 >= x->c.watermark_mb;
	metric_set(metrics_get(worker_metrics_of(w), M_database_bytes, NULL, NULL), (double)bytes);
	metric_set(metrics_get(worker_metrics_of(w), M_watermark, NULL, NULL), over);
	if (over)
		LOG_WARN(FIELDS(.event = "watermark", .has_count = true, .count = bytes / 1048576),
			 "the database is larger than DATABASE_WATERMARK_MB: shorten retention or "
			 "add space");
	return v;
}

void partitions_chore(struct partitions *x, struct worker *w, int64_t now_ms)
{
	enum pg_verdict v = PG_OK;

	if (now_ms >= x->size_at_ms) {
		x->size_at_ms = now_ms + SIZE_EVERY_MS;
		v = measure_size(x, w);
	}
	if (v == PG_OK && now_ms >= x->next_ms) {
		int64_t today = clock_wall_ms() / DAY_MS;
		x->next_ms = now_ms + EVERY_MS;
		v = partitions_ensure(x, worker_pg(w), PARTITIONS_METRICS, today,
				      today + x->c.ahead_days);
		if (v == PG_OK)
			v = partitions_ensure(x, worker_pg(w), PARTITIONS_EVENTS, today,
					      today + x->c.ahead_days);
		if (v == PG_OK)
			v = drop_old(x, w, PARTITIONS_METRICS, x->c.metrics_days);
		if (v == PG_OK)
			v = drop_old(x, w, PARTITIONS_EVENTS, x->c.events_days);
		if (v == PG_OK && drop_sessions(x, w, &v))
			x->next_ms = now_ms + 1000;
		if (v == PG_OK)
			v = measure_ahead(w);
		if (v != PG_OK)
			x->next_ms = now_ms + AGAIN_MS;
	}
	if (v != PG_OK)
		worker_pg_failed(w, "partitions", v);
}
