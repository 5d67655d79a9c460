/* The running agent. See agent.h. */
#include "agent.h"

#include <errno.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent_metrics.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/program.h"
#include "commands.h"
#include "footprint.h"
#include "helper_client.h"
#include "local_http.h"
#include "loop/loop.h"
#include "session.h"
#include "status.h"
#include "telemetry.h"
#include "trust.h"
#include "verbset.h"

#define HELPER_WAIT_MS	3000 /* for the journal id, before the first dial */
#define HELPER_DATA_MS	5000 /* get_monitoring_data */
#define CERT_WARN_DAYS	30
#define DAY_MS		86400000
#define AUDIT_EVERY_MS	300000
#define WATCHES_MAX	8
#define STATUS_DELAY_MS 100
#define TRIM_AFTER_MS	5000 /* connected for so long: quiet */

extern char **environ;

struct agent {
	struct loop *loop;
	struct agent_settings *cfg;
	struct metrics *metrics;
	struct trust *trust;
	struct verbset *verbs;
	struct helper_client *helper;
	struct commands *commands;
	struct session *session;
	struct local_http *http;
	struct loop_timer *first_dial, *commands_timer, *telemetry_timer, *status_timer, *daily,
	    *trim, *watchdog;
	struct loop_watch *watch[WATCHES_MAX];
	size_t watches;
	int64_t commands_at_ms; /* 0: no tick planned */
	struct telemetry_cpu cpu;
	char telemetry_id[UUID_LEN + 16];
	bool telemetry_asked, stopping, state_dir_bad;
	int64_t started_wall_ms, started_boot_ms, last_audit_ms;
	int64_t warned[3];	 /* days of the last expiry warning: client, bundle, backend */
	struct buf audit;	 /* the helper's last checkpoint, a JSON object */
	struct buf last_metrics; /* for /metrics of the inbound feature and status */
};

/* ---- figures about ourselves ---- */

static int64_t days_left(int64_t not_after_ms)
{
	int64_t left = not_after_ms - clock_wall_ms();

	if (!not_after_ms)
		return INT64_MIN;
	return left >= 0 ? left / DAY_MS : -1 - (-left - 1) / DAY_MS;
}

static void cert_days(struct agent *a, int64_t *cert, int64_t *bundle, int64_t *backend)
{
	const struct cert_info *info = trust_cert_info(a->trust);
	struct session_view v;

	session_view(a->session, &v);
	*cert = info ? days_left(info->not_after_ms) : INT64_MIN;
	*bundle = days_left(trust_bundle_not_after_ms(a->trust));
	*backend = days_left(v.peer->not_after_ms);
}

/* Said once a day at most, however often the agent connects. */
static void warn_expiry(struct agent *a, const char *which, const char *setting, int64_t days,
			int64_t *last)
{
	if (days == INT64_MIN)
		return;
	metric_set(metrics_get(a->metrics, M_cert_days, which, NULL), (double)days);
	if (days >= CERT_WARN_DAYS || days == *last)
		return;
	*last = days;
	LOG_WARN(FIELDS(.event = "cert_expiry", .agent_id = a->cfg->id, .setting = setting,
			.has_count = true, .count = days),
		 days < 0
		     ? "the %s certificate has expired; replace it"
		     : "the %s certificate expires soon; replace it, it is read again by itself",
		 which);
}

static void check_expiry(void *arg)
{
	struct agent *a = arg;
	int64_t cert, bundle, backend;

	cert_days(a, &cert, &bundle, &backend);
	warn_expiry(a, "client", "VIW_AGENT_CERT_PATH", cert, &a->warned[0]);
	warn_expiry(a, "trust_bundle", "VIW_AGENT_TRUST_BUNDLE", bundle, &a->warned[1]);
	warn_expiry(a, "backend", NULL, backend, &a->warned[2]);
}

/* ---- status.json ---- */

static void path_in_state_dir(const struct agent *a, const char *name, char *out, size_t cap)
{
	(void)snprintf(out, cap, "%s/%s", a->cfg->state_dir, name);
}

