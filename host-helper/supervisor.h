/*
 * The process that runs one request: forked from the helper, and able to outlive it. It creates the
 * journal file (verbs with effects), starts the script or built-in verb in a session of its own,
 * feeds and reads it, enforces time and output limits, ends its whole tree, masks, writes DONE, and
 * reports the same outcome on a pipe to the helper, if that still lives.
 */
#pragma once

#include <stdbool.h>

#include "audit.h"
#include "health.h"
#include "host_helper_settings.h"
#include "journal.h"
#include "verbs/verbs.h"

struct job {
	const struct verb *verb;
	struct verb_args args;
	struct secret_set secrets;
	struct intent intent; /* ids are filled for every verb; the rest for those with effects */
	const struct journal *journal;
	const struct audit *audit;
	const struct host_helper_settings *cfg;
	struct cpu_sample cpu_before;
	int report; /* write end */
};

/* Code reported when there is a journal file already: a supervisor of an earlier helper was
 * quicker. Never sent to a peer; the journal has the answer. */
#define SUPERVISOR_TAKEN "taken"

_Noreturn void supervisor_main(struct job *job);

/* Room that the start and done records of a verb need at most. */
size_t supervisor_reserve_bytes(const struct verb *v);
