/*
 * Active work, one struct a process forked: a RUN (supervisor), a VOID (writes one file), an
 * ADOPTED run of an earlier helper (no process of ours; its lock is watched), a SETTLE (makes what
 * is left of a dead run dead), AGEING, SYNC (of the audit log), SWEEP (ends orphans). Each ends
 * once, and then answers everyone who waits for it.
 *
 *   RUN ─report read─▶ answered          ADOPTED ─lock gone─▶ answered
 *      └─supervisor died─▶ SETTLE ─▶ answered unknown ◀──────────┘ without DONE
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "run_private.h"
#include "supervisor.h"
#include "tree.h"

#define WAITERS_MAX	 64
#define REPORT_MAX_BYTES (1 << 21)
#define AGE_AFTER_MS	 (10LL * 60 * 1000)
#define AGE_EVERY_MS	 (3600LL * 1000)
#define SMALL_JOBS_MAX	 64   /* beside runs: voids, settlings and the like */
#define OVERDUE_MS	 1000 /* beyond its time limit a supervisor is sent SIGCONT */

static void on_run_free(struct watch *w)
{
	struct run *r = CONTAINER_OF(w, struct run, watch);

	buf_fini(&r->report);
	buf_fini(&r->checkpoint);
	free(r->waiter);
	free(r);
}

void run_drop(struct run *r)
{
	struct helper *h = r->h;

	*r->prev = r->next;
	if (r->next)
		r->next->prev = r->prev;
	if (r->notify >= 0)
		(void)inotify_rm_watch(h->inotify.fd, r->notify);
	if (r->watch.fd >= 0)
		loop_drop(&h->loop, &r->watch);
	else
		on_run_free(&r->watch);
}

struct run *run_find(struct helper *h, const char *correlation_id)
{
	for (struct run *r = h->runs; r; r = r->next)
		if ((r->effects || r->kind == VOID) &&
		    strcmp(r->correlation_id, correlation_id) == 0)
			return r;
	return NULL;
}

const char *run_digest(const struct run *r)
{
	return r->digest;
}

bool run_is_void(const struct run *r)
{
	return r->kind == VOID;
}

size_t run_count(const struct helper *h, const char *verb)
{
	size_t n = 0;

	for (struct run *r = h->runs; r; r = r->next)
		n +=
		    (r->kind == RUN || r->kind == ADOPTED) && (!verb || strcmp(r->verb, verb) == 0);
	return n;
}

int run_wait(struct helper *h UNUSED, struct run *r, const struct reply_to *to)
{
	if (r->waiters == WAITERS_MAX)
		return -ENOSPC;
	struct reply_to *grown = realloc(r->waiter, (r->waiters + 1) * sizeof *grown);
	if (!grown)
		return -ENOMEM;
	r->waiter = grown;
	r->waiter[r->waiters++] = *to;
	return 0;
}

/* ---- ends ---- */

static void answer_all(struct run *r, const struct journal_entry *e)
{
	for (size_t i = 0; i < r->waiters; i++)
		dispatch_answer(r->h, &r->waiter[i], e);
	r->waiters = 0;
}

/* A journal file that was there before ours could be made may be of other content. */
static bool is_anothers(const struct run *r, const struct journal_entry *e)
{
	return r->kind == RUN && !journal_is_of(e, r->digest);
}

/* What the journal says now is the answer; an unknown one is settled first. */
void run_end_by_journal(struct run *r)
{
	struct journal_entry e;

	int err = journal_look(&r->h->journal, r->correlation_id, &e);
	if (err == 0 && is_anothers(r, &e)) {
		for (size_t i = 0; i < r->waiters; i++)
			reply_error(r->h, &r->waiter[i], "digest_mismatch", DIGEST_MISMATCH_MSG);
		run_drop(r);
	} else if (err == 0 && e.state == JOURNAL_RUNNING) {
		/* Its last process is still letting go of the lock; the tick looks again. */
		if (r->kind == RUN)
			r->pid = 0;
		r->kind = ADOPTED;
	} else if (err == 0 && e.state == JOURNAL_UNKNOWN && r->kind != SETTLE && !e.corrupt) {
		r->intent = e.intent;
		r->child = e.child;
		r->child_start = e.child_start;
		settle_start(r);
	} else if (err == 0) {
		answer_all(r, &e);
		run_drop(r);
	} else { /* the tick looks again */
		if (!r->unread)
			LOG_ERROR(FIELDS(.event = "journal_failed", .error = strerror(-err),
					 .correlation_id = r->correlation_id),
				  "its journal file cannot be read; until then it goes on");
		r->unread = true;
	}
	journal_entry_fini(&e);
}

