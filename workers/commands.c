#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/grow.h"
#include "base/ident.h"
#include "commands_private.h"
#include "origin.h"
#include "wire/command_rules.h"

enum { WORD_MAX = 256 };

/* ---- statements ---- */

/* A bridge that says "expired" or "cancelled" by itself (never_offered) knows of no offer. Where a
 * row knows one, Redis has forgotten it: the word does not count, and such ids are what is
 * returned. Asked of the row as it is locked: another writer may just have stored the offer. */
#define DISPROVED                                                                   \
	"(excluded.status IN ('expired', 'cancelled') AND c.status IN ('offered', " \
	"'accepted') AND c.correlation_id IN (SELECT id FROM u WHERE never_offered)) "
static const struct pg_stmt upsert_commands = {
    "commands",
    "WITH u AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::jsonb[], "
    "$5::boolean[], "
    "$6::boolean[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], "
    "$11::text[], "
    "$12::text[], $13::timestamptz[], $14::timestamptz[], $15::timestamptz[], $16::text[], "
    "$17::boolean[], $18::boolean[]) AS x (id, agent, command, params, masked, signed, issuer, "
    "issued, expires, queued, entry, status, offered, accepted, completed, result, malformed, "
    "never_offered)), "
    "done AS (INSERT INTO agent_commands AS c (correlation_id, agent_id, command, params, "
    "params_masked, signed, "
    "issued_by_admin_id, issued_at, expires_at, queued_at, entry_id, status, offered_at, "
    "accepted_at, "
    "completed_at, result_entry, malformed) "
    "SELECT id, agent, command, params, masked, signed, issuer, issued, expires, queued, entry, "
    "status, offered, accepted, completed, result, malformed FROM u ORDER BY id COLLATE \"C\" ON "
    "CONFLICT (correlation_id) DO UPDATE SET "
    "malformed = COALESCE(c.malformed, excluded.malformed), "
    "agent_id = CASE WHEN c.agent_id = '' AND c.completed_at IS NULL THEN excluded.agent_id "
    "ELSE c.agent_id END, "
    "command = COALESCE(c.command, excluded.command), "
    "params = COALESCE(c.params, excluded.params), "
    "params_masked = COALESCE(c.params_masked, excluded.params_masked), "
    "signed = COALESCE(c.signed, excluded.signed), "
    "issued_by_admin_id = COALESCE(c.issued_by_admin_id, excluded.issued_by_admin_id), "
    "issued_at = COALESCE(c.issued_at, excluded.issued_at), "
    "expires_at = COALESCE(c.expires_at, excluded.expires_at), "
    "queued_at = COALESCE(c.queued_at, excluded.queued_at), "
    "entry_id = CASE WHEN c.completed_at IS NULL THEN COALESCE(excluded.entry_id, c.entry_id) "
    "ELSE COALESCE(c.entry_id, excluded.entry_id) END, "
    "offered_at = COALESCE(c.offered_at, excluded.offered_at), "
    "accepted_at = COALESCE(c.accepted_at, excluded.accepted_at), "
    "status = CASE WHEN c.completed_at IS NOT NULL THEN c.status "
    "WHEN excluded.completed_at IS NOT NULL AND NOT " DISPROVED "THEN excluded.status "
    "WHEN 'accepted' IN (c.status, excluded.status) THEN 'accepted' "
    "WHEN 'offered' IN (c.status, excluded.status) THEN 'offered' ELSE 'queued' END, "
    "completed_at = COALESCE(c.completed_at, CASE WHEN NOT " DISPROVED
    "THEN excluded.completed_at END), "
    "result_entry = CASE WHEN c.completed_at IS NOT NULL THEN c.result_entry WHEN NOT " DISPROVED
    "THEN excluded.result_entry END RETURNING c.correlation_id, c.completed_at) "
    "SELECT id FROM u JOIN done ON correlation_id = id "
    "WHERE never_offered AND completed_at IS NULL"};
