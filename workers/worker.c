#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/backoff.h"
#include "base/clock.h"
#include "base/crash.h"
#include "base/file.h"
#include "base/log.h"
#include "base/log_limit.h"
#include "base/program.h"
#include "endpoints.h"
#include "lag.h"
#include "outage.h"
#include "staging.h"
#include "worker_metrics.h"

enum {
	BLOCK_MS = 400, /* longest wait for entries: chores and SIGTERM come between */
	TIMEOUTS_MAX = 3,
	SPLIT_MAX = 32, /* halves waiting while a batch is bisected */
	CHORE_LINES = 6,
	DESCRIPTORS = 16,    /* 14 while it works, a request of /metrics, a word to systemd */
	STAGED_AT_ONCE = 32, /* entries, some 60 us: an answer of PostgreSQL waits as long */
};

/* Points where tests/chaos may kill the process, by the program's short name. */
#define WORKER_CRASH(w, point)                           \
	do {                                             \
		if ((w)->c.program[0] == 'r')            \
			CRASH_POINT("results." point);   \
		else                                     \
			CRASH_POINT("telemetry." point); \
	} while (0)

struct worker {
	struct worker_config c;
	const struct worker_ops *ops;
	struct staging side[2]; /* [at]: of the batch in work; the other: of the next */
	unsigned at;
	struct metrics *metrics;
	struct endpoints *endpoints;
	struct intake *intake;
	struct pg *pg;
	struct lag *lag;
	char dead_reason[32], dead_detail[256]; /* of the row that stands alone */
	struct log_limit chore_lines, dead_lines;
	struct backoff pg_backoff, redis_backoff;
	int signal_fd;
	bool redis_up, pg_up;
	struct outage redis_out, pg_out;
	int64_t chores_at_ms, forget_at_ms, alive_at_ms;
	double busy; /* share of time spent in transactions, smoothed */
	int64_t idle_from_us;
	const struct intake_batch *held; /* the batch in work; NULL between batches */
};

struct metrics *worker_metrics_of(struct worker *w)
{
	return w->metrics;
}

struct pg *worker_pg(struct worker *w)
{
	return w->pg;
}

struct intake *worker_intake(struct worker *w)
{
	return w->intake;
}

int64_t worker_lag_ms(struct worker *w, unsigned stream)
{
	return lag_age_ms(w->lag, stream);
}

void worker_count_rows(struct worker *w, const char *table, uint64_t n)
{
	if (n)
		metric_add(metrics_get(w->metrics, M_rows, table, NULL), n);
}

/* ---- up and down ---- */

static void worker_set_redis(struct worker *w, bool up)
{
	if (up && (!w->redis_up || w->redis_out.on))
		LOG_INFO(FIELDS(.event = "redis_up", .has_duration_ms = w->redis_out.on,
				.duration_ms = outage_ms(&w->redis_out)),
			 "Redis answers");
	if (!up && outage_tells(&w->redis_out, 0))
		LOG_WARN(FIELDS(.event = "redis_down", .error = intake_error(w->intake),
				.has_duration_ms = true, .duration_ms = outage_ms(&w->redis_out)),
			 "Redis is away; trying again");
	w->redis_up = up;
	endpoints_set_redis(w->endpoints, up);
	metric_set(metrics_get(w->metrics, M_redis_up, NULL, NULL), up);
	if (up) {
		outage_end(&w->redis_out);
		backoff_reset(&w->redis_backoff);
	}
}

static void worker_set_pg(struct worker *w, bool up)
{
	if (up && (!w->pg_up || w->pg_out.on))
		LOG_INFO(FIELDS(.event = "postgres_up", .has_duration_ms = w->pg_out.on,
				.duration_ms = outage_ms(&w->pg_out)),
			 "PostgreSQL takes transactions");
	w->pg_up = up;
	endpoints_set_pg(w->endpoints, up);
	metric_set(metrics_get(w->metrics, M_pg_up, NULL, NULL), up);
	if (up) {
		outage_end(&w->pg_out);
		backoff_reset(&w->pg_backoff);
	}
}

/* For systemd's watchdog: also while a server is away, for waiting is what it should do then. */
static void worker_alive(struct worker *w)
{
	int64_t now_ms = clock_boot_ms();

	if (now_ms < w->alive_at_ms)
		return;
	w->alive_at_ms = now_ms + 1000;
	program_notify("WATCHDOG=1");
}