static void answer_outcome(struct run *r, const struct outcome *o)
{
	for (size_t i = 0; i < r->waiters; i++) {
		bool is_run = strcmp(r->waiter[i].op, "run") == 0;
		reply_outcome(r->h, &r->waiter[i], o, i > 0 || !r->first_is_fresh,
			      is_run ? NULL : "done");
	}
	r->waiters = 0;
}

/* The report of a run that was refused before it had a journal file is an error, not an outcome. */
static bool end_by_report(struct run *r)
{
	struct span rest = {r->report.data ? r->report.data : "", r->report.len};
	struct record rec;
	struct outcome o;

	if (record_next(&rest, &rec) != 1 || !span_eq(rec.kind, "done"))
		return false;
	outcome_init(&o, REPORT_MAX_BYTES);
	bool good = outcome_decode(rec.payload, &o) == 0 && strcmp(o.code, SUPERVISOR_TAKEN) != 0;
	if (good)
		answer_outcome(r, &o);
	outcome_fini(&o);
	return good;
}

static void end_readonly(struct run *r)
{
	struct outcome o;

	outcome_init(&o, 0);
	outcome_fail(&o, "internal", "its supervisor died");
	answer_outcome(r, &o);
	outcome_fini(&o);
}

static void end_sync(struct run *r)
{
	bool good = r->report.len == 1;

	if (good)
		audit_synced(&r->h->audit, &r->mark);
	else
		LOG_ERROR(FIELDS(.event = "audit_not_synced"), "the audit log cannot be synced");
	for (size_t i = 0; i < r->waiters; i++)
		dispatch_answer_hello(r->h, &r->waiter[i], good ? &r->checkpoint : NULL);
	r->waiters = 0;
	run_drop(r);
}

static void on_report_end(struct run *r)
{
	struct helper *h = r->h;

	if (r->kind == AGEING || r->kind == SWEEP) {
		run_drop(r);
		return;
	}
	if (r->kind == SYNC) {
		end_sync(r);
		return;
	}
	if (r->kind == RUN && end_by_report(r)) {
		run_drop(r);
		return;
	}
	/* The pipe is done with; the run may go on as another kind. */
	epoll_ctl(h->loop.epoll, EPOLL_CTL_DEL, r->watch.fd, NULL);
	close(r->watch.fd);
	r->watch.fd = -1;
	if (r->kind == SETTLE) {
		settle_end(r);
	} else if (r->kind == RUN && !r->effects) {
		end_readonly(r);
		settle_start(r);
	} else {
		run_end_by_journal(r);
	}
}

static void on_report_ready(struct watch *w, uint32_t events UNUSED)
{
	struct run *r = CONTAINER_OF(w, struct run, watch);
	char *at;

	if (buf_reserve(&r->report, 65536, &at) < 0) {
		on_report_end(r);
		return;
	}
	ssize_t n = read(w->fd, at, 65536);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		buf_commit(&r->report, (size_t)n);
	else
		on_report_end(r);
}

/* ---- starts ---- */

struct run *run_new(struct helper *h, enum run_kind kind, const char *correlation_id,
		    const struct reply_to *to)
{
	size_t others = 0;

	for (const struct run *o = h->runs; o; o = o->next)
		others += o->kind != RUN;
	if (kind != RUN && others >= SMALL_JOBS_MAX + (size_t)h->cfg->max_concurrency)
		return NULL;
	struct run *r = calloc(1, sizeof *r);
	if (!r)
		return NULL;
	r->watch = (struct watch){.fd = -1, .on_ready = on_report_ready, .on_free = on_run_free};
	r->h = h;
	r->kind = kind;
	r->notify = -1;
	snprintf(r->correlation_id, sizeof r->correlation_id, "%s", correlation_id);
	buf_init(&r->report, REPORT_MAX_BYTES);
	buf_init(&r->checkpoint, 1 << 16);
	if (to && run_wait(h, r, to) < 0) {
		free(r);
		return NULL;
	}
	r->next = h->runs;
	r->prev = &h->runs;
	if (r->next)
		r->next->prev = &r->next;
	h->runs = r;
	return r;
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

/* In a child: of our descriptors only 0-2 and what is used there stay. It may outlive us, and must
 * neither keep the lock nor connections, nor a listener nobody accepts from. */
static void keep_only(const struct helper *h, int report)
{
	int keep[] = {report, h->journal.dir, h->audit.dir, h->audit.fd, h->audit.before};
	unsigned from = 3;

	qsort(keep, ARRAY_LEN(keep), sizeof keep[0], by_number);
	for (size_t i = 0; i < ARRAY_LEN(keep); i++) {
		if (keep[i] < (int)from)
			continue;
		if (keep[i] > (int)from)
			(void)close_range(from, (unsigned)keep[i] - 1, 0);
		from = (unsigned)keep[i] + 1;
	}
	(void)close_range(from, ~0U, 0);
}

pid_t run_fork_watched(struct run *r, int *ret_report)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0) {
		keep_only(r->h, p[1]);
		*ret_report = p[1];
		return 0;
	}
	int err = pid < 0 ? -errno : 0;
	close(p[1]);
	if (err < 0) {
		close(p[0]);
		return err;
	}
	r->pid = pid;
	r->watch.fd = p[0];
	if (fcntl(p[0], F_SETFL, O_NONBLOCK) < 0 || loop_add(&r->h->loop, &r->watch, EPOLLIN) < 0)
		LOG_ERROR(FIELDS(.event = "run_not_watched"), "the end of a run will be seen late");
	return pid;
}

