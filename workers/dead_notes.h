/*
 * What is said of the dead letters of a range: counted and logged with its commit, for a range is
 * staged many times while the row at fault is searched.
 */
#pragma once

#include "base/log_limit.h"
#include "base/metrics.h"
#include "intake.h"

struct dead_note {
	const struct intake_entry *x;
	const char *reason, *detail; /* not copied; detail may be NULL */
};
struct dead_notes {
	struct dead_note *item;
	size_t n, cap;
};

void dead_notes_fini(struct dead_notes *d);
void dead_notes_clear(struct dead_notes *d);
int dead_notes_add(struct dead_notes *d, const struct intake_entry *x, const char *reason,
		   const char *detail) MUST_CHECK;
/* lines: what was logged so far. */
void dead_notes_tell(const struct dead_notes *d, const struct intake *in, struct metrics *m,
		     struct log_limit *lines);
