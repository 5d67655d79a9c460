#include "requeue.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "base/program.h"
#include "worker_metrics.h"

extern const char script_lost_check[];
extern const char script_close[];
extern const char script_reopen[];

enum {
	EVERY_MS = 30000,
	LOST_EVERY_MS = 10000,
	AFTER_CONNECT_MS = 10000,
	AFTER_REFUSED_MS = 4000,
	ANSWERS_FRESH_MS = 10000, /* less than LOST_AFTER_S can be */
	PAGE = 200,
};
#define KEEP_MS "691200000" /* 8 days, as bridges remember an id */

struct requeue {
	char *prefix, *stream;
	int64_t lost_after_s;
	uint64_t generation;
	int64_t next_ms, next_lost_ms;
};

static const struct pg_stmt try_lock = {"requeue_lock", "SELECT pg_try_advisory_lock(7760631, 2)"};
static const char unlock[] = "SELECT pg_advisory_unlock(7760631, 2)";

/* ---- making ---- */

int requeue_new(const char *prefix, int64_t lost_after_s, struct requeue **ret)
{
	struct requeue *q = calloc(1, sizeof *q);

	if (!q)
		return -ENOMEM;
	q->lost_after_s = lost_after_s;
	q->prefix = strdup(prefix);
	if (asprintf(&q->stream, "%s.commands", prefix) < 0)
		q->stream = NULL;
	if (!q->prefix || !q->stream) {
		requeue_free(q);
		return -ENOMEM;
	}
	*ret = q;
	return 0;
}

void requeue_free(struct requeue *q)
{
	if (!q)
		return;
	free(q->prefix);
	free(q->stream);
	free(q);
}

static const struct redis_reply *ask(struct worker *w, size_t n, const struct span *argv)
{
	int error;
	const struct redis_reply *r =
	    redis_sync_cmd(intake_control(worker_intake(w)), &error, n, argv);

	return r && redis_type(r) != REDIS_ERR ? r : NULL;
}

/* ---- what Redis lost ---- */

/* Young rows are on their way; rows just queued again as well. */
static const struct pg_stmt open_page = {
    "requeue_page",
    "SELECT correlation_id, agent_id, command, params::text, COALESCE(params_masked, true), "
    "COALESCE(signed, false), issued_by_admin_id, "
    "to_char(issued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), "
    "to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), entry_id, "
    "status, COALESCE(malformed, false) "
    "FROM agent_commands WHERE status IN ('queued', 'offered', 'accepted') AND correlation_id > $1 "
    "AND (requeued_at IS NULL OR requeued_at < now() - interval '25 s') "
    "AND COALESCE(queued_at, offered_at, accepted_at, '-infinity') < now() - interval '3 s' "
    "ORDER BY correlation_id LIMIT 200"};
enum {
	P_ID,
	P_AGENT,
	P_COMMAND,
	P_PARAMS,
	P_MASKED,
	P_SIGNED,
	P_ISSUER,
	P_ISSUED,
	P_EXPIRES,
	P_ENTRY,
	P_STATUS,
	P_MALFORMED
};

static const struct pg_stmt mark_requeued = {
    "requeue_mark",
    "UPDATE agent_commands SET requeued_at = now(), entry_id = COALESCE($2, entry_id) "
    "WHERE correlation_id = $1 AND status IN ('queued', 'offered', 'accepted')"};

static size_t put(struct span *argv, size_t n, const char *field, struct span value)
{
	if (!value.p)
		return n;
	argv[n] = span_of(field);
	argv[n + 1] = value;
	return n + 2;
}

enum requeue_form {
	REQUEUE_WHOLE,	/* as it was sent */
	REQUEUE_CANCEL, /* parameters or signature are not here */
	REQUEUE_REJECT, /* it was malformed: something that is rejected for sure */
};

static enum requeue_form requeue_form_of(const struct pg_rows *rows, size_t i)
{
	if (span_eq(pg_rows_text(rows, i, P_MALFORMED), "t"))
		return REQUEUE_REJECT;
	bool whole = pg_rows_text(rows, i, P_COMMAND).p && pg_rows_text(rows, i, P_PARAMS).p &&
		     span_eq(pg_rows_text(rows, i, P_MASKED), "f") &&
		     span_eq(pg_rows_text(rows, i, P_SIGNED), "f");
	return whole ? REQUEUE_WHOLE : REQUEUE_CANCEL;
}

