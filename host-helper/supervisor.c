/* One run from journal to outcome. States: begun → child forked → recorded → released → ended →
 * DONE. */
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/file.h"
#include "base/log.h"
#include "child.h"
#include "crypto/crypto.h"
#include "tree.h"
#include "verbs_program.h"
#include "wire/wire.h"

#define SLACK_BYTES   4096 /* the longest secret: what is cut is cut after masking */
#define TERM_GRACE_MS 2000 /* between TERM and KILL at a timeout */
#define LEFTOVER_MS   500  /* between TERM and KILL for what a finished script left behind */
#define REAP_MS	      5000 /* how long killed processes may take to go away */

struct run {
	struct job *job;
	struct outcome outcome;
	struct buf in, raw_out, raw_err;
	size_t in_at;
	bool cut_out, cut_err;
	int in_fd, out_fd, err_fd, pid_fd, fault_fd, go_fd;
	pid_t child;
	int status;
	bool exited, timed_out;
	int64_t deadline_boot_ms;
};

size_t supervisor_reserve_bytes(const struct verb *v)
{
	return 2 * (size_t)v->max_output_bytes + 8192;
}

/* ---- starting ---- */

static int build_stdin(const struct job *job, struct buf *in)
{
	const struct verb *v = job->verb;
	int r = 0;

	for (size_t i = 0; r == 0 && i < v->params; i++) {
		if (v->param[i].via != PARAM_VIA_STDIN)
			continue;
		if (job->args.value[i])
			r = buf_append_str(in, job->args.value[i]);
		if (r == 0)
			r = buf_append_char(in, '\n'); /* an absent one is an empty line */
	}
	return r;
}

static int make_pipe(int *ours, int *theirs, bool we_read)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	*ours = p[we_read ? 0 : 1];
	*theirs = p[we_read ? 1 : 0];
	return fcntl(*ours, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static int start_child(struct run *x)
{
	struct child_fds f = {-1, -1, -1, -1, -1};

	if (make_pipe(&x->in_fd, &f.in, false) < 0 || make_pipe(&x->out_fd, &f.out, true) < 0 ||
	    make_pipe(&x->err_fd, &f.err, true) < 0 || make_pipe(&x->go_fd, &f.go, false) < 0 ||
	    make_pipe(&x->fault_fd, &f.fault, true) < 0)
		return -errno;
	x->child = fork();
	if (x->child < 0)
		return -errno;
	if (x->child == 0) {
		close(x->go_fd); /* or our own copy would keep it open for ever */
		child_main(x->job, &f);
	}
	close(f.in);
	close(f.out);
	close(f.err);
	close(f.go);
	close(f.fault);
	x->pid_fd = (int)syscall(SYS_pidfd_open, x->child, 0);
	return x->pid_fd < 0 ? -errno : 0;
}

/* ---- feeding and reading ---- */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void feed(struct run *x)
{
	while (x->in_fd >= 0 && x->in_at < x->in.len) {
		ssize_t n = write(x->in_fd, x->in.data + x->in_at, x->in.len - x->in_at);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0)
			break; /* it does not want it */
		x->in_at += (size_t)n;
	}
	close_fd(&x->in_fd);
}

/* Reads what is there; beyond the cap it is read and thrown away, so that the script does not hang.
 */
static void drain(int *fd, struct buf *raw, bool *cut)
{
	char chunk[16384];

	for (int i = 0; *fd >= 0 && i < 64; i++) {
		ssize_t n = read(*fd, chunk, sizeof chunk);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			close_fd(fd);
			return;
		}
		size_t room = raw->max - raw->len, take = (size_t)n < room ? (size_t)n : room;
		if (buf_append(raw, chunk, take) < 0 || take < (size_t)n)
			*cut = true;
	}
}

static bool reap(struct run *x)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (pid == x->child) {
			x->status = status;
			x->exited = true;
		}
	return pid < 0; /* no children left */
}

static void pump(struct run *x, int64_t until_boot_ms)
{
	struct pollfd p[] = {{x->in_fd, POLLOUT, 0},
			     {x->out_fd, POLLIN, 0},
			     {x->err_fd, POLLIN, 0},
			     {x->exited ? -1 : x->pid_fd, POLLIN, 0}};
	int64_t left = until_boot_ms - clock_boot_ms();

	if (poll(p, ARRAY_LEN(p), left < 0 ? 0 : left > 60000 ? 60000 : (int)left) < 0)
		return;
	if (p[0].revents)
		feed(x);
	if (p[1].revents)
		drain(&x->out_fd, &x->raw_out, &x->cut_out);
	if (p[2].revents)
		drain(&x->err_fd, &x->raw_err, &x->cut_err);
	if (p[3].revents)
		(void)reap(x);
}