static void write_state(struct agent *a, const char *name, const char *text, size_t n)
{
	char path[512];
	int r;

	path_in_state_dir(a, name, path, sizeof path);
	r = file_write_atomic(path, text, n, 0644);
	if (r < 0 && !a->state_dir_bad)
		LOG_WARN(FIELDS(.event = "state_dir", .setting = "VIW_AGENT_STATE_DIR",
				.error = strerror(-r)),
			 "%s cannot be written; `gateway-agent status` will show nothing", path);
	a->state_dir_bad = r < 0;
}

static int compose_status(struct agent *a, struct buf *out)
{
	struct status_input in = {.cfg = a->cfg,
				  .helper_up = helper_client_is_up(a->helper),
				  .helper_why = helper_client_why_down(a->helper),
				  .commands = commands_counts_of(a->commands),
				  .started_ms = a->started_wall_ms};

	session_view(a->session, &in.session);
	cert_days(a, &in.cert_days, &in.bundle_days, &in.backend_days);
	return status_compose(&in, out);
}

static void write_status(void *arg)
{
	struct agent *a = arg;
	struct buf b;

	buf_init(&b, 65536);
	if (compose_status(a, &b) == 0)
		write_state(a, "status.json", b.data, b.len);
	buf_fini(&b);
}

static void on_change(void *arg)
{
	struct agent *a = arg;

	if (!a->stopping && !loop_timer_active(a->status_timer))
		loop_timer_start(a->status_timer, STATUS_DELAY_MS, 0);
}

/* ---- telemetry ---- */

static void compose_telemetry(struct agent *a, struct span helper_data)
{
	struct commands_counts n = commands_counts_of(a->commands);
	struct ring_gap gap = session_take_gap(a->session);
	struct session_view v;
	struct telemetry_self self = {.version = program_version,
				      .helper_up = helper_client_is_up(a->helper),
				      .held = n.held,
				      .results_waiting = n.results,
				      .gap_frames = gap.frames,
				      .gap_first_seq = gap.first_seq,
				      .gap_last_seq = gap.last_seq};

	session_view(a->session, &v);
	self.reconnects = v.reconnects;
	self.uptime_s = (uint64_t)(clock_boot_ms() - a->started_boot_ms) / 1000;
	cert_days(a, &self.cert_days, &self.bundle_days, &self.backend_days);
	metric_set(metrics_get(a->metrics, M_commands_held, NULL, NULL), n.held);
	metric_set(metrics_get(a->metrics, M_results_waiting, NULL, NULL), n.results);
	buf_clear(&a->last_metrics);
	if (telemetry_compose(&telemetry_host, helper_data, a->cfg->services, &self, &a->cpu,
			      &a->last_metrics) == 0)
		session_telemetry(a->session,
				  (struct span){a->last_metrics.data, a->last_metrics.len});
	else
		LOG_ERROR(FIELDS(.event = "telemetry_failed", .agent_id = a->cfg->id),
			  "the figures could not be put together");
	buf_trim(&a->last_metrics, 32768);
	on_change(a);
}

static void on_monitoring_data(void *arg, const char *correlation_id,
			       const struct wire_helper_reply *reply)
{
	struct agent *a = arg;
	struct span data = {0};

	(void)correlation_id;
	a->telemetry_asked = false;
	if (a->stopping)
		return;
	if (reply && span_eq(reply->status, "ok"))
		data = reply->data;
	compose_telemetry(a, data);
}

