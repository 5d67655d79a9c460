/*
 * What Redis lost (wiped, AOF tail cut, failover) and what nobody will answer:
 *
 * - A command that has not ended, of which Redis holds neither marker nor entry, is queued again
 *   with its original expiry; the helper's journal keeps it from running twice. Where its
 *   parameters are not here in full (masked, signed) it is cancelled instead, and the agent's
 *   answer says what really happened.
 * - A command long past its deadline, or of an agent an operator declared lost, is closed in Redis
 *   first; the result that closing writes there makes it `unknown` like any other result. Not while
 *   old results wait to be stored: the answer may be among them.
 * - A command that has ended, of whose end Redis may know nothing any more, is offered only after
 *   it was looked up here (event `offering`), and closed in Redis when it is over.
 *
 * One writer at a time does the first two (advisory lock).
 */
#pragma once

#include "worker.h"

struct requeue;
int requeue_new(const char *prefix, int64_t lost_after_s, struct requeue **ret) MUST_CHECK;
void requeue_free(struct requeue *q);
/* What Redis lost: 10 s after it was reached anew, then every 30 s. The others: every 10 s.
 * results_age_ms: how long the oldest result waits to be stored; -1 unknown. */
void requeue_chore(struct requeue *q, struct worker *w, int64_t now_ms, int64_t results_age_ms);
/* These ids (a column of text; NULL: none) ended in Redis without their agent, but they had been
 * offered: Redis forgot. Its agent will be asked, soon, as for all that Redis lost. False: Redis
 * could not be told, so nothing may be acknowledged. */
bool requeue_refused(struct requeue *q, struct worker *w, const struct pg_rows *ids) MUST_CHECK;
/* These (id and agent; NULL: none) have ended, and a bridge is about to offer them. As above. */
bool requeue_over(const struct requeue *q, struct worker *w, const struct pg_rows *rows) MUST_CHECK;
