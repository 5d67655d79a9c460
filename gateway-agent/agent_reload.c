/* Settings and TLS material taken over while the agent runs: SIGHUP, or a file changed. Everything
 * that can fail is made first; a bad file changes nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent_private.h"

extern char **environ;

struct trust_config agent_trust_config(const struct agent_settings *s)
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
	struct commands_config cc = agent_commands_config(a);
	struct helper_client *h = NULL, *was = a->helper;
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
	if (anew)
		commands_forget_unstarted(a->commands);
	else
		session_tell_changes(a->session);
	if (helper && agent_open_helper(a, &h) == 0) {
		a->helper = h;
		metric_set(metrics_get(a->metrics, M_helper_up, NULL, NULL), 0);
		helper_client_answer_lost(was); /* asked again once the new one is up */
		helper_client_close(was);
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
	agent_watch_files(a); /* others may be named now */
	agent_check_expiry(a);
	agent_changed(a);
}

void agent_reload(void *arg)
{
	struct agent *a = arg;
	struct agent_settings fresh = {0};
	struct settings_faults faults = {0};
	struct trust_config tc;
	struct trust *t = NULL;
	char why[512];

	if (a->stopping)
		return;
	agent_trim_soon(a);
	if (settings_load(&agent_settings_spec, environ, &fresh, &faults) < 0) {
		reload_failed(a, faults.n ? faults.item[0].setting : NULL,
			      faults.n ? faults.item[0].text : "out of memory");
	} else {
		tc = agent_trust_config(&fresh);
		if (trust_load(&tc, &t, why, sizeof why) < 0)
			reload_failed(a, NULL, why);
		else
			adopt(a, &fresh, t);
	}
	settings_faults_fini(&faults);
	settings_free(&agent_settings_spec, &fresh);
}
