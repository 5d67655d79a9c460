/* Start, reload and stop of the dispatcher. */
#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/program.h"
#include "helper_main.h"
#include "sandbox.h"
#include "tree.h"
#include "verbs_program.h"

#define TICK_MS		  500
#define LOCK_WAIT_MS	  3000
#define LOCK_POLL_MS	  20
#define NONCES		  262144
#define NONCE_LOG_KEEP_MS 200000 /* longer than any request's nonce must be remembered */

/* ---- verbs ---- */

/* One program of several built-in verbs is one fault. */
static bool is_first_of(const struct verbs *verbs, size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (verbs_at(verbs, k)->builtin &&
		    strcmp(verbs_at(verbs, k)->exec, verbs_at(verbs, i)->exec) == 0)
			return false;
	return true;
}

static void check_execs(const struct verbs *verbs, struct verbs_faults *faults)
{
	char why[256];

	for (size_t i = 0; i < verbs_count(verbs); i++) {
		const struct verb *v = verbs_at(verbs, i);
		const char *file = v->builtin ? "(built in)" : v->file;
		if (v->local || (v->builtin && !is_first_of(verbs, i)))
			continue;
		if (trust_check_path(v->exec, TRUST_EXECUTABLE, why, sizeof why) < 0)
			verbs_fault_add(faults, file, "exec", "%s", why);
		if (!v->builtin && strcmp(v->run_as, "root") != 0 && !getpwnam(v->run_as))
			verbs_fault_add(faults, file, "run_as", "there is no user %s", v->run_as);
		for (char **c = v->capabilities; c && *c; c++)
			if (sandbox_capability(*c) < 0)
				verbs_fault_add(faults, file, "capabilities", "%s is none", *c);
	}
}

int helper_load_verbs(const char *dir, struct verbs **ret, struct verbs_faults *faults)
{
	char folder[4096];
	int r = verbs_load(dir, VERBS_TRUST_ROOT, true, ret, faults);

	if (!*ret)
		return r;
	r = verbs_program_folder(folder, sizeof folder);
	if (r == 0)
		r = verbs_set_folder(*ret, folder);
	if (r == 0) {
		check_execs(*ret, faults);
		return 0;
	}
	verbs_free(*ret);
	*ret = NULL;
	return r;
}

static void log_faults(const struct verbs_faults *faults)
{
	for (size_t i = 0; i < faults->n; i++)
		LOG_ERROR(FIELDS(.event = "manifest_fault", .detail = faults->item[i].key),
			  "%s: %s: %s", faults->item[i].file, faults->item[i].key,
			  faults->item[i].text);
}

/* A faulty manifest is not allowed; the others are. */
static int load_verbs(struct helper *h)
{
	struct verbs_faults faults = {0};
	struct verbs *fresh = NULL;

	int r = helper_load_verbs(h->cfg->verbs_dir, &fresh, &faults);
	log_faults(&faults);
	verbs_faults_fini(&faults);
	if (r < 0)
		return r;
	verbs_free(h->verbs);
	h->verbs = fresh;
	if (!sandbox_can_limit_writes())
		LOG_WARN(FIELDS(.event = "no_landlock"),
			 "this kernel has no Landlock: writable_paths of manifests is not enforced "
			 "per verb, only what the unit says");
	LOG_INFO(FIELDS(.event = "verbs_loaded", .has_count = true,
			.count = (int64_t)verbs_count(fresh)),
		 "verbs loaded");
	return 0;
}

/* ---- files ---- */

int helper_load_secret(const char *path, struct buf *ret)
{
	struct stat st;
	char why[256];

	int r = trust_check_path(path, TRUST_FILE, why, sizeof why);
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "secret_refused", .setting = "HOST_HELPER_SECRET_FILE"),
			  "%s", why);
		return r;
	}
	if (lstat(path, &st) < 0 || (st.st_mode & 07777) != 0400) {
		LOG_ERROR(FIELDS(.event = "secret_refused", .setting = "HOST_HELPER_SECRET_FILE"),
			  "%s: must have mode 0400; chmod 0400 it", path);
		return -EACCES;
	}
	r = file_read_secret(path, ret);
	if (r == 0 && ret->len < 16) {
		LOG_ERROR(FIELDS(.event = "secret_refused", .setting = "HOST_HELPER_SECRET_FILE"),
			  "%s: must hold at least 16 bytes", path);
		r = -EINVAL;
	}
	return r;
}

/* A child of a helper that was killed holds its lock until it has let go of it (run_fork_watched).
 */
static int take_lock(int fd)
{
	for (int waited_ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; waited_ms += LOCK_POLL_MS) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (waited_ms >= LOCK_WAIT_MS)
			return -EBUSY;
		usleep(LOCK_POLL_MS * 1000);
	}
	return 0;
}