/* Whatever takes long calls this every second or so: a lock somebody holds, a slow or absent
 * server. What is in hand stays ours, and the lag is told, for that is when somebody looks at it.
 */
static void worker_linger(void *arg)
{
	struct worker *w = arg;

	worker_alive(w);
	if (!w->held)
		return;
	int r = intake_keep_alive(w->intake, w->held);
	if (r)
		worker_set_redis(w, r > 0);
	lag_measure(w->lag, intake_control(w->intake), w->metrics, clock_boot_ms());
}

/* While PostgreSQL works on a batch: some of the next one. */
static bool worker_ahead(void *arg, int *ret_fd)
{
	struct worker *w = arg;
	struct staging *s = &w->side[!w->at];
	struct intake_batch b;

	if (!w->held)
		return false;
	int r = intake_look_ahead(w->intake, &b, ret_fd);
	return r == 1 ? s->arg && staging_ahead(s, &b, STAGED_AT_ONCE) : r == 0;
}

/* Sleeps at most ms; a signal ends it at once. */
static void worker_pause(struct worker *w, int64_t ms)
{
	struct pollfd fd = {.fd = w->signal_fd, .events = POLLIN};

	if (!program_should_stop())
		(void)poll(&fd, 1, (int)ms);
}

static void worker_tell_pg(struct worker *w, const char *what, enum pg_verdict v, int64_t away_ms)
{
	LOG_WARN(FIELDS(.event = v == PG_PAUSE ? "postgres_refuses" : "postgres_failed",
			.error = pg_error(w->pg), .detail = what, .has_duration_ms = away_ms > 0,
			.duration_ms = away_ms),
		 v == PG_PAUSE ? "PostgreSQL refuses; somebody must look; trying again"
			       : "PostgreSQL failed; trying again");
}

static void worker_count_retry(struct worker *w, enum pg_verdict v)
{
	metric_add(metrics_get(w->metrics, M_retries, pg_verdict_word(v), NULL), 1);
}

/* No batch can be stored now. What cut the connection and what keeps it from coming back are two
 * causes, each told. */
static void worker_pg_away(struct worker *w, const char *what, enum pg_verdict v)
{
	if (outage_tells(&w->pg_out, 2 * (int)v + pg_is_unreachable(w->pg)))
		worker_tell_pg(w, what, v, outage_ms(&w->pg_out));
	worker_set_pg(w, false);
}

static void worker_batch_failed(struct worker *w, enum pg_verdict v)
{
	worker_count_retry(w, v);
	if (pg_is_no_memory(w->pg)) {
		if (log_limit_pass(&w->chore_lines, CHORE_LINES) >= 0)
			LOG_WARN(FIELDS(.event = "no_memory"),
				 "no memory for a batch; trying a smaller one");
	} else if (v == PG_RECONNECT || v == PG_PAUSE)
		worker_pg_away(w, "batch", v);
	else
		worker_tell_pg(w, "batch", v, 0);
}

void worker_pg_failed(struct worker *w, const char *what, enum pg_verdict v)
{
	worker_count_retry(w, v);
	/* What a chore is refused (a missing grant) says nothing of batches, which may well pass.
	 */
	if (v == PG_RECONNECT)
		worker_pg_away(w, what, v);
	else if (log_limit_pass(&w->chore_lines, CHORE_LINES) >= 0)
		worker_tell_pg(w, what, v, 0);
}

/* ---- one range of a batch, as one transaction ---- */

struct range {
	size_t from, to;
};

static struct intake_batch range_batch(const struct intake_batch *b, struct range r)
{
	return (struct intake_batch){.item = b->item + r.from, .n = r.to - r.from};
}

static enum pg_verdict worker_transaction(struct worker *w, struct staging *s)
{
	enum pg_verdict v = w->ops->prepare ? w->ops->prepare(s->arg, w->pg) : PG_OK;

	if (v == PG_OK)
		v = pg_begin(w->pg);
	if (v == PG_OK)
		v = w->ops->flush(s->arg, w->pg);
	if (v == PG_OK)
		v = dead_letters_flush(&s->dead, w->pg);
	if (v == PG_OK) {
		CRASH_POINT("worker.before_commit");
		v = pg_commit(w->pg);
		CRASH_POINT("worker.after_commit");
	}
	if (v != PG_OK)
		pg_rollback(w->pg);
	return v;
}

