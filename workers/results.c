/*
 * Results: entries of viw.command_results become rows of agent_command_results, or late evidence.
 * The part of commands.c that knows what a RESULT says; state and order are there.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/ident.h"
#include "commands_private.h"
#include "origin.h"

/* ---- statement ---- */

#define RESULT_COLUMNS                                                                      \
	"correlation_id, agent_id, command, status, rc, stdout_redacted, stderr_redacted, " \
	"started_at, finished_at, duration_ms, truncated, error_code, error_msg, "          \
	"issued_by_admin_id, source, entry_id"
#define RESULT_VALUES                                                                       \
	"SELECT id, agent_id, command, status, rc, out, err, started, finished, duration, " \
	"truncated, code, msg, issuer, source, entry FROM u "
#define WON(state) ", (SELECT count(*) FROM won WHERE status = '" state "')"
const struct pg_stmt commands_insert_results = {
    "results",
    /* LATERAL: by the index, whatever the planner thinks of the table. One that grew from nothing
     * since it was last analyzed was read whole for each batch. */
    "WITH u AS MATERIALIZED (SELECT u.id, c.agent_id, COALESCE(u.command, c.command) AS command, "
    "u.status, u.rc, u.out, u.err, u.started, u.finished, u.duration, u.truncated, u.code, u.msg, "
    "COALESCE(u.issuer, c.issued_by_admin_id) AS issuer, u.source, u.entry, c.result_entry "
    "FROM unnest($1::text[], $2::text[], $3::text[], "
    "$4::integer[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[], $9::bigint[], "
    "$10::jsonb[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[]) AS u (id, "
    "command, status, rc, out, err, started, finished, duration, truncated, code, msg, issuer, "
    "source, entry) CROSS JOIN LATERAL (SELECT * FROM agent_commands "
    "WHERE correlation_id = u.id OFFSET 0) c), "
    "won AS (INSERT INTO agent_command_results (" RESULT_COLUMNS ") " RESULT_VALUES
    "WHERE result_entry = entry ORDER BY id COLLATE \"C\" "
    "ON CONFLICT (correlation_id) DO NOTHING RETURNING status), "
    "late AS (INSERT INTO agent_command_late_results (" RESULT_COLUMNS ") " RESULT_VALUES
    "WHERE result_entry <> entry ORDER BY entry "
    "ON CONFLICT (entry_id) DO NOTHING RETURNING 1) "
    "SELECT (SELECT count(*) FROM won), (SELECT count(*) FROM late)"
    /* In the order of commands_state. */
    WON("done") WON("failed") WON("expired") WON("cancelled") WON("rejected") WON("unknown")};
enum {
	R_ID,
	R_COMMAND,
	R_STATUS,
	R_RC,
	R_OUT,
	R_ERR,
	R_STARTED,
	R_FINISHED,
	R_DURATION,
	R_TRUNCATED,
	R_CODE,
	R_MSG,
	R_ISSUER,
	R_SOURCE,
	R_ENTRY
};

/* ---- staging ---- */

/* Contract section 3. In the order of the counts of commands_insert_results. */
const char *const commands_state[COMMANDS_STATES] = {"done",	  "failed",   "expired",
						     "cancelled", "rejected", "unknown"};

/* NULL: no such state. */
static const char *terminal_of(struct span state)
{
	for (size_t i = 0; i < COMMANDS_STATES; i++)
		if (span_eq(state, commands_state[i]))
			return commands_state[i];
	return NULL;
}

static const char *terminal_of_result(const struct wire_result *r)
{
	switch (r->status) {
	case WIRE_STATUS_SUCCESS:
		return r->rc.set && r->rc.v != 0 ? "failed" : "done";
	case WIRE_STATUS_ERROR:
		return r->error.set && span_eq(r->error.code, "outcome_unknown") ? "unknown"
										 : "failed";
	case WIRE_STATUS_EXPIRED:
		return "expired";
	case WIRE_STATUS_CANCELLED:
		return "cancelled";
	case WIRE_STATUS_UNKNOWN:
		return "unknown";
	}
	return "unknown";
}

static struct span mask_output(struct commands *c, const struct secret_set *set, struct span text)
{
	if (!text.p)
		return text;
	buf_clear(&c->scratch);
	int r = redact_text(set, text.p, text.n, &c->scratch);
	if (r == -ENOMEM)
		c->result.err = r;
	if (r < 0)
		return SPAN("***");
	return commands_scratch(c);
}

