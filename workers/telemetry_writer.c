#include "telemetry_writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "common_settings.h"
#include "fleet.h"
#include "frames.h"
#include "gateways.h"
#include "lease.h"
#include "partitions.h"
#include "telemetry_settings.h"
#include "worker.h"
#include "worker_metrics.h"

enum { STREAM_HELLO, STREAM_TELEMETRY, STREAM_EVENTS, STREAMS };
static const char *const stream_suffix[STREAMS] = {"agent_hello", "telemetry", "agent_events"};

struct telemetry_writer;
struct rows { /* of one batch */
	struct telemetry_writer *t;
	struct gateways gateways;
	struct frames frames;
	bool days_asked_anew; /* for this range of the batch */
};
struct telemetry_writer {
	struct worker *worker;
	struct rows rows[2]; /* of the batch in work and the next, by turns */
	struct lease *lease;
	struct fleet fleet;
	struct partitions *partitions;
	char *stream[STREAMS], *consumer;
};

static const char *on_stage(void *arg, unsigned stream, const struct stream_entry *e)
{
	struct rows *r = arg;
	struct origin o;

	if (stream == STREAM_HELLO)
		return gateways_stage_hello(&r->gateways, e);
	if (stream == STREAM_EVENTS)
		return gateways_stage_event(&r->gateways, e);
	const char *bad = frames_stage(&r->frames, e, &o);
	return bad ? bad : gateways_stage_seen(&r->gateways, &o);
}

static void on_clear(void *arg)
{
	struct rows *r = arg;

	gateways_clear(&r->gateways);
	frames_clear(&r->frames);
	r->days_asked_anew = false;
}

static enum pg_verdict on_prepare(void *arg, struct pg *p)
{
	struct rows *r = arg;
	enum pg_verdict v = partitions_ensure(r->t->partitions, p, PARTITIONS_METRICS,
					      r->frames.day_min, r->frames.day_max);

	return v == PG_OK ? partitions_ensure(r->t->partitions, p, PARTITIONS_EVENTS,
					      r->gateways.day_min, r->gateways.day_max)
			  : v;
}

static bool on_fold(void *arg)
{
	struct rows *r = arg;

	return gateways_fold(&r->gateways) || frames_fold(&r->frames);
}

static enum pg_verdict on_flush(void *arg, struct pg *p)
{
	struct rows *r = arg;
	enum pg_verdict v = gateways_flush(&r->gateways, p);

	if (v == PG_OK)
		v = frames_flush(&r->frames, p);
	/* No partition for the row: a day we knew is gone, for the database was restored, failed
	 * over to a standby that lagged, or somebody dropped it. That is no row's fault. */
	if (v == PG_BAD_DATA && strcmp(pg_sqlstate(p), "23514") == 0 && !r->days_asked_anew) {
		r->days_asked_anew = true;
		partitions_forget(r->t->partitions);
		v = PG_RETRY;
	}
	return v;
}

static bool on_committed(void *arg)
{
	struct rows *r = arg;
	struct metrics *m = worker_metrics_of(r->t->worker);

	worker_count_rows(r->t->worker, "os_gateways", r->gateways.wrote_gateways);
	worker_count_rows(r->t->worker, "agent_sessions", r->gateways.wrote_sessions);
	worker_count_rows(r->t->worker, "agent_events", r->gateways.wrote_events);
	worker_count_rows(r->t->worker, "os_gateway_status", r->frames.wrote_status);
	worker_count_rows(r->t->worker, "os_gateway_metrics", r->frames.wrote_metrics);
	if (r->frames.old_status)
		metric_add(metrics_get(m, M_skipped, "older_than_row", NULL), r->frames.old_status);
	if (r->frames.old_metrics)
		metric_add(metrics_get(m, M_skipped, "seen_or_past_retention", NULL),
			   r->frames.old_metrics);
	return true;
}

static void on_chores(void *arg, struct worker *w)
{
	const struct rows *r = arg;
	struct telemetry_writer *t = r->t;
	int64_t now_ms = clock_boot_ms();

	lease_chore(t->lease, w, now_ms);
	if (pg_is_connected(worker_pg(w)))
		fleet_chore(&t->fleet, w, now_ms);
	if (pg_is_connected(worker_pg(w)))
		partitions_chore(t->partitions, w, now_ms);
}

static const struct worker_ops ops = {
    .stage = on_stage,
    .clear = on_clear,
    .prepare = on_prepare,
    .fold = on_fold,
    .flush = on_flush,
    .committed = on_committed,
    .chores = on_chores,
};

static int rows_init(struct rows *r, struct telemetry_writer *t, int64_t retention_days)
{
	r->t = t;
	int error = gateways_init(&r->gateways);
	return error < 0 ? error : frames_init(&r->frames, retention_days);
}

static int telemetry_writer_build(struct telemetry_writer *t, const struct telemetry_settings *cfg)
{
	struct worker_config wc = {
	    .program = "telemetry-writer",
	    .redis_url = cfg->redis_url,
	    .database_url = cfg->database_url,
	    .group = "telemetry-writer",
	    .bind = cfg->internal_bind,
	    .batch_max = cfg->batch_max,
	    .batch_wait_ms = cfg->batch_wait_ms,
	    .consumer_idle_s = cfg->consumer_idle_s,
	};
	const struct partitions_config pc = {
	    .metrics_days = cfg->retention_days,
	    .events_days = cfg->events_retention_days,
	    .sessions_days = cfg->sessions_retention_days,
	    .ahead_days = cfg->partitions_ahead,
	    .watermark_mb = cfg->database_watermark_mb,
	};

	for (size_t i = 0; i < STREAMS; i++) {
		t->stream[i] = common_stream_name(cfg->stream_prefix, stream_suffix[i]);
		wc.stream[i] = t->stream[i];
		if (!t->stream[i])
			return -ENOMEM;
	}
	wc.consumer = t->consumer = common_consumer(cfg->consumer);
	int r = t->consumer ? 0 : -ENOMEM;
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(t->rows); i++)
		r = rows_init(&t->rows[i], t, cfg->retention_days);
	if (r == 0)
		r = lease_new(cfg->stream_prefix, &t->lease);
	if (r == 0)
		r = partitions_new(&pc, &t->partitions);
	return r < 0 ? r : worker_new(&wc, &ops, &t->rows[0], &t->rows[1], &t->worker);
}

int telemetry_writer_run(const struct telemetry_settings *cfg)
{
	struct telemetry_writer t = {0};
	int code = PROGRAM_SYSTEM;
	int r = telemetry_writer_build(&t, cfg);

	if (r == 0)
		code = worker_run(t.worker);
	else
		LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-r),
				 .setting = "TELEMETRY_WRITER_INTERNAL_BIND",
				 .detail = cfg->internal_bind),
			  "cannot start");
	worker_free(t.worker);
	partitions_free(t.partitions);
	lease_free(t.lease);
	for (size_t i = 0; i < ARRAY_LEN(t.rows); i++) {
		frames_fini(&t.rows[i].frames);
		gateways_fini(&t.rows[i].gateways);
	}
	for (size_t i = 0; i < STREAMS; i++)
		free(t.stream[i]);
	free(t.consumer);
	return code;
}