/* The entry for viw.commands; argv holds 32 words. */
static size_t requeue_entry(const struct requeue *q, const struct pg_rows *rows, size_t i,
			    enum requeue_form form, struct span *argv)
{
	size_t n = 0;

	argv[n++] = SPAN("XADD");
	argv[n++] = span_of(q->stream);
	argv[n++] = SPAN("*");
	n = put(argv, n, "correlation_id", pg_rows_text(rows, i, P_ID));
	n = put(argv, n, "agent_id", pg_rows_text(rows, i, P_AGENT));
	n = put(argv, n, "command", pg_rows_text(rows, i, P_COMMAND));
	n = put(argv, n, "issued_by_admin_id", pg_rows_text(rows, i, P_ISSUER));
	if (form == REQUEUE_REJECT)
		return put(argv, n, "ttl_s", SPAN("0"));
	n = put(argv, n, "issued_at", pg_rows_text(rows, i, P_ISSUED));
	n = put(argv, n, "expires_at", pg_rows_text(rows, i, P_EXPIRES));
	if (form == REQUEUE_WHOLE) {
		n = put(argv, n, "params", pg_rows_text(rows, i, P_PARAMS));
		return put(argv, n, "requeued", pg_rows_text(rows, i, P_STATUS));
	}
	n = put(argv, n, "op", SPAN("cancel"));
	return put(argv, n, "reason", SPAN("redis_lost"));
}

static enum pg_verdict requeue_row(const struct requeue *q, struct worker *w,
				   const struct pg_rows *rows, size_t i)
{
	enum requeue_form form = requeue_form_of(rows, i);
	struct span argv[32], id = pg_rows_text(rows, i, P_ID);
	size_t n = requeue_entry(q, rows, i, form, argv);
	bool cancel = form == REQUEUE_CANCEL;

	CRASH_POINT("results.before_requeue");
	const struct redis_reply *r = ask(w, n, argv);
	CRASH_POINT("results.after_requeue");
	if (!r)
		return PG_OK; /* Redis went again; the next round sees */
	LOG_WARN(FIELDS(.event = cancel ? "command_redis_lost" : "command_requeued",
			.correlation_id = id.p),
		 cancel
		     ? "Redis had lost a command whose parameters are not stored; it is cancelled"
		     : "Redis had lost a command; it is queued again");
	metric_add(
	    metrics_get(worker_metrics_of(w), cancel ? M_redis_lost : M_requeued, NULL, NULL), 1);
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_TEXT, .text = id},
	    {.kind = cancel ? PG_PARAM_NULL : PG_PARAM_TEXT, .text = redis_str(r)},
	};
	return pg_exec(worker_pg(w), &mark_requeued, ARRAY_LEN(param), param, NULL);
}

/* Asks Redis about one page; lost[i] says which rows it does not know. */
static bool requeue_look(const struct requeue *q, struct worker *w, const struct pg_rows *rows,
			 bool *lost)
{
	struct span argv[4 + 2 * PAGE];
	size_t n = 0, rows_n = pg_rows_len(rows);

	argv[n++] = SPAN("EVAL");
	argv[n++] = span_of(script_lost_check);
	argv[n++] = SPAN("0");
	argv[n++] = span_of(q->prefix);
	for (size_t i = 0; i < rows_n; i++) {
		struct span entry = pg_rows_text(rows, i, P_ENTRY);
		argv[n++] = pg_rows_text(rows, i, P_ID);
		argv[n++] = entry.p ? entry : SPAN("");
	}
	const struct redis_reply *r = ask(w, n, argv);
	if (!r || redis_len(r) != rows_n)
		return false;
	for (size_t i = 0; i < rows_n; i++)
		lost[i] = redis_int(redis_at(r, i)) == 1;
	return true;
}

static enum pg_verdict requeue_lost(const struct requeue *q, struct worker *w)
{
	char after[160] = "";
	bool lost[PAGE];

	for (;;) {
		const struct pg_param param[] = {{.kind = PG_PARAM_TEXT, .text = span_of(after)}};
		struct pg_rows *rows = NULL;
		enum pg_verdict v =
		    pg_exec(worker_pg(w), &open_page, ARRAY_LEN(param), param, &rows);
		if (v != PG_OK)
			return v;
		size_t n = pg_rows_len(rows);
		bool known = n && requeue_look(q, w, rows, lost);
		for (size_t i = 0; known && v == PG_OK && i < n; i++)
			if (lost[i])
				v = requeue_row(q, w, rows, i);
		bool more = known && n == PAGE && v == PG_OK && !program_should_stop() &&
			    span_copy(pg_rows_text(rows, n - 1, P_ID), after, sizeof after) == 0;
		pg_rows_free(rows);
		if (!more)
			return v;
	}
}

