/*
 * Ends what a dead run left.
 *
 * The helper is a subreaper, as each supervisor is: what a dead supervisor leaves becomes a child
 * of the helper, whatever session, environment or user it took. A child that no struct here knows
 * is such an orphan.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "run_private.h"
#include "tree.h"

#define SETTLE_TRIES 100
#define STOP_PASSES  8
#define ALL_DEAD     "y"

/* Children that no struct here knows. A supervisor that died a moment ago counts as one until it
 * has handed over its own: its pid is forgotten when settling begins. */
static ssize_t find_orphans(const struct helper *h, pid_t *out, size_t cap)
{
	pid_t all[ORPHANS_MAX];
	ssize_t n = h->owns_children ? tree_children(all, ARRAY_LEN(all)) : 0;
	size_t found = 0;

	for (ssize_t i = 0; i < n && found < cap; i++) {
		bool known = false;
		for (const struct run *r = h->runs; r && !known; r = r->next)
			known = r->pid == all[i];
		if (!known)
			out[found++] = all[i];
	}
	return n < 0 ? n : (ssize_t)found;
}

/* Stopped with all below them, at once and by us: until a child of ours had looked through /proc
 * they would have forked on. */
static ssize_t stop_orphans(const struct helper *h, pid_t *out, size_t cap)
{
	ssize_t n = 0;

	for (int pass = 0; pass < STOP_PASSES; pass++) {
		n = find_orphans(h, out, cap);
		for (ssize_t i = 0; i < n; i++) {
			(void)kill(out[i], SIGSTOP);
			(void)tree_signal(out[i], SIGSTOP);
		}
		if (n <= 0)
			break;
	}
	return n;
}

static bool same_boot(const struct intent *in)
{
	char boot[UUID_LEN + 1];

	return tree_boot_id(boot) < 0 || strcmp(boot, in->boot_id) == 0;
}

/* Reports whether all are dead; without a report nobody could look. */
static _Noreturn void settle(const struct run *r, const pid_t *orphan, size_t orphans, int report)
{
	const struct tree_remains left = {.run_id = r->intent.run_id,
					  .sid = r->child,
					  .sid_start = r->child_start,
					  .root = orphan,
					  .roots = orphans,
					  .journal_dir = r->h->owns_cgroup ? r->h->journal.dir : -1,
					  .helper = getppid()};

	int err = tree_kill_remains(&left);
	if (err == 0 || err == -EBUSY)
		err = write(report, err == 0 ? ALL_DEAD : "n", 1) == 1 ? 0 : -EPIPE;
	_exit(err < 0);
}

/* What cannot be looked for is not taken for dead: the run goes on until the tick can look. */
static void settle_later(struct run *r)
{
	if (!r->unseen)
		LOG_ERROR(FIELDS(.event = "run_not_seen", .correlation_id = r->correlation_id),
			  "nobody can look what a dead run left; it is tried again");
	r->unseen = true;
	r->settled = 1;
	r->kind = ADOPTED;
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
	buf_clear(&r->report);
	ssize_t n = stop_orphans(r->h, orphan, ARRAY_LEN(orphan));
	pid_t pid = n < 0 ? -1 : run_fork_watched(r, &report);
	if (pid == 0)
		settle(r, orphan, (size_t)n, report);
	if (pid < 0)
		settle_later(r);
}

void settle_end(struct run *r)
{
	pid_t orphan[1];
	ssize_t orphans = find_orphans(r->h, orphan, 1);

	if (orphans < 0 || r->report.len == 0) {
		settle_later(r);
		return;
	}
	if ((orphans > 0 || r->report.data[0] != ALL_DEAD[0]) && r->settled < SETTLE_TRIES) {
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
	ssize_t n = find_orphans(h, orphan, ARRAY_LEN(orphan));
	bool again = h->had_orphans;
	int report = -1;

	h->had_orphans = n > 0;
	if (n <= 0 || !again || run_find_kind(h, SWEEP) || run_find_kind(h, SETTLE))
		return;
	LOG_WARN(FIELDS(.event = "orphans", .has_count = true, .count = n),
		 "processes that a run left behind are ended");
	n = stop_orphans(h, orphan, ARRAY_LEN(orphan));
	struct run *r = run_new(h, SWEEP, "", NULL);
	pid_t pid = r && n >= 0 ? run_fork_watched(r, &report) : -1;
	if (pid == 0)
		settle(r, orphan, (size_t)n, report);
	if (r && pid < 0)
		run_drop(r);
}
