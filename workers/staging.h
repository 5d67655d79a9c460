/*
 * What was made of a batch's entries, or of a range of them, before it is written: one program's
 * rows and the dead letters. A worker has two, so that the next batch is staged while one is
 * written.
 */
#pragma once

#include "dead_letters.h"
#include "dead_notes.h"
#include "intake.h"

struct worker_ops;
struct staging {
	const struct worker_ops *ops;
	void *arg; /* of ops; NULL: not used */
	const struct intake *intake;
	struct dead_letters dead;
	struct dead_notes dead_notes;
	uint64_t serial; /* the batch whose first entries are staged ahead; 0: none */
	size_t staged;	 /* how many of them */
	int err;	 /* sticky until cleared: -ENOMEM */
};

int staging_init(struct staging *s, const struct worker_ops *ops, void *arg,
		 const struct intake *in) MUST_CHECK;
void staging_fini(struct staging *s);
/* Stages at most n more entries of a batch, then folds it. True: there is more to do. */
bool staging_ahead(struct staging *s, const struct intake_batch *b, size_t n);
/* Stages entries [from, to) and nothing else; what was staged ahead of them counts. With a reason
 * all of them become dead letters for it. -ENOMEM: nothing may be made of it but the same again. */
int staging_range(struct staging *s, const struct intake_batch *b, size_t from, size_t to,
		  const char *reason, const char *detail) MUST_CHECK;