/* False at the first that Redis does not take: each of the others might wait as long in vain. */
static bool tell(struct worker *w, struct span id, size_t n, const struct span *argv)
{
	struct redis_sync *control = intake_control(worker_intake(w));
	int error;
	const struct redis_reply *r = redis_sync_cmd(control, &error, n, argv);

	if (r && redis_type(r) != REDIS_ERR)
		return true;
	LOG_WARN(FIELDS(.event = "redis_not_told", .correlation_id = id.p,
			.error = r ? redis_str(r).p : redis_sync_error(control)),
		 "Redis cannot be told what it has forgotten of a command; trying again");
	return false;
}

bool requeue_refused(struct requeue *q, struct worker *w, const struct pg_rows *ids)
{
	int64_t soon_ms = clock_boot_ms() + AFTER_REFUSED_MS;
	bool told = true;

	for (size_t i = 0; told && ids && i < pg_rows_len(ids); i++) {
		struct span id = pg_rows_text(ids, i, 0);
		struct span argv[] = {SPAN("EVAL"), span_of(script_reopen), SPAN("0"),
				      span_of(q->prefix), id};

		LOG_WARN(FIELDS(.event = "command_forgotten", .correlation_id = id.p),
			 "Redis ended a command as never offered, but it was: its agent is asked");
		told = tell(w, id, ARRAY_LEN(argv), argv);
		if (q->next_ms > soon_ms)
			q->next_ms = soon_ms;
	}
	return told;
}

bool requeue_over(const struct requeue *q, struct worker *w, const struct pg_rows *rows)
{
	bool told = true;

	for (size_t i = 0; told && rows && i < pg_rows_len(rows); i++) {
		struct span id = pg_rows_text(rows, i, 0);
		struct span argv[] = {
		    SPAN("EVAL"), span_of(script_close),    SPAN("0"), span_of(q->prefix),
		    id,		  pg_rows_text(rows, i, 1), SPAN("0"), SPAN(KEEP_MS)};

		LOG_WARN(FIELDS(.event = "command_over", .correlation_id = id.p),
			 "Redis had forgotten that a command has ended; it is not offered again");
		told = tell(w, id, ARRAY_LEN(argv), argv);
	}
	return told;
}

/* ---- what nobody will answer ---- */

static const struct pg_stmt lost_page = {
    "lost_page",
    "SELECT c.correlation_id, c.agent_id, c.command, c.issued_by_admin_id, "
    "to_char(c.issued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), "
    "to_char(c.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), "
    "COALESCE(c.expires_at < now() - make_interval(secs => $1::double precision), false) "
    "FROM agent_commands c LEFT JOIN agent_lost_declarations d ON d.agent_id = c.agent_id "
    "WHERE c.status IN ('queued', 'offered', 'accepted') AND c.correlation_id > $2 "
    "AND (c.expires_at < now() - make_interval(secs => $1::double precision) "
    "OR d.declared_at >= COALESCE(c.queued_at, c.issued_at, '-infinity')) "
    "ORDER BY c.correlation_id LIMIT 200"};
enum { L_ID, L_AGENT, L_COMMAND, L_ISSUER, L_ISSUED, L_EXPIRES, L_OVERDUE };