static int ask_monitoring_data(struct agent *a)
{
	char uuid[UUID_LEN + 1];
	struct buf units, args;
	struct jsonw w;
	int r;

	ident_uuid4(uuid);
	(void)snprintf(a->telemetry_id, sizeof a->telemetry_id, "telemetry-%s", uuid);
	buf_init(&units, 4096);
	buf_init(&args, 8192);
	r = telemetry_units(a->cfg->services, &units);
	jsonw_init(&w, &args);
	jsonw_obj(&w, NULL);
	if (r == 0 && units.len)
		jsonw_strn(&w, "services", units.data, units.len);
	jsonw_obj_end(&w);
	if (r == 0)
		r = jsonw_finish(&w);
	if (r == 0)
		r = helper_client_ask(a->helper,
				      &(struct helper_ask){.op = HELPER_RUN,
							   .correlation_id = a->telemetry_id,
							   .verb = "get_monitoring_data",
							   .args = {args.data, args.len},
							   .give_up_ms = HELPER_DATA_MS},
				      on_monitoring_data, a);
	buf_fini(&units);
	buf_fini(&args);
	return r;
}

static void take_telemetry(void *arg)
{
	struct agent *a = arg;

	if (a->telemetry_asked)
		return;
	if (helper_client_is_up(a->helper) && ask_monitoring_data(a) == 0)
		a->telemetry_asked = true;
	else
		compose_telemetry(a, (struct span){0});
}

/* ---- commands ---- */

static int op_send(void *arg, enum wire_type type, const char *json, size_t n)
{
	struct agent *a = arg;

	return session_send(a->session, type, json, n);
}

static bool op_helper_up(void *arg)
{
	struct agent *a = arg;

	return helper_client_is_up(a->helper);
}

static void on_command_answer(void *arg, const char *correlation_id,
			      const struct wire_helper_reply *reply)
{
	struct agent *a = arg;

	commands_on_answer(a->commands, correlation_id, reply);
	on_change(a);
}

static int op_ask(void *arg, const struct helper_ask *ask)
{
	struct agent *a = arg;

	return helper_client_ask(a->helper, ask, on_command_answer, a);
}

static const struct verb *op_find_verb(void *arg, const char *name)
{
	struct agent *a = arg;

	return verbset_find(a->verbs, name);
}

static bool op_verbs_known(void *arg)
{
	struct agent *a = arg;

	return verbset_known(a->verbs) || !a->cfg->helper_secret;
}

static void on_commands_timer(void *arg)
{
	struct agent *a = arg;

	a->commands_at_ms = 0;
	commands_tick(a->commands);
}

static void op_wake_at(void *arg, int64_t boot_ms)
{
	struct agent *a = arg;
	int64_t wait = boot_ms - clock_boot_ms();

	if (a->commands_at_ms && a->commands_at_ms <= boot_ms)
		return;
	a->commands_at_ms = boot_ms;
	loop_timer_start(a->commands_timer, wait > 0 ? wait : 0, 0);
}

static void op_finished(void *arg, const char *status)
{
	struct agent *a = arg;

	metric_add(metrics_get(a->metrics, M_commands, status, NULL), 1);
}

static void op_shutdown(void *arg)
{
	struct agent *a = arg;

	LOG_INFO(FIELDS(.event = "shutdown", .agent_id = a->cfg->id),
		 "asked to stop by a shutdown command");
	loop_stop(a->loop);
}

static const struct commands_ops commands_ops = {.send = op_send,
						 .helper_up = op_helper_up,
						 .ask = op_ask,
						 .find_verb = op_find_verb,
						 .verbs_known = op_verbs_known,
						 .wake_at = op_wake_at,
						 .finished = op_finished,
						 .shutdown = op_shutdown};

static struct commands_config commands_cfg(const struct agent *a)
{
	return (struct commands_config){.agent_id = a->cfg->id,
					.exec_enable = a->cfg->feature_exec_enable,
					.allowed_verbs = a->cfg->allowed_verbs,
					.max_concurrency = a->cfg->max_concurrency,
					.cmd_timeout_ms = a->cfg->cmd_timeout_secs * 1000,
					.helper_configured = a->cfg->helper_secret != NULL};
}

static void forward_audit(struct agent *a);

/* ---- session ---- */