/* Ends whatever is left: TERM, a grace, then stop and kill until no child remains. Processes that
 * do not go are dead to all but the kernel; of those that cannot be found nobody knows that. */
static void end_tree(struct run *x, int64_t grace_ms)
{
	int64_t until = clock_boot_ms() + grace_ms;

	if (reap(x))
		return;
	(void)tree_signal(getpid(), SIGTERM);
	(void)tree_signal(getpid(), SIGCONT);
	while (!reap(x) && clock_boot_ms() < until)
		pump(x, clock_boot_ms() + 10);
	until = clock_boot_ms() + REAP_MS;
	while (!reap(x) && clock_boot_ms() < until) {
		bool unseen = tree_kill(getpid()) < 0;
		if (unseen && !x->exited)
			(void)kill(x->child, SIGKILL);
		if (unseen)
			until = clock_boot_ms() + REAP_MS;
		pump(x, clock_boot_ms() + (unseen ? 100 : 5));
	}
}

static void supervise(struct run *x)
{
	while (!x->exited && clock_boot_ms() < x->deadline_boot_ms)
		pump(x, x->deadline_boot_ms);
	x->timed_out = !x->exited;
	end_tree(x, x->timed_out ? TERM_GRACE_MS : LEFTOVER_MS);
	drain(&x->out_fd, &x->raw_out, &x->cut_out);
	drain(&x->err_fd, &x->raw_err, &x->cut_err);
}

/* ---- outcome ---- */

static void judge_exit(struct run *x)
{
	struct outcome *o = &x->outcome;

	o->has_rc = true;
	o->rc = WIFEXITED(x->status) ? WEXITSTATUS(x->status) : 128 + WTERMSIG(x->status);
}

/* "<code>\n<msg>", of the codes that are such a verb's to give: only we know what expired or was
 * cancelled. NULL, or where the code ends. */
static char *find_refusal(char *text)
{
	static const char *const codes[] = {"bad_args", "busy", "internal", "outcome_unknown",
					    "verb_not_allowed"};
	char *nl = text ? strchr(text, '\n') : NULL;

	for (size_t i = 0; nl && i < ARRAY_LEN(codes); i++)
		if (strlen(codes[i]) == (size_t)(nl - text) &&
		    strncmp(codes[i], text, strlen(codes[i])) == 0)
			return nl;
	return NULL;
}

/* A built-in verb that died leaves its effects unknown. */
static void judge_builtin(struct run *x)
{
	struct outcome *o = &x->outcome;
	bool refused = WIFEXITED(x->status) && WEXITSTATUS(x->status) == VERBS_EXIT_REFUSED;
	char *nl = refused ? find_refusal(o->err.data) : NULL;

	o->data = true;
	if (WIFEXITED(x->status) && WEXITSTATUS(x->status) == 0 && o->out.len) {
		o->has_rc = true;
		o->rc = 0;
	} else if (nl) {
		*nl = 0;
		outcome_fail(o, o->err.data, "%s", nl + 1);
	} else {
		outcome_fail(o, x->job->verb->effects ? "outcome_unknown" : "internal",
			     "the built-in verb ended unexpectedly");
	}
	buf_clear(&o->err);
	if (o->code[0])
		buf_clear(&o->out);
}

static int clean_stream(struct run *x, const struct buf *raw, bool was_cut, struct buf *out,
			bool *cut)
{
	return redact_output(&x->job->secrets, raw->data, raw->len, was_cut,
			     (size_t)x->job->verb->max_output_bytes, out, cut);
}

/* A reply is one line: what goes into it as it is has no line end, between values neither. */
static bool is_one_line(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)s[i] < ' ')
			return false;
	return true;
}

/* The answer of a built-in verb is JSON whose texts it masked itself: masking the document would
 * break it. It is taken whole or not at all. */
static int take_data(struct run *x)
{
	struct json_fault fault;
	struct buf *raw = &x->raw_out;

	x->outcome.out_cut = x->cut_out;
	if (x->cut_out || raw->len < 2 || raw->data[0] != '{' ||
	    !is_one_line(raw->data, raw->len) ||
	    json_validate(raw->data, raw->len, WIRE_MAX_DEPTH - 1, &fault) < 0)
		return 0;
	return buf_append(&x->outcome.out, raw->data, raw->len);
}

