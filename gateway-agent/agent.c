/* The running agent: its parts put together. See agent.h. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent_private.h"
#include "base/file.h"
#include "footprint.h"

#define HELPER_WAIT_MS 3000 /* for the journal id, before the first dial */
#define AUDIT_EVERY_MS 300000
#define DAY_MS	       86400000
#define STOP_AFTER_MS  100  /* whoever gave shutdown on this host gets the answer */
#define TRIM_AFTER_MS  1000 /* quiet for so long after a handshake or a reload */

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
	agent_changed(a);
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
	program_notify("STOPPING=1");
	loop_timer_start(a->stop, STOP_AFTER_MS, 0);
}

static void on_stop(void *arg)
{
	struct agent *a = arg;

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

struct commands_config agent_commands_config(const struct agent *a)
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
	agent_take_telemetry(a);
	agent_trim_soon(a);
	a->last_audit_ms = 0;
	forward_audit(a);
	agent_check_expiry(a);
}

static void on_session_end(void *arg)
{
	struct agent *a = arg;

	commands_on_session_end(a->commands);
	audit_summary_session_end(&a->audit);
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

#define VERBS_TOLD_MAX 512 /* HELLO takes no more (lib/wire/frames.def); all of them run */

struct put_verbs {
	struct agent *a;
	struct jsonw *w;
	unsigned n;
};

static void put_verb(void *arg, const struct verb *v)
{
	struct put_verbs *p = arg;
	bool effects = v->effects || strcmp(v->name, "shutdown") == 0;

	if (!v->local && !p->a->cfg->helper_secret)
		return;
	if (commands_allows(p->a->commands, v->name, effects) && p->n++ < VERBS_TOLD_MAX)
		jsonw_str(p->w, NULL, v->name);
}

static void put_verbs(void *arg, struct jsonw *w)
{
	struct agent *a = arg;

	verbset_each(a->verbs, put_verb, &(struct put_verbs){.a = a, .w = w});
}

static const struct session_ops session_ops = {.on_ready = on_ready,
					       .on_end = on_session_end,
					       .on_command = on_command,
					       .on_cancel = on_cancel,
					       .on_result_ack = on_result_ack,
					       .put_verbs = put_verbs,
					       .on_change = agent_changed};

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
	agent_write_state(a, "journal_id", id, strlen(id));
	session_set_journal(a->session, id);
}

static void recall_journal(struct agent *a)
{
	char path[512];
	struct buf b;

	buf_init(&b, 64);
	agent_state_path(a, "journal_id", path, sizeof path);
	if (file_read(path, &b) == 0 && b.len > 0 && ident_is_correlation_id(b.data, b.len))
		session_set_journal(a->session, b.data);
	buf_fini(&b);
}

/* A summary of the helper's audit log goes out with each session, then every 5 min. */
static void forward_audit(struct agent *a)
{
	int64_t now = clock_boot_ms();
	struct buf b;

	if (a->last_audit_ms && now - a->last_audit_ms < AUDIT_EVERY_MS)
		return;
	buf_init(&b, AUDIT_SUMMARY_MAX);
	if (audit_summary_compose(&a->audit, &b) == 0 &&
	    session_audit(a->session, (struct span){b.data, b.len}) == 0) {
		audit_summary_sent(&a->audit);
		a->last_audit_ms = now;
	}
	buf_fini(&b);
}

static void take_audit(struct agent *a, struct span data)
{
	struct json_member m;

	if (!json_find(data, "audit", &m) || m.type != JSON_T_OBJ)
		return;
	if (audit_summary_learn(&a->audit, m.raw) == 0)
		forward_audit(a);
	else
		LOG_WARN(FIELDS(.event = "audit_unreadable", .agent_id = a->cfg->id),
			 "the helper's audit head cannot be read");
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
	session_tell_changes(a->session);
	metric_set(metrics_get(a->metrics, M_helper_up, NULL, NULL), 1);
	take_audit(a, data);
	if (loop_timer_active(a->first_dial))
		loop_timer_start(a->first_dial, 0, 0);
	commands_on_helper(a->commands);
	agent_changed(a);
}