static void on_ready(void *arg, uint64_t max_frame_bytes)
{
	struct agent *a = arg;

	commands_on_session(a->commands, max_frame_bytes);
	take_telemetry(a);
	loop_timer_start(a->trim, TRIM_AFTER_MS, 0);
	a->last_audit_ms = 0;
	forward_audit(a);
	check_expiry(a);
}

static void on_session_end(void *arg)
{
	struct agent *a = arg;

	commands_on_session_end(a->commands);
}

static void on_command(void *arg, const struct wire_command *f, int64_t server_now_ms)
{
	struct agent *a = arg;

	commands_on_command(a->commands, f, server_now_ms);
}

static void on_cancel(void *arg, const struct wire_cancel *f)
{
	struct agent *a = arg;

	commands_on_cancel(a->commands, f);
}

static void on_result_ack(void *arg, struct span correlation_id)
{
	struct agent *a = arg;

	commands_on_result_ack(a->commands, correlation_id);
}

struct put_verbs {
	struct agent *a;
	struct jsonw *w;
};

static void put_verb(void *arg, const struct verb *v)
{
	struct put_verbs *p = arg;
	bool effects = v->effects || strcmp(v->name, "shutdown") == 0;

	if (!v->local && !p->a->cfg->helper_secret)
		return;
	if (commands_allows(p->a->commands, v->name, effects))
		jsonw_str(p->w, NULL, v->name);
}

static void put_verbs(void *arg, struct jsonw *w)
{
	struct agent *a = arg;

	verbset_each(a->verbs, put_verb, &(struct put_verbs){a, w});
}

static const struct session_ops session_ops = {.on_ready = on_ready,
					       .on_end = on_session_end,
					       .on_command = on_command,
					       .on_cancel = on_cancel,
					       .on_result_ack = on_result_ack,
					       .put_verbs = put_verbs,
					       .on_change = on_change};

/* ---- helper ---- */

/* The journal id outlives a restart of the agent: HELLO must not forget it while the helper is
 * down, or the bridge would take this for another journal. */
static void remember_journal(struct agent *a, const char *id)
{
	struct session_view v;

	session_view(a->session, &v);
	if (strcmp(v.journal_id, id) == 0)
		return;
	if (v.journal_id[0])
		commands_on_journal_changed(a->commands);
	write_state(a, "journal_id", id, strlen(id));
	session_set_journal(a->session, id);
}

static void recall_journal(struct agent *a)
{
	char path[512];
	struct buf b;

	buf_init(&b, 64);
	path_in_state_dir(a, "journal_id", path, sizeof path);
	if (file_read(path, &b) == 0 && b.len > 0 && ident_is_correlation_id(b.data, b.len))
		session_set_journal(a->session, b.data);
	buf_fini(&b);
}

/* The last checkpoint of the helper's audit log goes out with each session, then every 5 min. */
static void forward_audit(struct agent *a)
{
	int64_t now = clock_boot_ms();

	if (!a->audit.len || (a->last_audit_ms && now - a->last_audit_ms < AUDIT_EVERY_MS))
		return;
	if (session_audit(a->session, (struct span){a->audit.data, a->audit.len}) == 0)
		a->last_audit_ms = now;
}

static void take_audit(struct agent *a, struct span data)
{
	struct json_member m;

	if (!json_find(data, "audit", &m) || m.type != JSON_T_OBJ)
		return;
	buf_clear(&a->audit);
	if (buf_append(&a->audit, m.raw.p, m.raw.n) < 0)
		buf_clear(&a->audit);
	forward_audit(a);
}

static void on_helper_up(void *arg, struct span data)
{
	struct agent *a = arg;
	struct json_member m;
	char id[65];

	if (json_find(data, "verbs", &m) && m.type == JSON_T_ARR &&
	    verbset_learn(a->verbs, m.raw) < 0)
		LOG_ERROR(FIELDS(.event = "out_of_memory"), "the helper's verbs were not taken");
	if (json_find(data, "journal_id", &m) && m.type == JSON_T_STR &&
	    span_copy(m.raw, id, sizeof id) == 0)
		remember_journal(a, id);
	metric_set(metrics_get(a->metrics, M_helper_up, NULL, NULL), 1);
	take_audit(a, data);
	if (loop_timer_active(a->first_dial))
		loop_timer_start(a->first_dial, 0, 0);
	commands_on_helper(a->commands);
	on_change(a);
}