static void judge(struct run *x)
{
	struct outcome *o = &x->outcome;
	struct child_fault fault;

	if (read(x->fault_fd, &fault, sizeof fault) == (ssize_t)sizeof fault) {
		o->started = false;
		outcome_fail(o, "not_executable", "%s: %s", fault.step, strerror(fault.error));
		return;
	}
	int r = x->job->verb->builtin
		    ? take_data(x)
		    : clean_stream(x, &x->raw_out, x->cut_out, &o->out, &o->out_cut);
	if (r == 0)
		r = clean_stream(x, &x->raw_err, x->cut_err, &o->err, &o->err_cut);
	if (r < 0) { /* output that could not be masked is not shown */
		buf_clear(&o->out);
		buf_clear(&o->err);
		o->out_cut = o->err_cut = true;
	}
	if (x->timed_out)
		outcome_fail(o, "timeout", "ended after its limit of %lld s",
			     (long long)x->job->verb->timeout_s);
	else if (x->job->verb->builtin)
		judge_builtin(x);
	else
		judge_exit(x);
}

static void run_child(struct run *x, int journal_fd)
{
	struct outcome *o = &x->outcome;
	const struct verb *v = x->job->verb;

	buf_init(&x->in, 262144);
	buf_init(&x->raw_out, (size_t)v->max_output_bytes + SLACK_BYTES);
	buf_init(&x->raw_err, (size_t)v->max_output_bytes + SLACK_BYTES);
	int r = build_stdin(x->job, &x->in);
	if (r == 0)
		r = start_child(x);
	uint64_t start = r == 0 ? tree_start_time(x->child) : 0;
	if (r == 0 && journal_fd >= 0) /* without it nobody could tell its session from another's */
		r = start ? journal_start(journal_fd, x->child, start) : -EIO;
	if (r < 0) {
		/* The child reads end of file on `go` and ends without having started anything. */
		close_fd(&x->go_fd);
		outcome_fail(o, "not_executable", "cannot start: %s", strerror(-r));
		return;
	}
	o->started = true;
	o->started_ms = clock_wall_ms();
	int64_t began = clock_boot_ms();
	x->deadline_boot_ms = began + v->timeout_s * 1000;
	if (write(x->go_fd, "g", 1) != 1)
		outcome_fail(o, "internal", "cannot release the child");
	close_fd(&x->go_fd);
	CRASH_POINT("supervisor.child_started");
	feed(x);
	supervise(x);
	CRASH_POINT("supervisor.child_exited");
	o->duration_ms = clock_boot_ms() - began;
	o->finished_ms = clock_wall_ms();
	judge(x);
	buf_wipe(&x->in);
	buf_wipe(&x->raw_out);
	buf_wipe(&x->raw_err);
}

/* ---- the process ---- */

static void settle_in(void)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, deflt = {.sa_handler = SIG_DFL};
	const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2};
	sigset_t none;

	for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
		(void)sigaction(ignored[i], &ignore, NULL);
	(void)sigaction(SIGCHLD, &deflt, NULL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)setsid();
	(void)prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	(void)prctl(PR_SET_NAME, "viw-run", 0, 0, 0);
}

static void report(int fd, const struct outcome *o)
{
	struct buf payload, text;

	buf_init(&payload, 1 << 20);
	buf_init(&text, 1 << 21);
	int r = outcome_encode(o, &payload);
	if (r == 0)
		r = record_append(&text, "done", payload.data, payload.len);
	if (r == 0 && file_write_all(fd, text.data, text.len) < 0) {
		/* The helper died; the journal has it. */
	}
	buf_fini(&payload);
	buf_fini(&text);
}

_Noreturn void supervisor_main(struct job *job)
{
	struct run x = {.job = job,
			.in_fd = -1,
			.out_fd = -1,
			.err_fd = -1,
			.pid_fd = -1,
			.fault_fd = -1,
			.go_fd = -1};
	int fd = -1, r = 0;

	settle_in();
	/* The record of the start is on disk before anything starts. */
	if (job->verb->effects)
		r = audit_sync(job->audit);
	outcome_init(&x.outcome, (size_t)job->verb->max_output_bytes + 64);
	if (r == 0 && job->verb->effects)
		r = journal_begin(job->journal, &job->intent, supervisor_reserve_bytes(job->verb),
				  &fd);
	if (r == -EEXIST)
		outcome_fail(&x.outcome, SUPERVISOR_TAKEN, "there is a journal file");
	else if (r < 0)
		outcome_fail(&x.outcome, "internal", "the disk refused it, nothing was started: %s",
			     strerror(-r));
	else if (fd >= 0 && clock_wall_ms() > job->intent.deadline_ms)
		outcome_fail(&x.outcome, "expired", "its deadline passed before it could start");
	else
		run_child(&x, fd);
	CRASH_POINT("supervisor.before_done");
	if (fd >= 0 && (r = journal_done(fd, &x.outcome)) < 0)
		LOG_ERROR(FIELDS(.event = "journal_failed", .error = strerror(-r),
				 .correlation_id = job->intent.correlation_id),
			  "the outcome could not be written");
	if (fd >= 0)
		close(fd); /* lets go of the lock before the helper hears of the end */
	report(job->report, &x.outcome);
	_exit(0);
}
