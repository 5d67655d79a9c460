/*
 * Commands, what became of them on their way, and their results: what a batch says of each
 * correlation_id, folded to one upsert that never lowers a state, whichever comes first.
 *
 * The command's row decides: the first result to set it terminal leaves its entry id there
 * (result_entry) and becomes the row of agent_command_results; any other result is late evidence.
 * So replayed entries change nothing, and two writers agree. Rows of agent_commands are locked
 * first, in order of correlation_id.
 */
#pragma once

#include "arena.h"
#include "columns.h"
#include "redis/streams.h"
#include "secrets.h"
#include "verbs/verbs.h"
#include "wire/wire.h"

enum { COMMANDS_STATES = 6 };
extern const char *const commands_state[COMMANDS_STATES]; /* terminal ones: done, failed, … */

struct command_fact;
struct commands {
	struct command_fact *fact;
	size_t n, cap;
	struct arena arena;
	struct buf scratch;
	struct wire_decoder *decoder;
	const struct verbs *verbs; /* not owned; NULL: by name only */
	struct secrets *secrets;
	struct columns command, result;
	struct columns offering; /* ids a bridge asks about: Redis may have forgotten their end */
	struct pg_rows *refused; /* ids a bridge ended as never offered, though they were */
	struct pg_rows *over;	 /* of offering: id and agent of those that have ended */
	uint64_t wrote_commands, wrote_results, wrote_late;
	uint64_t wrote_status[COMMANDS_STATES]; /* of wrote_results; commands_state names them */
};

int commands_init(struct commands *c, const struct verbs *verbs) MUST_CHECK;
void commands_fini(struct commands *c);
void commands_clear(struct commands *c);
/* Entries of viw.commands, viw.command_events, viw.command_results. NULL or a dead letter's reason.
 */
const char *commands_stage_ledger(struct commands *c, const struct stream_entry *e);
const char *commands_stage_event(struct commands *c, const struct stream_entry *e);
const char *commands_stage_result(struct commands *c, const struct stream_entry *e);
enum pg_verdict commands_flush(struct commands *c, struct pg *p) MUST_CHECK;
/* Masks the parameters of an entry of viw.commands into scratch; true when that changed them. */
bool commands_mask_params(struct commands *c, const struct stream_entry *e, struct span *ret);
/* Masks patterns in any text; true when that changed it. */
bool commands_mask_text(struct commands *c, struct span text, struct span *ret);