static void on_helper_down(void *arg, const char *why)
{
	struct agent *a = arg;

	(void)why;
	metric_set(metrics_get(a->metrics, M_helper_up, NULL, NULL), 0);
	commands_on_helper(a->commands);
	on_change(a);
}

static const struct helper_client_ops helper_ops = {.on_up = on_helper_up,
						    .on_down = on_helper_down};

static int open_helper(struct agent *a, struct helper_client **ret)
{
	return helper_client_open(a->loop,
				  &(struct helper_client_config){.socket = a->cfg->helper_socket,
								 .secret = a->cfg->helper_secret,
								 .agent_id = a->cfg->id},
				  &helper_ops, a, ret);
}

/* ---- reload ---- */

static struct trust_config trust_cfg(const struct agent_settings *s)
{
	return (struct trust_config){.cert_path = s->cert_path,
				     .key_path = s->key_path,
				     .bundle_path = s->trust_bundle,
				     .pins_csv = s->backend_spki_pin};
}

static void on_ignored_setting(const char *name)
{
	LOG_WARN(FIELDS(.event = "reload_ignored", .setting = name),
		 "a change of this setting needs a restart");
}

static bool text_differs(const char *x, const char *y)
{
	return x && y ? strcmp(x, y) != 0 : x != y;
}

static void reload_failed(struct agent *a, const char *setting, const char *why)
{
	metric_add(metrics_get(a->metrics, M_reloads, "failed", NULL), 1);
	LOG_ERROR(FIELDS(.event = "reload_failed", .agent_id = a->cfg->id, .setting = setting),
		  "nothing was changed: %s", why);
}

/* Everything that can fail was made before; this takes it over. */
static void adopt(struct agent *a, struct agent_settings *fresh, struct trust *t)
{
	bool secret = text_differs(a->cfg->shared_secret, fresh->shared_secret);
	bool helper = text_differs(a->cfg->helper_secret, fresh->helper_secret);
	bool anew = secret || text_differs(a->cfg->backend_url, fresh->backend_url) ||
		    !trust_equal(a->trust, t);
	size_t n = settings_apply_reload(&agent_settings_spec, a->cfg, fresh, on_ignored_setting);
	struct commands_config cc = commands_cfg(a);
	struct helper_client *h = NULL;
	struct trust *old = a->trust;
	enum log_level level = LOG_LEVEL_INFO;

	if (n == 0 && !anew) {
		trust_free(t);
		return;
	}
	a->trust = t;
	if (session_reload(a->session, t, anew) < 0 || commands_configure(a->commands, &cc) < 0)
		LOG_ERROR(FIELDS(.event = "reload_failed"), "out of memory while reloading");
	trust_free(old);
	if (helper && open_helper(a, &h) == 0) {
		helper_client_close(a->helper);
		a->helper = h;
		commands_on_helper(a->commands);
	}
	local_http_set_token(a->http, a->cfg->local_token);
	if (log_level_parse(a->cfg->log_level, &level) == 0)
		log_setup(a->cfg->log_json, level);
	loop_timer_start(a->telemetry_timer, a->cfg->telemetry_interval_s * 1000,
			 a->cfg->telemetry_interval_s * 1000);
	metric_add(metrics_get(a->metrics, M_reloads, "done", NULL), 1);
	LOG_INFO(FIELDS(.event = "reloaded", .agent_id = a->cfg->id, .has_count = true,
			.count = (int64_t)n),
		 anew ? "settings and TLS material taken over; dialling anew"
		      : "settings taken over");
	check_expiry(a);
	on_change(a);
}