/* A supervisor keeps the run's time limit, unless somebody has stopped it: its own script could. */
static int64_t overdue_boot_ms(const struct verb *v)
{
	return clock_boot_ms() + (v ? v->timeout_s : VERB_TIMEOUT_MAX_S) * 1000 + OVERDUE_MS;
}

static void hasten(const struct run *r)
{
	if (r->pid > 0 && (r->kind == RUN || r->kind == ADOPTED) &&
	    clock_boot_ms() > r->overdue_boot_ms)
		(void)kill(r->pid, SIGCONT);
}

int run_start(struct helper *h, struct job *job, const struct reply_to *to)
{
	struct run *r = run_new(h, RUN, job->intent.correlation_id, to);
	pid_t pid = -ENOMEM;

	if (r) {
		r->effects = job->verb->effects;
		r->first_is_fresh = true;
		r->intent = job->intent;
		snprintf(r->digest, sizeof r->digest, "%s", job->intent.digest);
		snprintf(r->verb, sizeof r->verb, "%s", job->verb->name);
		r->overdue_boot_ms = overdue_boot_ms(job->verb);
		pid = run_fork_watched(r, &job->report);
		if (pid == 0)
			supervisor_main(job);
		CRASH_POINT("helper.after_fork");
		if (pid < 0)
			run_drop(r);
	}
	verb_args_fini(&job->args, job->verb);
	secret_set_fini(&job->secrets);
	return pid < 0 ? (int)pid : 0;
}

int run_start_void(struct helper *h, const struct reply_to *to)
{
	struct run *r = run_new(h, VOID, to->correlation_id, to);
	int report = -1;

	if (!r)
		return -ENOMEM;
	pid_t pid = run_fork_watched(r, &report);
	if (pid == 0)
		_exit(journal_void(&h->journal, to->correlation_id, to->agent_id) < 0);
	if (pid < 0)
		run_drop(r);
	return pid < 0 ? (int)pid : 0;
}

static struct run *take_up(struct helper *h, enum run_kind kind, const struct journal_entry *e,
			   const struct reply_to *to)
{
	struct run *r = run_new(h, kind, e->intent.correlation_id, to);

	if (!r)
		return NULL;
	r->effects = true;
	r->intent = e->intent;
	r->child = e->child;
	r->child_start = e->child_start;
	snprintf(r->digest, sizeof r->digest, "%s", e->intent.digest);
	snprintf(r->verb, sizeof r->verb, "%s", e->intent.verb);
	return r;
}

int run_settle(struct helper *h, const struct journal_entry *e, const struct reply_to *to)
{
	struct run *r = take_up(h, ADOPTED, e, to);

	if (!r)
		return -ENOMEM;
	settle_start(r);
	return 0;
}

static struct run *adopt(struct helper *h, const struct journal_entry *e, const struct reply_to *to,
			 pid_t supervisor)
{
	struct run *r = take_up(h, ADOPTED, e, to);
	char path[4096], name[JOURNAL_NAME_LEN + 1];

	if (!r)
		return NULL;
	r->pid = supervisor;
	r->overdue_boot_ms = overdue_boot_ms(verbs_find(h->verbs, r->verb));
	journal_name(r->correlation_id, name);
	snprintf(path, sizeof path, "%s/journal/%s", h->cfg->state_dir, name);
	/* Closing for writing is the last thing a supervisor does to it, alive or killed. */
	r->notify = inotify_add_watch(h->inotify.fd, path, IN_CLOSE_WRITE);
	return r;
}

