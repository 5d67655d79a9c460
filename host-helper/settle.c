/*
 * Ends what a dead run left.
 *
 * The helper is a subreaper, as each supervisor is: what a dead supervisor leaves becomes a child
 * of the helper, whatever session, environment or user it took. A child that no struct here knows
 * is such an orphan.
 */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "run_private.h"
#include "tree.h"

#define SETTLE_TRIES 100
#define STOP_PASSES  8

/* Children that no struct here knows. A supervisor that died a moment ago counts as one until it
 * has handed over its own: its pid is forgotten when settling begins. */
static size_t find_orphans(const struct helper *h, pid_t *out, size_t cap)
{
	pid_t all[ORPHANS_MAX];
	size_t n = h->owns_children ? tree_children(all, ARRAY_LEN(all)) : 0, found = 0;

	for (size_t i = 0; i < n && found < cap; i++) {
		bool known = false;
		for (const struct run *r = h->runs; r && !known; r = r->next)
			known = r->pid == all[i];
		if (!known)
			out[found++] = all[i];
	}
	return found;
}

/* Stopped with all below them, at once and by us: until a child of ours had looked through /proc
 * they would have forked on. */
static size_t stop_orphans(const struct helper *h, pid_t *out, size_t cap)
{
	size_t n = 0;

	for (int pass = 0; pass < STOP_PASSES; pass++) {
		n = find_orphans(h, out, cap);
		for (size_t i = 0; i < n; i++) {
			(void)kill(out[i], SIGSTOP);
			(void)tree_signal(out[i], SIGSTOP);
		}
		if (n == 0)
			break;
	}
	return n;
}

static bool same_boot(const struct intent *in)
{
	char boot[UUID_LEN + 1];

	return tree_boot_id(boot) < 0 || strcmp(boot, in->boot_id) == 0;
}

static _Noreturn void settle(const struct run *r, const pid_t *orphan, size_t orphans)
{
	const struct tree_remains left = {.run_id = r->intent.run_id,
					  .sid = r->child,
					  .sid_start = r->child_start,
					  .root = orphan,
					  .roots = orphans,
					  .journal_dir = r->h->owns_cgroup ? r->h->journal.dir : -1,
					  .helper = getppid()};

	_exit(!tree_kill_remains(&left));
}

/* Processes of an earlier boot are dead already. */
void settle_start(struct run *r)
{
	pid_t orphan[ORPHANS_MAX];
	int report = -1;

	r->kind = SETTLE;
	if (r->settled++ == 0)
		LOG_WARN(FIELDS(.event = "outcome_unknown", .correlation_id = r->correlation_id),
			 "a run ended without an outcome; what is left of it is ended");
	if (r->effects && !same_boot(&r->intent)) {
		run_end_by_journal(r);
		return;
	}
	size_t n = stop_orphans(r->h, orphan, ARRAY_LEN(orphan));
	pid_t pid = run_fork_watched(r, &report);
	if (pid == 0)
		settle(r, orphan, n);
	if (pid < 0)
		r->kind = ADOPTED; /* the tick tries again */
}

void settle_end(struct run *r)
{
	pid_t orphan[1];

	if (find_orphans(r->h, orphan, 1) && r->settled < SETTLE_TRIES) {
		settle_start(r);
		return;
	}
	if (r->settled == SETTLE_TRIES)
		LOG_ERROR(FIELDS(.event = "run_not_ended", .correlation_id = r->correlation_id),
			  "processes of a dead run cannot be ended");
	if (r->effects)
		run_end_by_journal(r);
	else
		run_drop(r);
}

/* ---- orphans whose run was answered long ago ---- */

/* Seen at two ticks, so that what is just ending by itself is left to do so. */
void settle_sweep(struct helper *h)
{
	pid_t orphan[ORPHANS_MAX];
	size_t n = find_orphans(h, orphan, ARRAY_LEN(orphan));
	bool again = h->had_orphans;
	int report = -1;

	h->had_orphans = n > 0;
	if (n == 0 || !again || run_find_kind(h, SWEEP) || run_find_kind(h, SETTLE))
		return;
	LOG_WARN(FIELDS(.event = "orphans", .has_count = true, .count = (int64_t)n),
		 "processes that a run left behind are ended");
	n = stop_orphans(h, orphan, ARRAY_LEN(orphan));
	struct run *r = run_new(h, SWEEP, "", NULL);
	pid_t pid = r ? run_fork_watched(r, &report) : -1;
	if (pid == 0)
		settle(r, orphan, n);
	if (r && pid < 0)
		run_drop(r);
}