static void reload(void *arg)
{
	struct agent *a = arg;
	struct agent_settings fresh = {0};
	struct settings_faults faults = {0};
	struct trust_config tc;
	struct trust *t = NULL;
	char why[512];

	if (a->stopping)
		return;
	if (settings_load(&agent_settings_spec, environ, &fresh, &faults) < 0) {
		reload_failed(a, faults.n ? faults.item[0].setting : NULL,
			      faults.n ? faults.item[0].text : "out of memory");
	} else {
		tc = trust_cfg(&fresh);
		if (trust_load(&tc, &t, why, sizeof why) < 0)
			reload_failed(a, NULL, why);
		else
			adopt(a, &fresh, t);
	}
	settings_faults_fini(&faults);
	settings_free(&agent_settings_spec, &fresh);
}

static void on_signal(void *arg, int signum)
{
	struct agent *a = arg;

	if (signum == SIGHUP) {
		LOG_INFO(FIELDS(.event = "reload", .agent_id = a->cfg->id), "SIGHUP: reloading");
		reload(a);
		return;
	}
	LOG_INFO(FIELDS(.event = "stopping", .agent_id = a->cfg->id), "stopping on signal %d",
		 signum);
	program_notify("STOPPING=1");
	loop_stop(a->loop);
}

/* Folders, not files: certificates are replaced by rename, in Kubernetes by a symlink's change. */
static void watch_folder_of(struct agent *a, const char *path)
{
	char copy[512];
	const char *dir;
	int r;

	if (!path || a->watches == WATCHES_MAX ||
	    (size_t)snprintf(copy, sizeof copy, "%s", path) >= sizeof copy)
		return;
	dir = dirname(copy);
	r = loop_watch_new(a->loop, dir, reload, a, &a->watch[a->watches]);
	if (r == 0)
		a->watches++;
	else
		LOG_WARN(FIELDS(.event = "watch_failed", .error = strerror(-r)),
			 "%s is not watched; send SIGHUP after a change", dir);
}

static void watch_files(struct agent *a)
{
	static const char *const env[] = {"AGENT_CONFIG", "VIW_AGENT_SHARED_SECRET_FILE",
					  "VIW_AGENT_HELPER_SECRET_FILE"};
	size_t i;

	watch_folder_of(a, a->cfg->cert_path);
	watch_folder_of(a, a->cfg->key_path);
	watch_folder_of(a, a->cfg->trust_bundle);
	for (i = 0; i < ARRAY_LEN(env); i++)
		watch_folder_of(a, getenv(env[i]));
}

/* ---- what local_http.c asks ---- */

int agent_status_json(struct agent *a, struct buf *out)
{
	return compose_status(a, out);
}

int agent_metrics_text(struct agent *a, struct buf *out)
{
	struct commands_counts n = commands_counts_of(a->commands);

	metric_set(metrics_get(a->metrics, M_commands_held, NULL, NULL), n.held);
	metric_set(metrics_get(a->metrics, M_results_waiting, NULL, NULL), n.results);
	return metrics_render(a->metrics, out);
}

bool agent_is_connected(struct agent *a)
{
	return session_is_ready(a->session);
}

int agent_execute(struct agent *a, const char *correlation_id, const char *verb, struct span args,
		  int64_t ttl_ms, commands_local_cb cb, void *arg)
{
	return commands_local(a->commands, correlation_id, verb, args, ttl_ms, cb, arg);
}

/* ---- life ---- */

static void on_first_dial(void *arg)
{
	struct agent *a = arg;

	session_start(a->session);
}

static void on_trim(void *arg)
{
	(void)arg;
	footprint_trim();
}

static void on_watchdog(void *arg)
{
	(void)arg;
	program_notify("WATCHDOG=1");
}

static int open_timers(struct agent *a)
{
	const struct {
		struct loop_timer **t;
		loop_cb cb;
	} timers[] = {
	    {&a->first_dial, on_first_dial},
	    {&a->commands_timer, on_commands_timer},
	    {&a->telemetry_timer, take_telemetry},
	    {&a->status_timer, write_status},
	    {&a->daily, check_expiry},
	    {&a->trim, on_trim},
	    {&a->watchdog, on_watchdog},
	};
	size_t i;
	int r = 0;

	for (i = 0; i < ARRAY_LEN(timers) && r == 0; i++)
		r = loop_timer_new(a->loop, timers[i].cb, a, timers[i].t);
	return r;
}

