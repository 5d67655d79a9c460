/* What run.c and settle.c share. */
#pragma once

#include "helper.h"

#define ORPHANS_MAX 1024

enum run_kind { RUN, VOID, ADOPTED, SETTLE, AGEING, SYNC, SWEEP };

struct run {
	struct watch watch; /* the report pipe; fd -1: none */
	struct helper *h;
	struct run *next, **prev;
	enum run_kind kind;
	bool effects;
	char correlation_id[CORRELATION_ID_MAX + 1], digest[SHA256_HEX_LEN + 1], verb[65];
	struct intent intent;
	pid_t child; /* as journal_entry has them */
	uint64_t child_start;
	pid_t pid;		 /* forked here last, or an adopted run's supervisor; 0: none */
	int64_t overdue_boot_ms; /* a supervisor that still goes on then is one that was stopped */
	unsigned settled;	 /* how often it was tried */
	bool unseen;		 /* once nobody could look what was left of it */
	bool unread;		 /* once its journal file could not be read */
	struct audit_mark mark;	 /* SYNC: what is synced, and what hello tells of it */
	struct buf checkpoint;
	int notify; /* inotify watch, -1: none */
	struct buf report;
	struct reply_to *waiter;
	size_t waiters;
	bool first_is_fresh; /* the first waiter is who started it */
};

/* run.c */
struct run *run_new(struct helper *h, enum run_kind kind, const char *correlation_id,
		    const struct reply_to *to);
void run_drop(struct run *r);
struct run *run_find_kind(const struct helper *h, enum run_kind kind);
/* Forks with a pipe whose end of file tells of the child's death. 0 in the child (*ret_report is
 * its end), its pid in the parent, -errno. */
pid_t run_fork_watched(struct run *r, int *ret_report) MUST_CHECK;
void run_end_by_journal(struct run *r);

/* settle.c */
void settle_start(struct run *r);
void settle_end(struct run *r);
/* Ends orphans whose run was answered long ago. */
void settle_sweep(struct helper *h);