static void on_helper_down(void *arg, const char *why)
{
	struct agent *a = arg;

	(void)why;
	metric_set(metrics_get(a->metrics, M_helper_up, NULL, NULL), 0);
	commands_on_helper(a->commands);
	agent_changed(a);
}

static const struct helper_client_ops helper_ops = {.on_up = on_helper_up,
						    .on_down = on_helper_down};

int agent_open_helper(struct agent *a, struct helper_client **ret)
{
	return helper_client_open(a->loop,
				  &(struct helper_client_config){.socket = a->cfg->helper_socket,
								 .secret = a->cfg->helper_secret,
								 .agent_id = a->cfg->id},
				  &helper_ops, a, ret);
}

static void on_signal(void *arg, int signum)
{
	struct agent *a = arg;

	if (signum == SIGHUP) {
		LOG_INFO(FIELDS(.event = "reload", .agent_id = a->cfg->id), "SIGHUP: reloading");
		agent_reload(a);
		return;
	}
	LOG_INFO(FIELDS(.event = "stopping", .agent_id = a->cfg->id), "stopping on signal %d",
		 signum);
	program_notify("STOPPING=1");
	loop_stop(a->loop);
}

/* ---- what local_http.c asks ---- */

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

void agent_trim_soon(struct agent *a)
{
	loop_timer_start(a->trim, TRIM_AFTER_MS, 0);
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
	    {&a->telemetry_timer, agent_take_telemetry},
	    {&a->status_timer, agent_write_status},
	    {&a->daily, agent_check_expiry},
	    {&a->trim, on_trim},
	    {&a->watchdog, on_watchdog},
	    {&a->stop, on_stop},
	};
	size_t i;
	int r = 0;

	for (i = 0; i < ARRAY_LEN(timers) && r == 0; i++)
		r = loop_timer_new(a->loop, timers[i].cb, a, timers[i].t);
	return r;
}

static int open_parts(struct agent *a)
{
	struct commands_config cc = agent_commands_config(a);
	struct trust_config tc = agent_trust_config(a->cfg);
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
		r = agent_open_helper(a, &a->helper);
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
	audit_summary_init(&a->audit);
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
	agent_watch_files(a);
	loop_timer_start(a->first_dial, cfg->helper_secret ? HELPER_WAIT_MS : 0, 0);
	loop_timer_start(a->telemetry_timer, cfg->telemetry_interval_s * 1000,
			 cfg->telemetry_interval_s * 1000);
	loop_timer_start(a->daily, DAY_MS, DAY_MS);
	if (watchdog > 0)
		loop_timer_start(a->watchdog, watchdog, watchdog);
	agent_check_expiry(a);
	program_notify("READY=1");
	LOG_INFO(FIELDS(.event = "started", .agent_id = cfg->id), "gateway-agent %s",
		 program_version);
	*ret = a;
	return 0;
}

void agent_close(struct agent *a)
{
	struct loop_timer *timers[] = {a->first_dial,
				       a->commands_timer,
				       a->telemetry_timer,
				       a->status_timer,
				       a->daily,
				       a->watchdog,
				       a->trim,
				       a->stop};
	size_t i;

	a->stopping = true;
	if (a->session && a->commands && a->helper)
		agent_write_status(a);
	if (a->commands)
		commands_leave_local(a->commands);
	local_http_close(a->http);
	helper_client_close(a->helper);
	session_close(a->session);
	commands_free(a->commands);
	for (i = 0; i < ARRAY_LEN(timers); i++)
		loop_timer_close(timers[i]);
	agent_watch_close(a->watch);
	verbset_free(a->verbs);
	trust_free(a->trust);
	if (a->metrics)
		metrics_free(a->metrics);
	audit_summary_fini(&a->audit);
	free(a);
}
