/*
 * Active work, one struct a process forked: a RUN (supervisor), a VOID (writes one file), an
 * ADOPTED run of an earlier helper (no process of ours; its lock is watched), a SETTLE (makes what
 * is left of a dead run dead), AGEING. Each ends once, and then answers everyone who waits for it.
 *
 *   RUN ─report read─▶ answered          ADOPTED ─lock gone─▶ answered
 *      └─supervisor died─▶ SETTLE ─▶ answered unknown ◀──────────┘ without DONE
 */
#include <errno.h>
#include <fcntl.h>
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
#include "helper.h"
#include "supervisor.h"
#include "tree.h"

#define WAITERS_MAX	 64
#define REPORT_MAX_BYTES (1 << 21)
#define AGE_AFTER_MS	 (10LL * 60 * 1000)
#define AGE_EVERY_MS	 (3600LL * 1000)
#define CLOCK_DRIFT_MS	 60000

enum run_kind { RUN, VOID, ADOPTED, SETTLE, AGEING };

struct run {
	struct watch watch; /* the report pipe; fd -1: none */
	struct helper *h;
	struct run *next, **prev;
	enum run_kind kind;
	bool effects;
	char correlation_id[CORRELATION_ID_MAX + 1], digest[SHA256_HEX_LEN + 1], verb[65];
	struct intent intent;
	int notify; /* inotify watch, -1: none */
	struct buf report;
	struct reply_to *waiter;
	size_t waiters;
	bool first_is_fresh; /* the first waiter is who started it */
};

static void on_run_free(struct watch *w)
{
	struct run *r = CONTAINER_OF(w, struct run, watch);

	buf_fini(&r->report);
	free(r->waiter);
	free(r);
}