enum {
	C_ID,
	C_AGENT,
	C_COMMAND,
	C_PARAMS,
	C_MASKED,
	C_SIGNED,
	C_ISSUER,
	C_ISSUED,
	C_EXPIRES,
	C_QUEUED,
	C_ENTRY,
	C_STATUS,
	C_OFFERED,
	C_ACCEPTED,
	C_COMPLETED,
	C_RESULT,
	C_MALFORMED,
	C_NEVER_OFFERED
};
#define COMMAND_TYPES "tttjbbtzzzttzzztbb"

static const struct pg_stmt commands_over = {
    "commands_over",
    "SELECT correlation_id, agent_id FROM agent_commands WHERE correlation_id = ANY($1) "
    "AND completed_at IS NOT NULL"};

/* ---- making ---- */

int commands_init(struct commands *c, const struct verbs *verbs)
{
	*c = (struct commands){.verbs = verbs};
	arena_init(&c->arena);
	buf_init(&c->scratch, (size_t)WIRE_MAX_FRAME_BYTES_MOST * 2);
	int r = wire_decoder_new(WIRE_MAX_FRAME_BYTES_MOST, &c->decoder);
	if (r == 0)
		r = secrets_new(&c->secrets);
	if (r == 0)
		r = columns_init(&c->command, COMMAND_TYPES);
	if (r == 0)
		r = columns_init(&c->result, COMMANDS_RESULT_TYPES);
	if (r == 0)
		r = columns_init(&c->offering, "t");
	if (r < 0)
		commands_fini(c);
	return r;
}

void commands_fini(struct commands *c)
{
	wire_decoder_free(c->decoder);
	secrets_free(c->secrets);
	columns_fini(&c->command);
	columns_fini(&c->result);
	columns_fini(&c->offering);
	arena_fini(&c->arena);
	buf_wipe(&c->scratch);
	buf_fini(&c->scratch);
	free(c->fact);
	pg_rows_free(c->refused);
	pg_rows_free(c->over);
	*c = (struct commands){0};
}

void commands_clear(struct commands *c)
{
	c->n = 0;
	arena_clear(&c->arena);
	columns_clear(&c->command);
	columns_clear(&c->result);
	columns_clear(&c->offering);
	pg_rows_free(TAKE(c->refused));
	pg_rows_free(TAKE(c->over));
	c->wrote_commands = c->wrote_results = c->wrote_late = 0;
	memset(c->wrote_status, 0, sizeof c->wrote_status);
}

struct command_fact *commands_fact(struct commands *c, enum command_kind kind, struct span id)
{
	if (grow(&c->fact, c->n, &c->cap, 64, sizeof *c->fact) < 0)
		return NULL;
	struct command_fact *f = &c->fact[c->n];
	*f = (struct command_fact){.kind = kind, .order = c->n, .id = id};
	c->n++;
	return f;
}

/* ---- masking ---- */

static const struct verb *commands_verb(const struct commands *c, struct span name)
{
	char word[WORD_MAX];

	if (!c->verbs || !name.p || span_copy(name, word, sizeof word) < 0)
		return NULL;
	return verbs_find(c->verbs, word);
}

struct span commands_scratch(const struct commands *c)
{
	return (struct span){c->scratch.data ? c->scratch.data : "", c->scratch.len};
}

bool commands_mask_params(struct commands *c, const struct stream_entry *e, struct span *ret)
{
	struct span params = stream_field(e, "params");
	struct json_fault fault;
	bool masked = false;

	if (!params.n)
		return false;
	buf_clear(&c->scratch);
	if (json_validate(params.p, params.n, WIRE_MAX_DEPTH, &fault) < 0 ||
	    redact_params(commands_verb(c, stream_field(e, "command")), params, &c->scratch,
			  &masked) < 0) {
		*ret = SPAN("***"); /* what cannot be read cannot be known to hold no secret */
		return true;
	}
	*ret = commands_scratch(c);
	return masked;
}

