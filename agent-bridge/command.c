/* Checks entries of viw.commands; every fault has a code and words for the row. */
#include "command.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Characters that are safe in a row and in the frame the bridge makes of a rejected id. */
static void copy_agent_anyhow(struct span s, char *out)
{
	size_t n = s.n < AGENT_ID_MAX ? s.n : AGENT_ID_MAX;

	for (size_t i = 0; i < n; i++)
		out[i] = ident_is_agent_id(s.p + i, 1) || (i && strchr("._-", s.p[i]) && s.p[i])
			     ? s.p[i]
			     : '_';
	out[n] = '\0';
	if (!ident_is_agent_id(out, n))
		memcpy(out, "invalid", 8);
}

static void refuse(struct command *c, const char *code, const char *reason)
{
	c->kind = COMMAND_REJECT;
	c->code = code;
	(void)snprintf(c->reason, sizeof(c->reason), "%s", reason);
}

/* The words go into a frame as they are: the fault's without its backslash. */
static void refuse_params(struct command *c, const struct json_fault *fault)
{
	refuse(c, "bad_params", "");
	(void)snprintf(
	    c->reason, sizeof(c->reason),
	    "params must be a JSON object of at most 64 KiB, nested at most 14 deep, with no "
	    "name twice, no NUL and in UTF-8: %s at byte %zu",
	    fault->what + (fault->what[0] == '\\'), fault->offset);
}

/* Sets times; false when a field of time is wrong. */
static bool parse_times(const struct stream_entry *e, int64_t entry_ms, struct command *c)
{
	struct span issued = stream_field(e, "issued_at"), expires = stream_field(e, "expires_at"),
		    ttl = stream_field(e, "ttl_s");
	int64_t ttl_s = COMMAND_TTL_DEFAULT_S;

	c->issued_at_ms = entry_ms;
	if (issued.n && clock_parse_rfc3339(issued.p, issued.n, &c->issued_at_ms) < 0) {
		refuse(c, "bad_issued_at",
		       "issued_at must be an RFC 3339 time with its zone, such as "
		       "2026-11-20T11:09:00Z");
		return false;
	}
	if (ttl.n && (json_int(ttl, &ttl_s) < 0 || ttl_s < 1 || ttl_s > COMMAND_TTL_MAX_S)) {
		refuse(c, "bad_ttl", "ttl_s must be an integer from 1 to 86400");
		return false;
	}
	/* A backend whose clock runs ahead must not lose its commands to the 24 h rule. */
	c->expires_at_ms = (c->issued_at_ms < entry_ms ? c->issued_at_ms : entry_ms) + ttl_s * 1000;
	if (expires.n && clock_parse_rfc3339(expires.p, expires.n, &c->expires_at_ms) < 0) {
		refuse(c, "bad_expires_at",
		       "expires_at must be an RFC 3339 time with its zone, such as "
		       "2026-11-20T11:09:00Z");
		return false;
	}
	if (c->expires_at_ms - entry_ms > COMMAND_AHEAD_MAX_MS) {
		refuse(c, "expiry_too_far", "expires_at may be at most 24 h ahead");
		return false;
	}
	clock_format_rfc3339(c->issued_at_ms, c->issued_at);
	clock_format_rfc3339(c->expires_at_ms, c->expires_at);
	return true;
}

static void parse_run(struct command *c)
{
	struct json_fault fault;

	if (!command_is_verb(c->verb))
		refuse(
		    c, "bad_command",
		    "command must be 1 to 128 printable ASCII characters but quote and backslash");
	else if (!command_is_params(c->params, &fault))
		refuse_params(c, &fault);
	else if (!command_is_text(c->signature, COMMAND_SIGNATURE_MAX_BYTES))
		refuse(c, "bad_signature", "signature must be UTF-8 text of at most 4096 bytes");
}

/* A cancel needs its ids only; what else it brings counts where it is as it should be. */
static void leave_out_bad(struct command *c)
{
	if (!command_is_verb(c->verb))
		c->verb = (struct span){0};
	if (!command_is_params(c->params, NULL))
		c->params = SPAN("{}");
	if (!command_is_text(c->signature, COMMAND_SIGNATURE_MAX_BYTES))
		c->signature = (struct span){0};
}

void command_digest(struct span agent, struct span verb, struct span params, char *out)
{
	uint8_t part[3 * SHA256_BYTES], whole[SHA256_BYTES];

	crypto_sha256(agent.p, agent.n, part);
	crypto_sha256(verb.p, verb.n, part + SHA256_BYTES);
	crypto_sha256(params.p, params.n, part + 2 * SHA256_BYTES);
	crypto_sha256(part, sizeof(part), whole);
	crypto_hex(whole, sizeof(whole), out);
}

void command_parse(const struct stream_entry *e, const struct allowlist *allowed,
		   struct command *ret)
{
	struct span cid = stream_field(e, "correlation_id"), agent = stream_field(e, "agent_id"),
		    op = stream_field(e, "op");
	int64_t entry_ms = 0;

	memset(ret, 0, sizeof(*ret));
	if (stream_entry_ms(e->id, &entry_ms) < 0 || !ident_is_correlation_id(cid.p, cid.n)) {
		refuse(
		    ret, "bad_correlation_id",
		    "correlation_id is missing or does not fit [A-Za-z0-9][A-Za-z0-9._:-]{0,127}");
		ret->kind = COMMAND_DROP;
		return;
	}
	memcpy(ret->cid, cid.p, cid.n);
	ret->verb = stream_field(e, "command");
	ret->params = stream_field(e, "params");
	if (!ret->params.n)
		ret->params = SPAN("{}");
	ret->by = stream_field(e, "issued_by_admin_id");
	ret->signature = stream_field(e, "signature");
	ret->maybe_ran = stream_field(e, "requeued").n > 0;
	command_digest(agent, ret->verb, ret->params, ret->digest);
	if (!command_is_text(ret->by, COMMAND_ISSUER_MAX_BYTES)) {
		ret->by = (struct span){0};
		copy_agent_anyhow(agent, ret->agent);
		refuse(ret, "bad_issued_by",
		       "issued_by_admin_id must be UTF-8 text of at most 128 bytes");
		return;
	}
	if (!ident_is_agent_id(agent.p, agent.n)) {
		copy_agent_anyhow(agent, ret->agent);
		refuse(ret, "bad_agent_id",
		       "agent_id is missing or does not fit [A-Za-z0-9][A-Za-z0-9._-]{0,63}");
		return;
	}
	memcpy(ret->agent, agent.p, agent.n);
	if (op.n && span_eq(op, "cancel")) {
		ret->kind = COMMAND_CANCEL;
		leave_out_bad(ret);
		ret->maybe_ran = ret->maybe_ran || span_eq(stream_field(e, "reason"), "redis_lost");
		if (ret->maybe_ran)
			(void)parse_times(e, entry_ms, ret);
		return;
	}
	if (op.n && !span_eq(op, "run")) {
		refuse(ret, "bad_op", "op must be run or cancel");
		return;
	}
	if (!parse_times(e, entry_ms, ret))
		return;
	parse_run(ret);
	if (ret->kind == COMMAND_RUN && !allowlist_has(allowed, ret->agent))
		refuse(ret, "not_allowed", "the agent is not on this bridge's allowlist");
}