static void result_put_frame(struct commands *c, struct span id, const struct wire_result *r)
{
	struct columns *k = &c->result;
	const struct secret_set *set = secrets_get(c->secrets, id);
	char truncated[48];
	bool rc_fits = r->rc.set && r->rc.v >= INT32_MIN && r->rc.v <= INT32_MAX;

	columns_int_if(k, R_RC, rc_fits, r->rc.v);
	columns_text(k, R_OUT, mask_output(c, set, r->stdout));
	columns_text(k, R_ERR, mask_output(c, set, r->stderr));
	columns_int_if(k, R_STARTED, r->started_at.set, r->started_at.ms);
	columns_int_if(k, R_FINISHED, r->finished_at.set, r->finished_at.ms);
	columns_int_if(k, R_DURATION, r->duration_ms.set && r->duration_ms.v <= INT64_MAX,
		       (int64_t)r->duration_ms.v);
	snprintf(truncated, sizeof truncated, "{\"stdout\": %s, \"stderr\": %s}",
		 r->truncated.out ? "true" : "false", r->truncated.err ? "true" : "false");
	columns_text(k, R_TRUNCATED, r->truncated.set ? span_of(truncated) : (struct span){0});
	columns_text(k, R_CODE, r->error.set ? r->error.code : (struct span){0});
	columns_text(k, R_MSG, r->error.set ? mask_output(c, set, r->error.msg) : (struct span){0});
}

static void result_put_without_frame(struct commands *c, const struct stream_entry *e)
{
	struct columns *k = &c->result;

	columns_int_if(k, R_RC, false, 0);
	columns_text(k, R_OUT, (struct span){0});
	columns_text(k, R_ERR, (struct span){0});
	columns_int_if(k, R_STARTED, false, 0);
	columns_int_if(k, R_FINISHED, false, 0);
	columns_int_if(k, R_DURATION, false, 0);
	columns_text(k, R_TRUNCATED, (struct span){0});
	columns_text(k, R_CODE, commands_word(stream_field(e, "error_code")));
	columns_text(k, R_MSG, (struct span){0});
}

static void result_put(struct commands *c, const struct stream_entry *e,
		       const struct command_fact *f, const struct wire_result *r)
{
	struct columns *k = &c->result;

	columns_text(k, R_ID, f->id);
	columns_text(k, R_COMMAND, f->command);
	columns_text(k, R_STATUS, span_of(f->status));
	if (r)
		result_put_frame(c, f->id, r);
	else
		result_put_without_frame(c, e);
	columns_text(k, R_ISSUER, f->issued_by);
	columns_text(k, R_SOURCE, commands_word(stream_field(e, "source")));
	columns_text(k, R_ENTRY, e->id);
}

const char *commands_stage_result(struct commands *c, const struct stream_entry *e)
{
	struct span id = stream_field(e, "correlation_id"), agent = stream_field(e, "agent_id");
	struct span frame = stream_field(e, "frame");
	bool by_bridge = span_eq(stream_field(e, "source"), "bridge");
	struct wire_frame w;
	struct wire_refusal_info info = {0};
	int64_t entry_ms;

	if (!id.p || !ident_is_correlation_id(id.p, id.n))
		return "bad_correlation_id";
	if (stream_entry_ms(e->id, &entry_ms) < 0)
		return "bad_entry_id";
	if (agent.n && !ident_is_agent_id(agent.p, agent.n))
		return "bad_agent_id";
	bool decoded =
	    frame.n &&
	    wire_decode(c->decoder, WIRE_FROM_AGENT, frame.p, frame.n, &w, &info) == WIRE_OK &&
	    w.type == WIRE_RESULT;
	/* A bridge's own word is in `state`; `rejected` comes from nobody else. */
	const char *status = by_bridge ? terminal_of(stream_field(e, "state")) : NULL;
	if (!decoded && (frame.n || !status))
		return info.no_memory ? no_memory : "bad_frame";
	if (decoded && (span_order(w.result.correlation_id, id) != 0 ||
			span_order(w.result.agent_id, agent) != 0))
		return "agent_mismatch";
	struct command_fact *f = commands_fact(c, COMMAND_RESULT, id);
	if (!f)
		return no_memory;
	f->status = status ? status : terminal_of_result(&w.result);
	f->never_offered =
	    by_bridge && (!strcmp(f->status, "expired") || !strcmp(f->status, "cancelled"));
	f->agent_id = agent.n ? agent : (struct span){0};
	f->entry_id = e->id;
	f->command = commands_word(stream_field(e, "command"));
	f->issued_by = commands_word(stream_field(e, "issued_by_admin_id"));
	f->has_issued = origin_time(stream_field(e, "issued_at"), &f->issued_ms);
	f->has_expires = origin_time(stream_field(e, "expires_at"), &f->expires_ms);
	if (!origin_time(stream_field(e, "received_at"), &f->at_ms))
		f->at_ms = entry_ms;
	result_put(c, e, f, decoded ? &w.result : NULL);
	return NULL;
}
