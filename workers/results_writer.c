#include "results_writer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "commands.h"
#include "common_settings.h"
#include "requeue.h"
#include "results_settings.h"
#include "worker.h"
#include "worker_metrics.h"

enum { STREAM_COMMANDS, STREAM_EVENTS, STREAM_RESULTS, STREAM_DEAD, STREAMS };
static const char *const stream_suffix[STREAMS] = {"commands", "command_events", "command_results",
						   "dead_letters"};
/* An ECHO's answer is in Redis 0.6 ms after its command. */
enum { JOIN_MS = 1 };
enum { SECRETS_MAX_AGE_MS = 3600000, RETENTION_EVERY_MS = 3600000, RETENTION_AT_ONCE = 1000 };

struct results_writer {
	const struct results_settings *cfg;
	struct worker *worker;
	struct commands commands;
	struct dead_letters refused; /* by bridges */
	struct verbs *verbs;
	struct requeue *requeue;
	char *stream[STREAMS], *consumer;
	int64_t retention_at_ms;
};

/* ---- staging ---- */

/* The full name of the stream a bridge means, which it may give without the prefix. */
static struct span full_stream(const struct results_writer *t, struct span name)
{
	for (size_t i = 0; i < STREAMS; i++)
		if (span_eq(name, stream_suffix[i]))
			return span_of(t->stream[i]);
	return name.n ? name : span_of(t->stream[STREAM_DEAD]);
}

/* What a bridge refused: under the entry it names, so that an entry refused here as well is one
 * letter, else under the notice's own id. */
static const char *stage_refused(struct results_writer *t, const struct stream_entry *e)
{
	struct span named = stream_field(e, "entry_id"), reason = stream_field(e, "reason");
	struct span payload = stream_field(e, "payload"), masked_payload = payload;
	struct span stream = full_stream(t, stream_field(e, "stream"));
	int64_t ms;
	bool is_entry = named.n && memchr(named.p, '-', named.n) && stream_id_ms(named, &ms) == 0;
	bool masked = payload.n && commands_mask_text(&t->commands, payload, &masked_payload);
	struct span id = is_entry ? named : e->id, detail = named;

	if (is_entry)
		detail = (struct span){0};
	int r = dead_letters_add_raw(&t->refused, stream, id, reason.n ? reason : SPAN("unknown"),
				     masked_payload, masked, detail);
	return r < 0 ? no_memory : NULL;
}

static const char *on_stage(void *arg, unsigned stream, const struct stream_entry *e)
{
	struct results_writer *t = arg;

	switch (stream) {
	case STREAM_COMMANDS:
		return commands_stage_ledger(&t->commands, e);
	case STREAM_EVENTS:
		return commands_stage_event(&t->commands, e);
	case STREAM_RESULTS:
		return commands_stage_result(&t->commands, e);
	default:
		return stage_refused(t, e);
	}
}

static const char *on_mask(void *arg, unsigned stream, const struct stream_entry *e,
			   struct span *ret_value)
{
	struct results_writer *t = arg;

	if (stream == STREAM_COMMANDS)
		return commands_mask_params(&t->commands, e, ret_value) ? "params" : NULL;
	if (stream == STREAM_RESULTS)
		return commands_mask_text(&t->commands, stream_field(e, "frame"), ret_value)
			   ? "frame"
			   : NULL;
	return NULL;
}

static void on_clear(void *arg)
{
	struct results_writer *t = arg;

	commands_clear(&t->commands);
	dead_letters_clear(&t->refused);
}

static enum pg_verdict on_flush(void *arg, struct pg *p)
{
	struct results_writer *t = arg;
	enum pg_verdict v = commands_flush(&t->commands, p);

	return v == PG_OK ? dead_letters_flush(&t->refused, p) : v;
}

/* Zeros too, so that each series is there from the start: rates see the first of a kind. */
static void count_states(struct results_writer *t)
{
	for (size_t i = 0; i < COMMANDS_STATES; i++)
		metric_add(
		    metrics_get(worker_metrics_of(t->worker), M_results, commands_state[i], NULL),
		    t->commands.wrote_status[i]);
}

static bool on_committed(void *arg)
{
	struct results_writer *t = arg;

	worker_count_rows(t->worker, "agent_commands", t->commands.wrote_commands);
	worker_count_rows(t->worker, "agent_command_results", t->commands.wrote_results);
	worker_count_rows(t->worker, "agent_command_late_results", t->commands.wrote_late);
	worker_count_rows(t->worker, "dead_letters", t->refused.c.rows);
	count_states(t);
	if (t->commands.wrote_late)
		metric_add(metrics_get(worker_metrics_of(t->worker), M_late, NULL, NULL),
			   t->commands.wrote_late);
	if (t->refused.c.rows)
		metric_add(
		    metrics_get(worker_metrics_of(t->worker), M_dead, "refused_by_bridge", NULL),
		    t->refused.c.rows);
	return requeue_refused(t->requeue, t->worker, t->commands.refused) &&
	       requeue_over(t->requeue, t->worker, t->commands.over);
}

/* ---- retention ---- */

static enum pg_verdict purge(struct worker *w, const struct pg_stmt *s, int64_t days,
			     bool *ret_more)
{
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_INT8, .int8 = days},
	    {.kind = PG_PARAM_INT8, .int8 = RETENTION_AT_ONCE},
	};
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), s, ARRAY_LEN(param), param, &rows);

	if (v == PG_OK && pg_rows_int(rows, 0, 0) == RETENTION_AT_ONCE)
		*ret_more = true;
	pg_rows_free(rows);
	return v;
}

