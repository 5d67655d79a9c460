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

struct telemetry_writer {
	struct worker *worker;
	struct gateways gateways;
	struct frames frames;
	struct lease *lease;
	struct fleet fleet;
	struct partitions *partitions;
	bool days_asked_anew; /* for this range of the batch */
	char *stream[STREAMS], *consumer;
};

static const char *on_stage(void *arg, unsigned stream, const struct stream_entry *e)
{
	struct telemetry_writer *t = arg;
	struct origin o;

	if (stream == STREAM_HELLO)
		return gateways_stage_hello(&t->gateways, e);
	if (stream == STREAM_EVENTS)
		return gateways_stage_event(&t->gateways, e);
	const char *bad = frames_stage(&t->frames, e, &o);
	return bad ? bad : gateways_stage_seen(&t->gateways, &o);
}

static void on_clear(void *arg)
{
	struct telemetry_writer *t = arg;

	gateways_clear(&t->gateways);
	frames_clear(&t->frames);
	t->days_asked_anew = false;
}

static enum pg_verdict on_prepare(void *arg, struct pg *p)
{
	struct telemetry_writer *t = arg;
	enum pg_verdict v = partitions_ensure(t->partitions, p, PARTITIONS_METRICS,
					      t->frames.day_min, t->frames.day_max);

	return v == PG_OK ? partitions_ensure(t->partitions, p, PARTITIONS_EVENTS,
					      t->gateways.day_min, t->gateways.day_max)
			  : v;
}

static enum pg_verdict on_flush(void *arg, struct pg *p)
{
	struct telemetry_writer *t = arg;
	enum pg_verdict v = gateways_flush(&t->gateways, p);

	if (v == PG_OK)
		v = frames_flush(&t->frames, p);
	/* No partition for the row: a day we knew is gone, for the database was restored, failed
	 * over to a standby that lagged, or somebody dropped it. That is no row's fault. */
	if (v == PG_BAD_DATA && strcmp(pg_sqlstate(p), "23514") == 0 && !t->days_asked_anew) {
		t->days_asked_anew = true;
		partitions_forget(t->partitions);
		v = PG_RETRY;
	}
	return v;
}

static bool on_committed(void *arg)
{
	struct telemetry_writer *t = arg;
	struct metrics *m = worker_metrics_of(t->worker);

	worker_count_rows(t->worker, "os_gateways", t->gateways.wrote_gateways);
	worker_count_rows(t->worker, "agent_sessions", t->gateways.wrote_sessions);
	worker_count_rows(t->worker, "agent_events", t->gateways.wrote_events);
	worker_count_rows(t->worker, "os_gateway_status", t->frames.wrote_status);
	worker_count_rows(t->worker, "os_gateway_metrics", t->frames.wrote_metrics);
	if (t->frames.old_status)
		metric_add(metrics_get(m, M_skipped, "older_than_row", NULL), t->frames.old_status);
	if (t->frames.old_metrics)
		metric_add(metrics_get(m, M_skipped, "seen_or_past_retention", NULL),
			   t->frames.old_metrics);
	return true;
}

static void on_chores(void *arg, struct worker *w)
{
	struct telemetry_writer *t = arg;
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
    .flush = on_flush,
    .committed = on_committed,
    .chores = on_chores,
};

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
	int r = t->consumer ? gateways_init(&t->gateways) : -ENOMEM;
	if (r == 0)
		r = frames_init(&t->frames, cfg->retention_days);
	if (r == 0)
		r = lease_new(cfg->stream_prefix, &t->lease);
	if (r == 0)
		r = partitions_new(&pc, &t->partitions);
	return r < 0 ? r : worker_new(&wc, &ops, t, &t->worker);
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
	frames_fini(&t.frames);
	gateways_fini(&t.gateways);
	for (size_t i = 0; i < STREAMS; i++)
		free(t.stream[i]);
	free(t.consumer);
	return code;
}