bool commands_mask_text(struct commands *c, struct span text, struct span *ret)
{
	buf_clear(&c->scratch);
	if (redact_text(NULL, text.p, text.n, &c->scratch) < 0) {
		*ret = SPAN("***");
		return true;
	}
	*ret = commands_scratch(c);
	return ret->n != text.n || (text.n && memcmp(ret->p, text.p, text.n) != 0);
}

/* ---- the ledger: viw.commands ---- */

/* What a bridge rejects (contract section 2), so that it is rejected again after Redis lost it. */
static bool ledger_is_malformed(const struct stream_entry *e, const struct command_fact *f)
{
	struct span op = stream_field(e, "op"), issued = stream_field(e, "issued_at");
	struct span ttl = stream_field(e, "ttl_s"), expires = stream_field(e, "expires_at");
	struct span params = stream_field(e, "params");
	int64_t v;

	return !f->agent_id.p || (op.n && !span_eq(op, "run")) ||
	       !command_is_verb(stream_field(e, "command")) ||
	       (params.n && !command_is_params(params, NULL)) ||
	       !command_is_text(stream_field(e, "issued_by_admin_id"), COMMAND_ISSUER_MAX_BYTES) ||
	       !command_is_text(stream_field(e, "signature"), COMMAND_SIGNATURE_MAX_BYTES) ||
	       (issued.n && !origin_time(issued, &v)) ||
	       (ttl.n && (!origin_int(ttl, &v) || v < 1 || v > COMMAND_TTL_MAX_S)) ||
	       (expires.n && !origin_time(expires, &v)) ||
	       (f->has_expires && f->expires_ms - f->at_ms > COMMAND_AHEAD_MAX_MS);
}

static int ledger_params(struct commands *c, const struct stream_entry *e, struct command_fact *f)
{
	struct span params = stream_field(e, "params");
	const struct verb *verb = commands_verb(c, f->command);
	struct secret_set set = {0};

	if (!params.n)
		params = SPAN("{}");
	if (!command_is_params(params, NULL)) {
		struct json_fault fault;
		if (json_validate(params.p, params.n, WIRE_MAX_DEPTH, &fault) == -ENOMEM)
			return -ENOMEM;
		/* The bridge will reject it; the row keeps none of it. */
		f->params_masked = true;
		return 0;
	}
	buf_clear(&c->scratch);
	int r = redact_params(verb, params, &c->scratch, &f->params_masked);
	if (r == -ENOMEM)
		return r;
	if (r < 0) {
		f->params_masked = true; /* what cannot be masked is not kept */
		return 0;
	}
	f->params = arena_copy(&c->arena, commands_scratch(c));
	r = f->params_masked ? secret_set_from_params(verb, params, &set) : 0;
	if (r == 0)
		secrets_put(c->secrets, f->id, &set, clock_boot_ms());
	return r == -ENOMEM ? r : c->arena.err;
}

static void ledger_times(const struct stream_entry *e, struct command_fact *f)
{
	struct span ttl = stream_field(e, "ttl_s");
	int64_t ttl_s = COMMAND_TTL_DEFAULT_S;

	f->has_issued = true;
	if (!origin_time(stream_field(e, "issued_at"), &f->issued_ms))
		f->issued_ms = f->at_ms;
	f->has_expires = origin_time(stream_field(e, "expires_at"), &f->expires_ms);
	if (f->has_expires ||
	    (ttl.p && (!origin_int(ttl, &ttl_s) || ttl_s < 1 || ttl_s > COMMAND_TTL_MAX_S)))
		return;
	f->has_expires = true;
	/* A backend whose clock runs ahead must not win time by it. */
	f->expires_ms = (f->issued_ms < f->at_ms ? f->issued_ms : f->at_ms) + ttl_s * 1000;
}

