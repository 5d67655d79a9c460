/* What commands.c and results.c share: the facts of a batch, not yet folded. */
#pragma once

#include "commands.h"

enum command_kind { COMMAND_LEDGER, COMMAND_OFFERED, COMMAND_ACCEPTED, COMMAND_RESULT };

struct command_fact {
	enum command_kind kind;
	size_t order; /* in the batch */
	struct span id, agent_id, command, issued_by, entry_id;
	struct span params;
	bool params_masked, is_signed, malformed;
	int64_t at_ms; /* queued, offered, accepted, completed */
	bool has_issued, has_expires;
	int64_t issued_ms, expires_ms;
	const char *status; /* of a result: terminal state */
	bool never_offered; /* of a result: it ended in Redis, no agent was asked */
};

/* A new fact of the batch; NULL: no memory. */
struct command_fact *commands_fact(struct commands *c, enum command_kind kind, struct span id);
/* Text as a column can hold it, or absent. */
struct span commands_word(struct span s);
/* What the last redaction left. Valid until the next one. */
struct span commands_scratch(const struct commands *c);

/* Columns of a result, in the order of commands_insert_results. */
#define COMMANDS_RESULT_TYPES "tttittzzljttttt"
extern const struct pg_stmt commands_insert_results;