static int open_parts(struct agent *a)
{
	struct commands_config cc = commands_cfg(a);
	struct trust_config tc = trust_cfg(a->cfg);
	char why[512];
	int r;

	r = trust_load(&tc, &a->trust, why, sizeof why);
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "config_fault", .agent_id = a->cfg->id), "%s", why);
		return r;
	}
	r = metrics_new(agent_metric_table, agent_metric_count, &a->metrics);
	if (r == 0)
		r = verbset_new(&a->verbs);
	if (r == 0)
		r = open_timers(a);
	if (r == 0)
		r = commands_new(&cc, &commands_ops, a, &a->commands);
	if (r == 0)
		r = session_open(a->loop, a->metrics, a->cfg, a->trust, &session_ops, a,
				 &a->session);
	if (r == 0)
		r = open_helper(a, &a->helper);
	return r;
}

static int catch_signals(struct agent *a)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
	size_t i;
	int r = 0;

	for (i = 0; i < ARRAY_LEN(signals) && r == 0; i++)
		r = loop_on_signal(a->loop, signals[i], on_signal, a);
	return r;
}

int agent_open(struct loop *l, struct agent_settings *cfg, struct agent **ret)
{
	struct agent *a = calloc(1, sizeof *a);
	int64_t watchdog = program_watchdog_interval_ms();
	int r;

	if (!a)
		return -ENOMEM;
	*a = (struct agent){.loop = l,
			    .cfg = cfg,
			    .started_wall_ms = clock_wall_ms(),
			    .started_boot_ms = clock_boot_ms()};
	a->warned[0] = a->warned[1] = a->warned[2] = INT64_MIN;
	buf_init(&a->last_metrics, 200000);
	buf_init(&a->audit, 8192);
	(void)!telemetry_read_cpu(&telemetry_host, &a->cpu);
	r = open_parts(a);
	if (r == 0)
		r = catch_signals(a);
	if (r == 0 && cfg->feature_inbound_http)
		r = local_http_open(l, a, cfg, &a->http);
	if (r < 0) {
		agent_close(a);
		return r;
	}
	recall_journal(a);
	watch_files(a);
	loop_timer_start(a->first_dial, cfg->helper_secret ? HELPER_WAIT_MS : 0, 0);
	loop_timer_start(a->telemetry_timer, cfg->telemetry_interval_s * 1000,
			 cfg->telemetry_interval_s * 1000);
	loop_timer_start(a->daily, DAY_MS, DAY_MS);
	if (watchdog > 0)
		loop_timer_start(a->watchdog, watchdog, watchdog);
	check_expiry(a);
	program_notify("READY=1");
	LOG_INFO(FIELDS(.event = "started", .agent_id = cfg->id), "gateway-agent %s",
		 program_version);
	*ret = a;
	return 0;
}

void agent_close(struct agent *a)
{
	struct loop_timer *timers[] = {a->first_dial,	a->commands_timer, a->telemetry_timer,
				       a->status_timer, a->daily,	   a->watchdog,
				       a->trim};
	size_t i;

	a->stopping = true;
	if (a->session && a->commands && a->helper)
		write_status(a);
	local_http_close(a->http);
	helper_client_close(a->helper);
	session_close(a->session);
	commands_free(a->commands);
	for (i = 0; i < ARRAY_LEN(timers); i++)
		loop_timer_close(timers[i]);
	for (i = 0; i < a->watches; i++)
		loop_watch_close(a->watch[i]);
	verbset_free(a->verbs);
	trust_free(a->trust);
	if (a->metrics)
		metrics_free(a->metrics);
	buf_fini(&a->last_metrics);
	buf_fini(&a->audit);
	free(a);
}
