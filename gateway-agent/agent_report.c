/* What the agent tells of itself and its host: expiry warnings, status.json, TELEMETRY, metrics. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent_private.h"
#include "base/file.h"

#define HELPER_DATA_MS	5000 /* get_monitoring_data */
#define CERT_WARN_DAYS	30
#define DAY_MS		86400000
#define STATUS_DELAY_MS 100
#define FRAME_AROUND	512 /* TELEMETRY without its metrics */

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

void agent_check_expiry(void *arg)
{
	struct agent *a = arg;
	int64_t cert, bundle, backend;

	cert_days(a, &cert, &bundle, &backend);
	warn_expiry(a, "client", "VIW_AGENT_CERT_PATH", cert, &a->warned[0]);
	warn_expiry(a, "trust_bundle", "VIW_AGENT_TRUST_BUNDLE", bundle, &a->warned[1]);
	warn_expiry(a, "backend", NULL, backend, &a->warned[2]);
}

/* ---- status.json ---- */

void agent_state_path(const struct agent *a, const char *name, char *out, size_t cap)
{
	(void)snprintf(out, cap, "%s/%s", a->cfg->state_dir, name);
}

void agent_write_state(struct agent *a, const char *name, const char *text, size_t n)
{
	char path[512];
	int r;

	agent_state_path(a, name, path, sizeof path);
	r = file_write_atomic(path, text, n, 0644);
	if (r < 0 && !a->state_dir_bad)
		LOG_WARN(FIELDS(.event = "state_dir", .setting = "VIW_AGENT_STATE_DIR",
				.error = strerror(-r)),
			 "%s cannot be written; `gateway-agent status` will show nothing", path);
	a->state_dir_bad = r < 0;
}

int agent_status_json(struct agent *a, struct buf *out)
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

void agent_write_status(void *arg)
{
	struct agent *a = arg;
	struct buf b;

	buf_init(&b, 65536);
	if (agent_status_json(a, &b) == 0)
		agent_write_state(a, "status.json", b.data, b.len);
	buf_fini(&b);
}

void agent_changed(void *arg)
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
	struct buf metrics;
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
	self.tls = trust_told(a->trust);
	metric_set(metrics_get(a->metrics, M_commands_held, NULL, NULL), n.held);
	metric_set(metrics_get(a->metrics, M_results_waiting, NULL, NULL), n.results);
	buf_init(&metrics, v.max_frame_bytes - FRAME_AROUND);
	if (telemetry_compose(&telemetry_host, helper_data, a->cfg->services, &self, &a->cpu,
			      &metrics) == 0)
		session_telemetry(a->session, (struct span){metrics.data, metrics.len});
	else
		LOG_ERROR(FIELDS(.event = "telemetry_failed", .agent_id = a->cfg->id),
			  "the figures could not be put together");
	buf_fini(&metrics);
	agent_changed(a);
}

static void say_no_host_figures(struct agent *a, const struct wire_helper_reply *reply)
{
	char code[65] = "";

	(void)!span_copy(reply->error.code, code, sizeof code);
	if (!a->no_host_figures)
		LOG_WARN(FIELDS(.event = "no_host_figures", .agent_id = a->cfg->id, .error = code),
			 "host-helper refuses get_monitoring_data, so TELEMETRY holds what this "
			 "process sees itself: " SPAN_FMT,
			 SPAN_ARG(reply->error.msg));
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
	else if (reply)
		say_no_host_figures(a, reply);
	a->no_host_figures = reply && !data.p;
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

void agent_take_telemetry(void *arg)
{
	struct agent *a = arg;

	if (a->telemetry_asked)
		return;
	if (helper_client_is_up(a->helper) && ask_monitoring_data(a) == 0)
		a->telemetry_asked = true;
	else
		compose_telemetry(a, (struct span){0});
}

int agent_metrics_text(struct agent *a, struct buf *out)
{
	struct commands_counts n = commands_counts_of(a->commands);

	metric_set(metrics_get(a->metrics, M_commands_held, NULL, NULL), n.held);
	metric_set(metrics_get(a->metrics, M_results_waiting, NULL, NULL), n.results);
	return metrics_render(a->metrics, out);
}