static void drop(struct run *r)
{
	struct helper *h = r->h;

	*r->prev = r->next;
	if (r->next)
		r->next->prev = r->prev;
	if (r->kind == RUN)
		h->run_count--;
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

size_t run_count_verb(const struct helper *h, const char *verb)
{
	size_t n = 0;

	for (struct run *r = h->runs; r; r = r->next)
		n += (r->kind == RUN || r->kind == ADOPTED) && strcmp(r->verb, verb) == 0;
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

static void start_settle(struct run *r, const struct journal_entry *e);

/* What the journal says now is the answer; an unknown one is settled first. */
static void end_by_journal(struct run *r)
{
	struct journal_entry e;

	int err = journal_look(&r->h->journal, r->correlation_id, &e);
	if (err == 0 && e.state == JOURNAL_RUNNING) {
		/* Its last process is still letting go of the lock; the tick looks again. */
		if (r->kind == RUN)
			r->h->run_count--;
		r->kind = ADOPTED;
	} else if (err == 0 && e.state == JOURNAL_UNKNOWN && r->kind != SETTLE && !e.corrupt) {
		start_settle(r, &e);
	} else if (err == 0) {
		answer_all(r, &e);
		drop(r);
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

static void on_report_end(struct run *r)
{
	struct helper *h = r->h;

	if (r->kind == AGEING) {
		drop(r);
		return;
	}
	if (r->kind == RUN && end_by_report(r)) {
		drop(r);
		return;
	}
	/* The pipe is done with; the run may go on as another kind. */
	epoll_ctl(h->loop.epoll, EPOLL_CTL_DEL, r->watch.fd, NULL);
	close(r->watch.fd);
	r->watch.fd = -1;
	if (r->kind == RUN && !r->effects) {
		struct journal_entry e = {.intent = r->intent};
		end_readonly(r);
		start_settle(r, &e);
	} else {
		end_by_journal(r);
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

static struct run *new_run(struct helper *h, enum run_kind kind, const char *correlation_id,
			   const struct reply_to *to)
{
	struct run *r = calloc(1, sizeof *r);

	if (!r)
		return NULL;
	r->watch = (struct watch){.fd = -1, .on_ready = on_report_ready, .on_free = on_run_free};
	r->h = h;
	r->kind = kind;
	r->notify = -1;
	snprintf(r->correlation_id, sizeof r->correlation_id, "%s", correlation_id);
	buf_init(&r->report, REPORT_MAX_BYTES);
	if (to && run_wait(h, r, to) < 0) {
		free(r);
		return NULL;
	}
	r->next = h->runs;
	r->prev = &h->runs;
	if (r->next)
		r->next->prev = &r->next;
	h->runs = r;
	if (kind == RUN)
		h->run_count++;
	return r;
}

/* Forks with a pipe whose end of file tells of the child's death. 0 in the child (*ret_report is
 * its end), its pid in the parent, -errno. */
static pid_t fork_watched(struct run *r, int *ret_report)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0) {
		close(p[0]);
		*ret_report = p[1];
		return 0;
	}
	int err = pid < 0 ? -errno : 0;
	close(p[1]);
	if (err < 0) {
		close(p[0]);
		return err;
	}
	r->watch.fd = p[0];
	if (fcntl(p[0], F_SETFL, O_NONBLOCK) < 0 || loop_add(&r->h->loop, &r->watch, EPOLLIN) < 0)
		LOG_ERROR(FIELDS(.event = "run_not_watched"), "the end of a run will be seen late");
	return pid;
}

int run_start(struct helper *h, struct job *job, const struct reply_to *to)
{
	struct run *r = new_run(h, RUN, job->intent.correlation_id, to);
	pid_t pid = -ENOMEM;

	if (r) {
		r->effects = job->verb->effects;
		r->first_is_fresh = true;
		r->intent = job->intent;
		snprintf(r->digest, sizeof r->digest, "%s", job->intent.digest);
		snprintf(r->verb, sizeof r->verb, "%s", job->verb->name);
		pid = fork_watched(r, &job->report);
		if (pid == 0)
			supervisor_main(job);
		CRASH_POINT("helper.after_fork");
		if (pid < 0)
			drop(r);
	}
	verb_args_fini(&job->args, job->verb);
	secret_set_fini(&job->secrets);
	return pid < 0 ? (int)pid : 0;
}

int run_start_void(struct helper *h, const struct reply_to *to)
{
	struct run *r = new_run(h, VOID, to->correlation_id, to);
	int report;

	if (!r)
		return -ENOMEM;
	pid_t pid = fork_watched(r, &report);
	if (pid == 0)
		_exit(journal_void(&h->journal, to->correlation_id, to->agent_id) < 0);
	if (pid < 0)
		drop(r);
	return pid < 0 ? (int)pid : 0;
}

static bool same_boot(const struct intent *in)
{
	char boot[UUID_LEN + 1];

	return tree_boot_id(boot) < 0 || strcmp(boot, in->boot_id) == 0;
}

/* Processes of an earlier boot are dead already. */
static void start_settle(struct run *r, const struct journal_entry *e)
{
	int report;

	if (r->kind == RUN)
		r->h->run_count--;
	r->kind = SETTLE;
	LOG_WARN(FIELDS(.event = "outcome_unknown", .correlation_id = r->correlation_id),
		 "a run ended without an outcome; what is left of it is ended");
	if (!same_boot(&e->intent)) {
		end_by_journal(r);
		return;
	}
	pid_t pid = fork_watched(r, &report);
	if (pid == 0)
		_exit(!tree_kill_run(e->intent.run_id, e->child, e->child_start));
	if (pid < 0)
		r->kind = ADOPTED; /* the tick tries again */
}

static struct run *take_up(struct helper *h, enum run_kind kind, const struct journal_entry *e,
			   const struct reply_to *to)
{
	struct run *r = new_run(h, kind, to->correlation_id, to);

	if (!r)
		return NULL;
	r->effects = true;
	r->intent = e->intent;
	snprintf(r->digest, sizeof r->digest, "%s", e->intent.digest);
	snprintf(r->verb, sizeof r->verb, "%s", e->intent.verb);
	return r;
}

int run_settle(struct helper *h, const struct journal_entry *e, const struct reply_to *to)
{
	struct run *r = take_up(h, ADOPTED, e, to);

	if (!r)
		return -ENOMEM;
	start_settle(r, e);
	return 0;
}

int run_adopt(struct helper *h, const struct journal_entry *e, const struct reply_to *to)
{
	struct run *r = take_up(h, ADOPTED, e, to);
	char path[4096], name[JOURNAL_NAME_LEN + 1];

	if (!r)
		return -ENOMEM;
	journal_name(to->correlation_id, name);
	snprintf(path, sizeof path, "%s/journal/%s", h->cfg->state_dir, name);
	/* Closing for writing is the last thing a supervisor does to it, alive or killed. */
	r->notify = inotify_add_watch(h->inotify.fd, path, IN_CLOSE_WRITE);
	end_by_journal(r); /* it may have ended before the watch was set */
	return 0;
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
			end_by_journal(r);
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

/* Old files go, but not by a clock that has just jumped. */
void run_start_ageing(struct helper *h)
{
	int64_t wall = clock_wall_ms(), boot = clock_boot_ms(), since = boot - h->started_boot_ms;
	int64_t drift = (wall - h->started_wall_ms) - since;
	size_t removed;
	int report;

	if (since < AGE_AFTER_MS || drift > CLOCK_DRIFT_MS || drift < -CLOCK_DRIFT_MS ||
	    (h->aged_at_ms && boot - h->aged_at_ms < AGE_EVERY_MS))
		return;
	h->aged_at_ms = boot;
	struct run *r = new_run(h, AGEING, "", NULL);
	pid_t pid = r ? fork_watched(r, &report) : -1;
	if (pid == 0)
		_exit(journal_age(&h->journal, wall, &removed) < 0);
	if (r && pid < 0)
		drop(r);
}

void run_tick(struct helper *h)
{
	for (struct run *r = h->runs, *next; r; r = next) {
		next = r->next;
		if (r->kind == ADOPTED || (r->kind == SETTLE && r->watch.fd < 0))
			end_by_journal(r);
	}
	run_start_ageing(h);
}

void run_forget_all(struct helper *h)
{
	while (h->runs)
		drop(h->runs);
}