/* A backend's text goes into the row only when the row can hold it and it is of a sane length. */
struct span commands_word(struct span s)
{
	return s.n && command_is_text(s, WORD_MAX) ? s : (struct span){0};
}

const char *commands_stage_ledger(struct commands *c, const struct stream_entry *e)
{
	struct span id = stream_field(e, "correlation_id"), agent = stream_field(e, "agent_id");
	struct span op = stream_field(e, "op");
	int64_t at_ms;

	if (!id.p || !ident_is_correlation_id(id.p, id.n))
		return "bad_correlation_id";
	if (stream_entry_ms(e->id, &at_ms) < 0)
		return "bad_entry_id";
	/* A cancel asks something of a command; the command's own entry makes its row. */
	if (span_eq(op, "cancel"))
		return NULL;
	struct command_fact *f = commands_fact(c, COMMAND_LEDGER, id);
	if (!f)
		return no_memory;
	f->at_ms = at_ms;
	f->entry_id = e->id;
	f->agent_id = agent.p && ident_is_agent_id(agent.p, agent.n) ? agent : (struct span){0};
	f->command = commands_word(stream_field(e, "command"));
	f->issued_by = commands_word(stream_field(e, "issued_by_admin_id"));
	f->is_signed = stream_field(e, "signature").n > 0;
	ledger_times(e, f);
	f->malformed = ledger_is_malformed(e, f);
	return ledger_params(c, e, f) < 0 ? no_memory : NULL;
}

/* ---- on its way: viw.command_events ---- */

const char *commands_stage_event(struct commands *c, const struct stream_entry *e)
{
	struct span id = stream_field(e, "correlation_id"), event = stream_field(e, "event");
	struct span agent = stream_field(e, "agent_id");
	int64_t entry_ms;

	if (!id.p || !ident_is_correlation_id(id.p, id.n))
		return "bad_correlation_id";
	if (!agent.p || !ident_is_agent_id(agent.p, agent.n))
		return "bad_agent_id";
	if (stream_entry_ms(e->id, &entry_ms) < 0)
		return "bad_entry_id";
	if (span_eq(event, "offering")) {
		columns_text(&c->offering, 0, id);
		return NULL;
	}
	bool offered = span_eq(event, "offered");
	if (!offered && !span_eq(event, "accepted"))
		return "unknown_event";
	struct command_fact *f = commands_fact(c, offered ? COMMAND_OFFERED : COMMAND_ACCEPTED, id);
	if (!f)
		return no_memory;
	f->agent_id = agent;
	if (!origin_time(stream_field(e, "received_at"), &f->at_ms))
		f->at_ms = entry_ms;
	return NULL;
}

/* ---- folding ---- */

static int by_id(const void *a, const void *b)
{
	const struct command_fact *x = a, *y = b;
	int r = span_order(x->id, y->id);

	return r ? r : (x->order > y->order) - (x->order < y->order);
}

struct command_row { /* the first fact that tells a thing */
	const struct command_fact *ledger, *offered, *accepted, *result, *newest_ledger;
	const struct command_fact *agent, *command, *issuer, *issued, *expires;
};

static void row_take(struct command_row *x, const struct command_fact *f)
{
	const struct command_fact **kind[] = {[COMMAND_LEDGER] = &x->ledger,
					      [COMMAND_OFFERED] = &x->offered,
					      [COMMAND_ACCEPTED] = &x->accepted,
					      [COMMAND_RESULT] = &x->result};

	const struct command_fact **has = kind[f->kind];

	/* An answer disproves a bridge's word that it was never offered. */
	if (!*has || ((*has)->never_offered && !f->never_offered))
		*has = f;
	if (f->kind == COMMAND_LEDGER)
		x->newest_ledger = f;
	if (!x->agent && f->agent_id.p)
		x->agent = f;
	if (!x->command && f->command.p)
		x->command = f;
	if (!x->issuer && f->issued_by.p)
		x->issuer = f;
	if (!x->issued && f->has_issued)
		x->issued = f;
	if (!x->expires && f->has_expires)
		x->expires = f;
}

