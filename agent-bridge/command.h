/* One entry of viw.commands as the backend wrote it: checked, with its times worked out. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "allowlist.h"
#include "base/clock.h"
#include "base/ident.h"
#include "base/macros.h"
#include "crypto/crypto.h"
#include "redis/streams.h"
#include "wire/command_rules.h"

enum command_kind {
	COMMAND_RUN,
	COMMAND_CANCEL,
	COMMAND_REJECT, /* it has an id: it ends as rejected */
	COMMAND_DROP,	/* it has none: a dead letter */
};
struct command {
	enum command_kind kind;
	char cid[CORRELATION_ID_MAX + 1], agent[AGENT_ID_MAX + 1];
	char digest[SHA256_HEX_LEN + 1];
	struct span verb, params, by, signature;
	int64_t issued_at_ms, expires_at_ms;
	char issued_at[CLOCK_RFC3339_LEN + 1], expires_at[CLOCK_RFC3339_LEN + 1];
	bool maybe_ran;	  /* put there again after Redis lost it */
	const char *code; /* REJECT, DROP: static */
	char reason[224]; /* the same: words without quote or backslash, else empty */
};

/* Spans point into the entry. */
void command_parse(const struct stream_entry *e, const struct allowlist *allowed,
		   struct command *ret);
/* What makes two commands with one id the same. out: SHA256_HEX_LEN + 1 bytes. */
void command_digest(struct span agent, struct span verb, struct span params, char *out);