/* False: asked to stop. */
static bool worker_wait_to_retry(struct worker *w)
{
	int64_t until_ms = clock_boot_ms() + backoff_next_ms(&w->pg_backoff);

	do {
		if (program_should_stop())
			return false;
		worker_linger(w);
		int64_t left = until_ms - clock_boot_ms();
		worker_pause(w, left < 500 ? (left > 0 ? left : 0) : 500);
	} while (clock_boot_ms() < until_ms);
	return true;
}

/* The same transaction until it commits or proves to hold a bad row; with a reason, of dead letters
 * for it. -EINTR: asked to stop. */
static int worker_write(struct worker *w, const struct intake_batch *b, struct range r,
			const char *reason, bool *ret_bad)
{
	struct staging *s = &w->side[w->at];
	const char *detail = reason ? w->dead_detail : NULL;
	int staged = staging_range(s, b, r.from, r.to, reason, detail);

	for (int timeouts = 0;;) {
		uint64_t from_us = clock_boot_us();
		enum pg_verdict v = staged < 0 ? pg_no_memory(w->pg) : worker_transaction(w, s);
		*ret_bad = v == PG_BAD_DATA;
		if (v == PG_OK) {
			if (!w->pg_up || w->pg_out.on)
				worker_set_pg(w, true);
			metric_observe(metrics_get(w->metrics, M_batch_seconds, NULL, NULL),
				       (double)(clock_boot_us() - from_us) / 1e6);
			metric_observe(metrics_get(w->metrics, M_batch_rows, NULL, NULL),
				       (double)(r.to - r.from));
			return 0;
		}
		if (v == PG_BAD_DATA)
			return 0;
		worker_batch_failed(w, v);
		/* Too much work for one statement's time, or too much for our memory: halves may
		 * pass. */
		bool timed_out = strcmp(pg_sqlstate(w->pg), "57014") == 0;
		bool too_much = (timed_out && ++timeouts >= TIMEOUTS_MAX) || pg_is_no_memory(w->pg);
		if (too_much && r.to - r.from > 1) {
			intake_limit(w->intake, (r.to - r.from) / 2);
			*ret_bad = true;
			return 0;
		}
		bool anew = pg_is_no_memory(w->pg);
		if (!worker_wait_to_retry(w))
			return -EINTR;
		if (anew)
			staged = staging_range(s, b, r.from, r.to, reason, detail);
	}
}

static void worker_committed(struct worker *w, const struct intake_batch *b, struct range r)
{
	uint64_t stored[INTAKE_STREAMS_MAX] = {0};
	struct intake_batch done = range_batch(b, r);
	const struct staging *side = &w->side[w->at];

	bool told = w->ops->committed(side->arg);
	worker_count_rows(w, "dead_letters", side->dead.c.rows);
	dead_notes_tell(&side->dead_notes, w->intake, w->metrics, &w->dead_lines);
	for (size_t i = 0; i < done.n; i++)
		stored[done.item[i].stream]++;
	for (unsigned s = 0; s < intake_streams(w->intake); s++)
		if (stored[s])
			metric_add(metrics_get(w->metrics, M_entries,
					       intake_stream_name(w->intake, s), NULL),
				   stored[s]);
	CRASH_POINT("worker.before_ack");
	WORKER_CRASH(w, "before_ack");
	/* Not acknowledged is read again, which changes nothing: at once where Redis is away, else
	 * by XAUTOCLAIM, which keeps no new ones waiting. */
	if (told && intake_ack(w->intake, &done) < 0)
		worker_set_redis(w, false);
	WORKER_CRASH(w, "after_ack");
	CRASH_POINT("worker.after_ack");
}