static int lost_frame(struct buf *out, struct span id, struct span agent, bool overdue)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "type", "RESULT");
	jsonw_strn(&w, "agent_id", agent.p, agent.n);
	jsonw_strn(&w, "correlation_id", id.p, id.n);
	jsonw_str(&w, "status", "unknown");
	jsonw_obj(&w, "error");
	jsonw_str(&w, "code", "lost");
	jsonw_str(&w, "msg",
		  overdue ? "no answer long after its deadline"
			  : "the agent was declared lost by an operator");
	jsonw_obj_end(&w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

static void close_row(const struct requeue *q, struct worker *w, const struct pg_rows *rows,
		      size_t i)
{
	struct span argv[40], id = pg_rows_text(rows, i, L_ID),
			      agent = pg_rows_text(rows, i, L_AGENT);
	bool overdue = span_eq(pg_rows_text(rows, i, L_OVERDUE), "t");
	char now[CLOCK_RFC3339_LEN + 1];
	CLEANUP(buf_fini) struct buf frame;
	size_t n = 0;

	buf_init(&frame, 4096);
	if (agent.n && lost_frame(&frame, id, agent, overdue) < 0)
		return;
	clock_format_rfc3339(clock_wall_ms(), now);
	argv[n++] = SPAN("EVAL");
	argv[n++] = span_of(script_close);
	argv[n++] = SPAN("0");
	argv[n++] = span_of(q->prefix);
	argv[n++] = id;
	argv[n++] = agent;
	argv[n++] = overdue ? SPAN("1") : SPAN("0");
	argv[n++] = SPAN(KEEP_MS);
	n = put(argv, n, "correlation_id", id);
	n = put(argv, n, "agent_id", agent);
	n = put(argv, n, "source", SPAN("bridge"));
	n = put(argv, n, "state", SPAN("unknown"));
	n = put(argv, n, "error_code", SPAN("lost"));
	n = put(argv, n, "frame",
		agent.n ? (struct span){frame.data, frame.len} : (struct span){0});
	n = put(argv, n, "command", pg_rows_text(rows, i, L_COMMAND));
	n = put(argv, n, "issued_by_admin_id", pg_rows_text(rows, i, L_ISSUER));
	n = put(argv, n, "issued_at", pg_rows_text(rows, i, L_ISSUED));
	n = put(argv, n, "expires_at", pg_rows_text(rows, i, L_EXPIRES));
	n = put(argv, n, "received_at", span_of(now));
	CRASH_POINT("results.before_close");
	const struct redis_reply *r = ask(w, n, argv);
	if (!r || redis_int(r) != 1)
		return;
	metric_add(metrics_get(worker_metrics_of(w), M_declared_lost, NULL, NULL), 1);
	LOG_WARN(FIELDS(.event = "command_lost", .correlation_id = id.p, .agent_id = agent.p),
		 "nobody will answer for this command; it ends as unknown");
}

static enum pg_verdict close_lost(const struct requeue *q, struct worker *w)
{
	char after[160] = "";

	for (;;) {
		const struct pg_param param[] = {
		    {.kind = PG_PARAM_INT8, .int8 = q->lost_after_s},
		    {.kind = PG_PARAM_TEXT, .text = span_of(after)},
		};
		struct pg_rows *rows = NULL;
		enum pg_verdict v =
		    pg_exec(worker_pg(w), &lost_page, ARRAY_LEN(param), param, &rows);
		if (v != PG_OK)
			return v;
		size_t n = pg_rows_len(rows);
		for (size_t i = 0; i < n; i++)
			close_row(q, w, rows, i);
		bool more = n == PAGE && !program_should_stop() &&
			    span_copy(pg_rows_text(rows, n - 1, L_ID), after, sizeof after) == 0;
		pg_rows_free(rows);
		if (!more)
			return PG_OK;
	}
}

/* ---- when ---- */

/* Runs `does` while this writer alone holds the lock. */
static enum pg_verdict requeue_alone(struct requeue *q, struct worker *w,
				     enum pg_verdict (*does)(const struct requeue *,
							     struct worker *))
{
	struct pg_rows *rows = NULL;
	enum pg_verdict v = pg_exec(worker_pg(w), &try_lock, 0, NULL, &rows);
	bool ours = v == PG_OK && span_eq(pg_rows_text(rows, 0, 0), "t");

	pg_rows_free(rows);
	if (!ours)
		return v;
	v = does(q, w);
	/* A lost connection has given the lock back already. */
	pg_tidy(worker_pg(w), unlock);
	return v;
}

void requeue_chore(struct requeue *q, struct worker *w, int64_t now_ms, int64_t results_age_ms)
{
	uint64_t generation = intake_generation(worker_intake(w));
	enum pg_verdict v = PG_OK;

	if (generation != q->generation) {
		q->generation = generation;
		q->next_ms = now_ms + AFTER_CONNECT_MS;
	}
	bool answers_stored = results_age_ms >= 0 && results_age_ms < ANSWERS_FRESH_MS;
	if (answers_stored && now_ms >= q->next_lost_ms) {
		q->next_lost_ms = now_ms + LOST_EVERY_MS;
		v = requeue_alone(q, w, close_lost);
	}
	if (v == PG_OK && now_ms >= q->next_ms) {
		q->next_ms = now_ms + EVERY_MS;
		v = requeue_alone(q, w, requeue_lost);
	}
	if (v != PG_OK)
		worker_pg_failed(w, "requeue", v);
}