static int open_state(struct helper *h)
{
	const char *dir = h->cfg->state_dir;
	char path[4096], why[256];
	bool fresh;

	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	int r = trust_check_path(dir, TRUST_DIR, why, sizeof why);
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "state_refused", .setting = "HOST_HELPER_STATE_DIR"),
			  "%s", why);
		return r;
	}
	snprintf(path, sizeof path, "%s/lock", dir);
	h->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (h->lock < 0)
		return -errno;
	r = take_lock(h->lock); /* kept until this process ends */
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "state_locked", .setting = "HOST_HELPER_STATE_DIR"),
			  "another host-helper uses %s", dir);
		return r;
	}
	r = journal_open(&h->journal, dir, &fresh);
	if (r == 0 && fresh)
		LOG_WARN(FIELDS(.event = "journal_new", .detail = h->journal.id),
			 "a new journal begins; commands offered to another one end unknown");
	if (r == 0)
		r = audit_open(&h->audit, dir, h->cfg->audit_file_bytes, (int)h->cfg->audit_files);
	h->audit_counts.from_seq = h->audit.last.seq;
	return r;
}

/* ---- nonces over a restart: two files, the older one replaced when all in it are past ---- */

static void load_nonce_file(struct helper *h, const char *path)
{
	char line[256], agent[AGENT_ID_MAX + 1], nonce[UUID_LEN + 1];
	FILE *f = fopen(path, "re");
	long long until;
	int64_t now = clock_wall_ms();

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%lld %64s %36s", &until, agent, nonce) == 3 && until > now &&
		    nonces_add(h->nonces, agent, nonce, strlen(nonce), until, now) == -ENOSPC)
			break;
	if (f)
		fclose(f);
}

static int rotate_nonce_log(struct helper *h)
{
	char now[4096], before[4096];

	snprintf(now, sizeof now, "%s/nonces", h->cfg->state_dir);
	snprintf(before, sizeof before, "%s/nonces.1", h->cfg->state_dir);
	if (rename(now, before) < 0 && errno != ENOENT)
		return -errno;
	int fd = open(now, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	closep(&h->nonce_log);
	h->nonce_log = fd;
	h->nonce_log_since = clock_boot_ms();
	return 0;
}

static int open_nonces(struct helper *h)
{
	static const char *const names[] = {"nonces.1", "nonces"};
	char path[4096];

	int r = nonces_new(NONCES, &h->nonces);
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(names); i++) {
		snprintf(path, sizeof path, "%s/%s", h->cfg->state_dir, names[i]);
		load_nonce_file(h, path);
	}
	if (r < 0)
		return r;
	/* Appended to, not rotated: several quick restarts must not push out what is still needed.
	 */
	snprintf(path, sizeof path, "%s/nonces", h->cfg->state_dir);
	h->nonce_log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	h->nonce_log_since = clock_boot_ms();
	return h->nonce_log < 0 ? -errno : 0;
}

/* ---- signals and time ---- */

static void reload(struct helper *h)
{
	struct host_helper_settings fresh;
	struct settings_faults faults = {0};
	extern char **environ;

	int r = settings_load(&host_helper_settings_spec, environ, &fresh, &faults);
	if (r == 0) {
		(void)settings_apply_reload(&host_helper_settings_spec, h->cfg, &fresh, NULL);
		r = listen_load_uids(h);
		conn_drop_refused(h);
	}
	settings_free(&host_helper_settings_spec, &fresh);
	for (size_t i = 0; i < faults.n; i++)
		LOG_ERROR(FIELDS(.event = "config_fault", .setting = faults.item[i].setting),
			  "%s %s", faults.item[i].setting, faults.item[i].text);
	settings_faults_fini(&faults);
	if (r == 0)
		r = load_verbs(h);
	if (r < 0)
		LOG_ERROR(FIELDS(.event = "reload_failed", .error = strerror(-r)),
			  "what was in force stays in force");
}

static void on_signals_ready(struct watch *w, uint32_t events UNUSED)
{
	struct helper *h = CONTAINER_OF(w, struct helper, signals);
	struct signalfd_siginfo s;

	while (read(w->fd, &s, sizeof s) == (ssize_t)sizeof s) {
		if (s.ssi_signo == SIGHUP)
			reload(h);
		else
			h->loop.stop = true;
	}
}