/* Bisects without recursion: halves wait on a small stack, earlier entries first. -EINTR. */
static int worker_process(struct worker *w, const struct intake_batch *b)
{
	struct range todo[SPLIT_MAX];
	size_t n = 0;

	todo[n++] = (struct range){0, b->n};
	while (n) {
		struct range r = todo[--n];
		bool bad;
		int error = worker_write(w, b, r, NULL, &bad);
		if (error < 0)
			return error;
		if (bad && r.to - r.from > 1) {
			size_t middle = r.from + (r.to - r.from) / 2;
			todo[n++] = (struct range){middle, r.to};
			todo[n++] = (struct range){r.from, middle};
			continue;
		}
		if (bad) {
			const char *state = pg_sqlstate(w->pg);
			snprintf(w->dead_reason, sizeof w->dead_reason, "%s%s",
				 state[0] ? "sqlstate_" : "value_out_of_range", state);
			snprintf(w->dead_detail, sizeof w->dead_detail, "%s", pg_error(w->pg));
			error = worker_write(w, b, r, w->dead_reason, &bad);
			if (error < 0)
				return error;
			if (bad) {
				/* A dead letter itself refused: leave the entry pending and
				 * visible. */
				LOG_ERROR(
				    FIELDS(.event = "dead_letter_failed", .error = pg_error(w->pg)),
				    "cannot store a dead letter; the entry stays pending");
				continue;
			}
		}
		worker_committed(w, b, r);
	}
	return 0;
}

/* ---- the loop ---- */

/* Under load the next read comes a little later, so that it brings more: rest as long as the last
 * batch took, at most batch_wait_ms. An idle worker (busy below a half) never rests. */
static void worker_rest(struct worker *w, int64_t took_us, bool full)
{
	int64_t now_us = (int64_t)clock_boot_us();
	int64_t turn_us = now_us - w->idle_from_us;
	double share = turn_us > 0 ? (double)took_us / (double)turn_us : 1;

	w->idle_from_us = now_us;
	w->busy += 0.2 * (share - w->busy);
	if (full || w->busy < 0.5)
		return;
	int64_t rest_ms = took_us / 1000 < w->c.batch_wait_ms ? took_us / 1000 : w->c.batch_wait_ms;
	if (rest_ms > 0)
		worker_pause(w, rest_ms);
}

static void worker_report_lost(struct worker *w)
{
	for (unsigned s = 0; s < intake_streams(w->intake); s++) {
		uint64_t n = intake_take_lost(w->intake, s);
		if (!n)
			continue;
		const char *stream = intake_stream_name(w->intake, s);
		metric_add(metrics_get(w->metrics, M_lost, stream, NULL), n);
		LOG_ERROR(FIELDS(.event = "entries_lost", .stream = stream, .has_count = true,
				 .count = (int64_t)n),
			  "entries were trimmed or deleted before they were stored");
	}
}

static void worker_chores(struct worker *w)
{
	int64_t now_ms = clock_boot_ms();

	if (now_ms < w->chores_at_ms)
		return;
	w->chores_at_ms = now_ms + 1000;
	worker_report_lost(w);
	lag_measure(w->lag, intake_control(w->intake), w->metrics, now_ms);
	if (now_ms >= w->forget_at_ms) {
		w->forget_at_ms = now_ms + 600000;
		intake_forget_idle_consumers(w->intake, w->c.consumer_idle_s * 1000);
	}
	/* An idle worker must notice an outage too, and its end. */
	enum pg_verdict v = pg_connect(w->pg);
	if (v != PG_OK) {
		worker_count_retry(w, v);
		worker_pg_away(w, "connect", v);
		return;
	}
	if (!w->pg_up || w->pg_out.on)
		worker_set_pg(w, true);
	w->ops->chores(w->side[0].arg, w);
}

static int worker_turn(struct worker *w)
{
	struct intake_batch b = {0};

	worker_alive(w);
	if (program_take_reload() && w->ops->reload)
		w->ops->reload(w->side[0].arg);
	int r = intake_read(w->intake, BLOCK_MS, &b);

	if (r < 0) {
		worker_set_redis(w, false);
		worker_pause(w, backoff_next_ms(&w->redis_backoff));
		return 0;
	}
	if (!w->redis_up || w->redis_out.on)
		worker_set_redis(w, true);
	if (b.n) {
		CRASH_POINT("worker.after_read");
		uint64_t from_us = clock_boot_us();
		w->held = &b;
		if (w->side[!w->at].serial == b.serial)
			w->at = !w->at;
		r = worker_process(w, &b);
		w->held = NULL;
		if (r < 0)
			return r;
		worker_rest(w, (int64_t)(clock_boot_us() - from_us), b.full);
	} else {
		w->busy *= 0.5;
		w->idle_from_us = (int64_t)clock_boot_us();
	}
	worker_chores(w);
	return 0;
}