static void retention_chore(struct results_writer *t, struct worker *w, int64_t now_ms)
{
	static const struct pg_stmt commands = {"purge_commands",
						"SELECT viw_purge_commands($1, $2)"};
	static const struct pg_stmt dead = {
	    "purge_dead",
	    "WITH gone AS (DELETE FROM dead_letters WHERE id = ANY (ARRAY(SELECT id FROM "
	    "dead_letters WHERE at < now() - make_interval(days => $1::integer) ORDER BY at "
	    "LIMIT $2)) RETURNING 1) SELECT count(*) FROM gone"};
	enum pg_verdict v = PG_OK;
	bool more = false;

	if (now_ms < t->retention_at_ms)
		return;
	if (t->cfg->retention_days)
		v = purge(w, &commands, t->cfg->retention_days, &more);
	if (v == PG_OK && t->cfg->dead_letters_retention_days)
		v = purge(w, &dead, t->cfg->dead_letters_retention_days, &more);
	if (v != PG_OK)
		worker_pg_failed(w, "retention", v);
	t->retention_at_ms = now_ms + (more ? 1000 : RETENTION_EVERY_MS);
}

static void on_chores(void *arg, struct worker *w)
{
	struct results_writer *t = arg;
	int64_t now_ms = clock_boot_ms();

	secrets_drop_old(t->commands.secrets, now_ms, SECRETS_MAX_AGE_MS);
	requeue_chore(t->requeue, w, now_ms, worker_lag_ms(w, STREAM_RESULTS));
	if (pg_is_connected(worker_pg(w)))
		retention_chore(t, w, now_ms);
}

/* ---- manifests ---- */

/* With faults: none, for their secrets would be known by name only. */
static int load_verbs(const char *dir, struct verbs **ret)
{
	struct verbs_faults faults = {0};
	int r = verbs_load(dir, VERBS_TRUST_ANY, false, ret, &faults);

	for (size_t i = 0; i < faults.n; i++)
		LOG_ERROR(FIELDS(.event = "bad_manifest", .setting = "RESULTS_WRITER_VERBS_DIR",
				 .error = faults.item[i].text, .detail = faults.item[i].file),
			  "a verb manifest is wrong");
	verbs_faults_fini(&faults);
	if (r < 0)
		LOG_ERROR(FIELDS(.event = "verbs_failed", .setting = "RESULTS_WRITER_VERBS_DIR",
				 .error = strerror(-r)),
			  "cannot read the verb manifests");
	return r;
}

static void on_reload(void *arg)
{
	struct results_writer *t = arg;
	struct verbs *fresh = NULL;

	if (load_verbs(t->cfg->verbs_dir, &fresh) < 0)
		return; /* the old ones stay */
	verbs_free(t->verbs);
	t->verbs = fresh;
	t->commands.verbs = fresh;
	LOG_INFO(FIELDS(.event = "reloaded"), "verb manifests were read anew");
}

static const struct worker_ops ops = {
    .stage = on_stage,
    .clear = on_clear,
    .flush = on_flush,
    .committed = on_committed,
    .mask = on_mask,
    .reload = on_reload,
    .chores = on_chores,
};

/* ---- making ---- */

static int results_writer_build(struct results_writer *t)
{
	const struct results_settings *cfg = t->cfg;
	struct worker_config wc = {
	    .program = "results-writer",
	    .redis_url = cfg->redis_url,
	    .database_url = cfg->database_url,
	    .group = "results-writer",
	    .bind = cfg->internal_bind,
	    .batch_max = cfg->batch_max,
	    .batch_wait_ms = cfg->batch_wait_ms,
	    .join_ms = JOIN_MS,
	    .consumer_idle_s = cfg->consumer_idle_s,
	};

	for (size_t i = 0; i < STREAMS; i++) {
		t->stream[i] = common_stream_name(cfg->stream_prefix, stream_suffix[i]);
		wc.stream[i] = t->stream[i];
		if (!t->stream[i])
			return -ENOMEM;
	}
	wc.consumer = t->consumer = common_consumer(cfg->consumer);
	int r = t->consumer ? commands_init(&t->commands, t->verbs) : -ENOMEM;
	if (r == 0)
		r = dead_letters_init(&t->refused);
	if (r == 0)
		r = requeue_new(cfg->stream_prefix, cfg->lost_after_s, &t->requeue);
	if (r == 0)
		r = worker_new(&wc, &ops, t, NULL, &t->worker);
	if (r == 0)
		count_states(t);
	return r;
}

int results_writer_run(const struct results_settings *cfg)
{
	struct results_writer t = {.cfg = cfg};
	int code = PROGRAM_CONFIG;

	if (load_verbs(cfg->verbs_dir, &t.verbs) == 0) {
		int r = results_writer_build(&t);
		if (r < 0)
			LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-r),
					 .setting = "RESULTS_WRITER_INTERNAL_BIND",
					 .detail = cfg->internal_bind),
				  "cannot start");
		code = r < 0 ? PROGRAM_SYSTEM : worker_run(t.worker);
	}
	worker_free(t.worker);
	requeue_free(t.requeue);
	dead_letters_fini(&t.refused);
	commands_fini(&t.commands);
	verbs_free(t.verbs);
	for (size_t i = 0; i < STREAMS; i++)
		free(t.stream[i]);
	free(t.consumer);
	return code;
}