static int catch_signals(struct helper *h)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	sigset_t set;

	/* Supervisors are not waited for: they end without a trace, and outlive us. */
	(void)sigaction(SIGCHLD, &ignore, NULL);
	/* What a supervisor that was killed leaves comes to us, to be ended: run.c. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return -errno;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	h->signals = (struct watch){.fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC),
				    .on_ready = on_signals_ready};
	return h->signals.fd < 0 ? -errno : loop_add(&h->loop, &h->signals, EPOLLIN);
}

static void on_tick(void *arg)
{
	struct helper *h = arg;
	struct cpu_sample now;

	if (health_cpu_sample(&now) == 0 && now.total - h->cpu.total >= 100) {
		h->cpu_older = h->cpu;
		h->cpu = now;
	}
	conn_tick(h);
	listen_tick(h);
	run_tick(h);
	if (clock_boot_ms() - h->nonce_log_since > NONCE_LOG_KEEP_MS && rotate_nonce_log(h) < 0)
		LOG_WARN(FIELDS(.event = "nonces_not_rotated"),
			 "the nonce file cannot be replaced");
	int64_t dog = program_watchdog_interval_ms();
	if (dog > 0)
		program_notify("WATCHDOG=1");
}

/* ---- the whole ---- */

/* Under systemd the control group outlives us: whatever is in it below no live supervisor is what
 * runs left whose supervisor died together with the helper before this one. */
static int end_strays(struct helper *h)
{
	pid_t child;
	ssize_t n = tree_children(&child, 1);

	/* Whoever executed us from a process that had children of its own keeps them. */
	h->owns_children = n == 0;
	h->owns_cgroup = tree_owns_cgroup();
	if (n < 0 || !h->owns_cgroup)
		return n < 0 ? (int)n : 0;
	const struct tree_remains left = {.journal_dir = h->journal.dir, .helper = getpid()};
	int r = tree_kill_remains(&left);
	if (r == -EBUSY)
		LOG_ERROR(FIELDS(.event = "run_not_ended"),
			  "processes of a dead run cannot be ended");
	return r == -EBUSY ? 0 : r;
}

/* What an earlier helper left: it is ended, or counts. */
static int take_over(struct helper *h)
{
	int r = end_strays(h);

	if (r == 0)
		r = run_adopt_all(h);
	if (r < 0)
		LOG_ERROR(FIELDS(.event = "run_not_seen", .error = strerror(-r)),
			  "/proc does not tell what an earlier helper left");
	return r;
}

static int open_all(struct helper *h)
{
	int r;

	if ((r = loop_init(&h->loop)) < 0 ||
	    (r = helper_load_secret(h->cfg->secret_file, &h->secret)) < 0 ||
	    (r = open_state(h)) < 0 || (r = open_nonces(h)) < 0 || (r = load_verbs(h)) < 0 ||
	    (r = listen_load_uids(h)) < 0 ||
	    (r = wire_decoder_new(WIRE_HELPER_REQUEST_MAX, &h->decoder)) < 0 ||
	    (r = sandbox_enter()) < 0 || (r = catch_signals(h)) < 0 ||
	    (r = run_watch_journal(h)) < 0)
		return r;
	if ((r = health_cpu_sample(&h->cpu)) < 0)
		return r;
	r = take_over(h);
	return r < 0 ? r : listen_open(h);
}

static void close_all(struct helper *h)
{
	conn_close_all(h);
	run_forget_all(h); /* their supervisors go on */
	if (h->audit.fd >= 0 && audit_sync(&h->audit) < 0)
		LOG_ERROR(FIELDS(.event = "audit_not_synced"), "the audit log cannot be synced");
	loop_fini(&h->loop);
	closep(&h->listener.fd);
	closep(&h->signals.fd);
	closep(&h->inotify.fd);
	closep(&h->nonce_log);
	journal_close(&h->journal);
	audit_close(&h->audit);
	closep(&h->lock); /* the next helper reads what was just written */
	verbs_free(h->verbs);
	nonces_free(h->nonces);
	wire_decoder_free(h->decoder);
	buf_wipe(&h->secret);
	buf_fini(&h->secret);
	free(h->uid);
}

int helper_run(struct host_helper_settings *cfg)
{
	struct helper h = {
	    .cfg = cfg,
	    .loop = {.epoll = -1},
	    .listener = {.fd = -1},
	    .signals = {.fd = -1},
	    .inotify = {.fd = -1},
	    .journal = {.dir = -1, .seen_fd = -1},
	    .audit = {.dir = -1, .fd = -1, .head_fd = -1, .before = -1, .journald = -1},
	    .lock = -1,
	    .nonce_log = -1,
	    .rate_at_ms = clock_boot_ms(),
	    .rate_tokens = (double)cfg->rate,
	    .started_boot_ms = clock_boot_ms()};

	buf_init(&h.secret, 4096);
	int r = open_all(&h);
	if (r == 0) {
		LOG_INFO(FIELDS(.event = "ready", .detail = h.journal.id), "listening on %s",
			 cfg->socket);
		program_notify("READY=1");
		r = loop_run(&h.loop, TICK_MS, on_tick, &h);
		program_notify("STOPPING=1");
		LOG_INFO(FIELDS(.event = "stopped", .has_count = true,
				.count = (int64_t)run_count(&h, NULL)),
			 "stopped; runs go on without it");
	}
	close_all(&h);
	return r;
}