/* Redis must keep what it took: say so when it is set up to forget. */
static void worker_check_redis(struct worker *w)
{
	static const char *const name[] = {"maxmemory-policy", "appendonly"};
	static const char *const want[] = {"noeviction", "yes"};
	int error;

	for (size_t i = 0; i < ARRAY_LEN(name); i++) {
		const struct redis_reply *r =
		    redis_sync_cmdf(intake_control(w->intake), &error, "CONFIG GET %s", name[i]);
		if (!r || redis_type(r) != REDIS_ARR || redis_len(r) < 2)
			continue;
		if (!span_eq(redis_str(redis_at(r, 1)), want[i]))
			LOG_WARN(FIELDS(.event = "redis_settings", .detail = name[i]),
				 "Redis may forget what it took: set %s to %s", name[i], want[i]);
	}
}

int worker_run(struct worker *w)
{
	w->signal_fd = program_catch_signals();
	if (w->signal_fd < 0)
		return PROGRAM_SYSTEM;
	if (pg_connect(w->pg) != PG_OK)
		worker_pg_failed(w, "connect", PG_RECONNECT);
	else
		worker_set_pg(w, true);
	worker_check_redis(w);
	LOG_INFO(FIELDS(.event = "started"), "%s %s runs", w->c.program, program_version);
	program_notify("READY=1");
	while (!program_should_stop() && worker_turn(w) == 0)
		;
	program_notify("STOPPING=1");
	LOG_INFO(FIELDS(.event = "stopped"), "stopped; what was not stored stays pending");
	return PROGRAM_OK;
}

/* ---- making and ending ---- */

int worker_check_descriptors(void)
{
	struct rlimit limit = {0};

	if (file_descriptors_to_spare(DESCRIPTORS))
		return 0;
	const char *why = strerror(errno);
	(void)getrlimit(RLIMIT_NOFILE, &limit);
	LOG_ERROR(FIELDS(.event = "start_failed", .error = why),
		  "cannot start: it needs %d open files more and the limit is %llu in all; raise "
		  "it (LimitNOFILE= of the unit, ulimit -n, --ulimit nofile)",
		  DESCRIPTORS, (unsigned long long)limit.rlim_cur);
	return PROGRAM_SYSTEM;
}

static int worker_build(struct worker *w, void *arg, void *ahead)
{
	struct intake_config ic = {.redis_url = w->c.redis_url,
				   .group = w->c.group,
				   .consumer = w->c.consumer,
				   .batch_max = (size_t)w->c.batch_max,
				   .join_ms = w->c.join_ms};

	memcpy(ic.stream, w->c.stream, sizeof ic.stream);
	int r = metrics_new(worker_metrics, WORKER_METRICS, &w->metrics);
	if (r == 0)
		r = intake_new(&ic, &w->intake);
	if (r == 0)
		r = staging_init(&w->side[0], w->ops, arg, w->intake);
	if (r == 0)
		r = staging_init(&w->side[1], w->ops, ahead, w->intake);
	if (r == 0)
		r = pg_new(w->c.database_url, w->c.program, &w->pg);
	if (r == 0) {
		pg_set_on_wait(w->pg, worker_linger, w);
		pg_set_meanwhile(w->pg, worker_ahead, w);
	}
	if (r == 0)
		r = lag_new(w->intake, &w->lag);
	if (r == 0)
		r = endpoints_open(w->c.bind, w->metrics, &w->endpoints);
	return r;
}

int worker_new(const struct worker_config *c, const struct worker_ops *ops, void *arg, void *ahead,
	       struct worker **ret)
{
	struct worker *w = calloc(1, sizeof *w);

	if (!w)
		return -ENOMEM;
	w->c = *c;
	w->ops = ops;
	backoff_init(&w->pg_backoff, 100, 3000);
	backoff_init(&w->redis_backoff, 100, 1500);
	int r = worker_build(w, arg, ahead);
	if (r < 0) {
		worker_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void worker_free(struct worker *w)
{
	if (!w)
		return;
	endpoints_close(w->endpoints);
	lag_free(w->lag);
	pg_free(w->pg);
	intake_free(w->intake);
	staging_fini(&w->side[0]);
	staging_fini(&w->side[1]);
	metrics_free(w->metrics);
	free(w);
}