static void commands_put_row(struct commands *c, struct span id, const struct command_row *x)
{
	struct columns *k = &c->command;
	const struct span none = {0};
	bool never_offered = x->result && x->result->never_offered;
	const struct command_fact *result = x->result;

	if (never_offered && (x->offered || x->accepted))
		result = NULL;
	columns_text(k, C_ID, id);
	columns_text(k, C_AGENT, x->agent ? x->agent->agent_id : SPAN(""));
	columns_text(k, C_COMMAND, x->command ? x->command->command : none);
	columns_text(k, C_PARAMS, x->ledger ? x->ledger->params : none);
	columns_int_if(k, C_MASKED, x->ledger, x->ledger && x->ledger->params_masked);
	columns_int_if(k, C_SIGNED, x->ledger, x->ledger && x->ledger->is_signed);
	columns_text(k, C_ISSUER, x->issuer ? x->issuer->issued_by : none);
	columns_int_if(k, C_ISSUED, x->issued, x->issued ? x->issued->issued_ms : 0);
	columns_int_if(k, C_EXPIRES, x->expires, x->expires ? x->expires->expires_ms : 0);
	columns_int_if(k, C_QUEUED, x->ledger, x->ledger ? x->ledger->at_ms : 0);
	columns_text(k, C_ENTRY, x->newest_ledger ? x->newest_ledger->entry_id : none);
	columns_text(k, C_STATUS,
		     result	   ? span_of(result->status)
		     : x->accepted ? SPAN("accepted")
		     : x->offered  ? SPAN("offered")
				   : SPAN("queued"));
	columns_int_if(k, C_OFFERED, x->offered, x->offered ? x->offered->at_ms : 0);
	columns_int_if(k, C_ACCEPTED, x->accepted, x->accepted ? x->accepted->at_ms : 0);
	columns_int_if(k, C_COMPLETED, result, result ? result->at_ms : 0);
	columns_text(k, C_RESULT, result ? result->entry_id : none);
	columns_int_if(k, C_MALFORMED, x->ledger, x->ledger && x->ledger->malformed);
	columns_int(k, C_NEVER_OFFERED, never_offered);
}

static void commands_fold(struct commands *c)
{
	if (!c->n)
		return;
	qsort(c->fact, c->n, sizeof *c->fact, by_id);
	for (size_t i = 0, j; i < c->n; i = j) {
		struct command_row x = {0};
		for (j = i; j < c->n && span_order(c->fact[j].id, c->fact[i].id) == 0; j++)
			row_take(&x, &c->fact[j]);
		commands_put_row(c, c->fact[i].id, &x);
	}
	c->n = 0; /* folded once, however often the transaction is tried */
}

/* ---- writing ---- */

enum pg_verdict commands_flush(struct commands *c, struct pg *p)
{
	struct pg_rows *rows = NULL;

	commands_fold(c);
	pg_rows_free(TAKE(c->refused));
	enum pg_verdict v = columns_exec(&c->command, p, &upsert_commands, &c->refused);
	if (v == PG_OK)
		v = columns_exec(&c->result, p, &commands_insert_results, &rows);
	pg_rows_free(TAKE(c->over));
	if (v == PG_OK)
		v = columns_exec(&c->offering, p, &commands_over, &c->over);
	if (v == PG_OK) {
		c->wrote_commands = c->command.rows;
		c->wrote_results = rows ? (uint64_t)pg_rows_int(rows, 0, 0) : 0;
		c->wrote_late = rows ? (uint64_t)pg_rows_int(rows, 0, 1) : 0;
		for (size_t i = 0; i < COMMANDS_STATES; i++)
			c->wrote_status[i] = rows ? (uint64_t)pg_rows_int(rows, 0, 2 + i) : 0;
	}
	pg_rows_free(rows);
	return v;
}