int run_adopt(struct helper *h, const struct journal_entry *e, const struct reply_to *to)
{
	struct run *r = adopt(h, e, to, 0);

	if (!r)
		return -ENOMEM;
	run_end_by_journal(r); /* it may have ended before the watch was set */
	return 0;
}

/* The tick finds those that end before their watch is set. */
static void on_live_run(void *arg, const char *name, pid_t supervisor)
{
	struct helper *h = arg;
	struct journal_entry e;

	bool live = journal_look_file(&h->journal, name, &e) == 0 && e.state == JOURNAL_RUNNING;
	struct run *r = live ? run_find(h, e.intent.correlation_id) : NULL;
	if (r)
		r->pid = 0; /* two may be the supervisor */
	else if (live && !adopt(h, &e, NULL, supervisor))
		LOG_ERROR(
		    FIELDS(.event = "run_not_watched", .correlation_id = e.intent.correlation_id),
		    "a run of an earlier helper does not count as one");
	journal_entry_fini(&e);
}

int run_adopt_all(struct helper *h)
{
	return tree_each_locked(h->journal.dir, on_live_run, h);
}

/* Of a reader the journal says nothing: it is here to be settled. */
static void look_again(struct run *r)
{
	if (r->kind == ADOPTED && !r->effects)
		settle_start(r);
	else
		run_end_by_journal(r);
}

static void on_inotify_ready(struct watch *w, uint32_t events UNUSED)
{
	struct helper *h = CONTAINER_OF(w, struct helper, inotify);
	char bytes[4096] __attribute__((aligned(__alignof__(struct inotify_event))));

	while (read(w->fd, bytes, sizeof bytes) > 0) {
	}
	/* Which one does not matter: adopted runs are few, and a look is cheap. */
	for (struct run *r = h->runs, *next; r; r = next) {
		next = r->next;
		if (r->kind == ADOPTED)
			look_again(r);
	}
}

int run_watch_journal(struct helper *h)
{
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

	if (fd < 0)
		return -errno;
	h->inotify = (struct watch){.fd = fd, .on_ready = on_inotify_ready};
	return loop_add(&h->loop, &h->inotify, EPOLLIN);
}

void run_start_ageing(struct helper *h)
{
	int64_t boot = clock_boot_ms();
	size_t removed;
	int report = -1;

	if (boot - h->started_boot_ms < AGE_AFTER_MS ||
	    (h->aged_at_ms && boot - h->aged_at_ms < AGE_EVERY_MS))
		return;
	h->aged_at_ms = boot;
	struct run *r = run_new(h, AGEING, "", NULL);
	pid_t pid = r ? run_fork_watched(r, &report) : -1;
	if (pid == 0)
		_exit(journal_age(&h->journal, clock_wall_ms(), &removed) < 0);
	if (r && pid < 0)
		run_drop(r);
}

/* ---- the audit log's syncs ---- */

struct run *run_find_kind(const struct helper *h, enum run_kind kind)
{
	struct run *r = h->runs;

	while (r && r->kind != kind)
		r = r->next;
	return r;
}

int run_start_sync(struct helper *h, const struct reply_to *to)
{
	struct run *r = run_find_kind(h, SYNC);
	int report = -1;

	if (r)
		return to ? run_wait(h, r, to) : 0;
	r = run_new(h, SYNC, "", to);
	if (!r)
		return -ENOMEM;
	h->synced_at_ms = clock_boot_ms();
	r->mark = h->audit.last;
	pid_t pid = dispatch_write_checkpoint(h, &r->checkpoint) < 0 ? -ENOMEM
								     : run_fork_watched(r, &report);
	if (pid == 0)
		_exit(audit_sync(&h->audit) < 0 || write(report, "y", 1) != 1);
	if (pid < 0)
		run_drop(r);
	return pid < 0 ? (int)pid : 0;
}

void run_tick(struct helper *h)
{
	for (struct run *r = h->runs, *next; r; r = next) {
		next = r->next;
		if (r->watch.fd < 0) /* no process to hear of, or the journal was not to be read */
			look_again(r);
	}
	for (const struct run *r = h->runs; r; r = r->next)
		hasten(r);
	journal_keep_seen(&h->journal);
	run_start_ageing(h);
	settle_sweep(h);
	if (h->audit.last.seq != h->audit.synced.seq &&
	    clock_boot_ms() - h->synced_at_ms > AUDIT_SYNC_MS && run_start_sync(h, NULL) < 0)
		LOG_WARN(FIELDS(.event = "audit_not_synced"), "the audit log is synced later");
}

void run_forget_all(struct helper *h)
{
	while (h->runs)
		run_drop(h->runs);
}
