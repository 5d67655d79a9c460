/*
 * The loop both writers share, blocking and single-threaded:
 *
 *   read a batch → stage every entry → BEGIN, write, COMMIT → XACK → chores when due
 *
 * While PostgreSQL works, what has come of the next batch is taken and staged, a little at a time.
 * A batch is one transaction. What its failure means is decided by the SQLSTATE: the same again,
 * reconnect and again, wait for an operator, or "one row is at fault", which halves the batch
 * until the row stands alone and goes to dead_letters. Nothing is acknowledged before it is
 * committed, and no more than the next batch is read while one cannot be written.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/metrics.h"
#include "dead_letters.h"
#include "intake.h"
#include "pg/pg.h"

struct worker;

/* What one program makes of its streams. */
struct worker_ops {
	/* Prepares an entry's rows. NULL, or why it is a dead letter (a static word); no_memory:
	 * staged anew later. */
	const char *(*stage)(void *arg, unsigned stream, const struct stream_entry *e);
	/* Forgets what was staged. */
	void (*clear)(void *arg);
	/* Needs outside the transaction (partitions). May be NULL. */
	enum pg_verdict (*prepare)(void *arg, struct pg *p);
	/* Something of what can be made of a batch once all of it is staged, a millisecond or so;
	 * flush does what is left. False: nothing is left. May be NULL. */
	bool (*fold)(void *arg);
	/* Writes what was staged, inside the transaction. */
	enum pg_verdict (*flush)(void *arg, struct pg *p);
	/* After the commit: counters, and what Redis must know before it is acknowledged. False:
	 * that failed, so the entries are read again. */
	bool (*committed)(void *arg);
	/* Which field of a dead letter must not be kept as it is, and what stands for it. May be
	 * NULL. */
	const char *(*mask)(void *arg, unsigned stream, const struct stream_entry *e,
			    struct span *ret_value);
	/* SIGHUP came; between batches. May be NULL. */
	void (*reload)(void *arg);
	/* Between batches, when both servers are well; about once a second. */
	void (*chores)(void *arg, struct worker *w);
};

struct worker_config {
	const char *program; /* for logs and application_name */
	const char *redis_url, *database_url, *group, *consumer, *bind;
	const char *stream[INTAKE_STREAMS_MAX]; /* full names, NULL-terminated */
	int64_t batch_max, batch_wait_ms, consumer_idle_s, join_ms;
};

/* Before anything else: libuv aborts and libwebsockets breaks where descriptors lack. 0, or the
 * exit code, and why is logged. */
int worker_check_descriptors(void) MUST_CHECK;
/* arg: of ops. ahead: another one for stage to mask, by turns with it, so that the next batch is
 * staged while one is written (stage and clear then come between the statements of flush). NULL:
 * not.
 */
int worker_new(const struct worker_config *c, const struct worker_ops *ops, void *arg, void *ahead,
	       struct worker **ret) MUST_CHECK;
/* Until SIGTERM or SIGINT. Returns the exit code. */
int worker_run(struct worker *w);
void worker_free(struct worker *w);

struct metrics *worker_metrics_of(struct worker *w);
struct pg *worker_pg(struct worker *w);
struct intake *worker_intake(struct worker *w);
/* Age of a stream's oldest entry that is not stored, seconds old itself at most; -1 unknown. */
int64_t worker_lag_ms(struct worker *w, unsigned stream);
/* A chore's statement failed: logs, counts, marks PostgreSQL as away when it is. */
void worker_pg_failed(struct worker *w, const char *what, enum pg_verdict v);
/* One more row count of a table. */
void worker_count_rows(struct worker *w, const char *table, uint64_t n);
