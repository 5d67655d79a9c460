/* agent-bridge: see bridge.h. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/program.h"
#include "bridge.h"
#include "http/http_lws.h"
#include "lifecycle.h"
#include "loop/loop.h"
#include "tls_dates.h"
#include "verbs/verbs.h"

#define SPARE_DESCRIPTORS 1024

struct running {
	struct loop *loop;
	struct bridge *bridge;
	struct loop_timer *watchdog;
	struct loop_later *reload; /* many SIGHUPs at once are one; the sockets have their turn */
	bool stopping;
};

static void on_closed(void *arg)
{
	struct running *r = arg;

	loop_timer_close(TAKE(r->watchdog));
	loop_later_close(TAKE(r->reload));
	loop_stop(r->loop);
}

static void on_reload(void *arg)
{
	struct running *r = arg;

	lifecycle_reload(r->bridge);
}

static void on_signal(void *arg, int signum)
{
	struct running *r = arg;

	if (signum == SIGHUP) {
		if (r->reload)
			loop_later_ask(r->reload);
		return;
	}
	r->stopping = true;
	lifecycle_drain(r->bridge, on_closed, r);
}

static void on_watchdog(void *arg)
{
	struct running *r = arg;

	program_notify("WATCHDOG=1\nSTATUS=%zu agents, Redis %s", r->bridge->sessions.all,
		       store_is_up(r->bridge->store) ? "up" : "away");
}

/* libwebsockets keeps a table as long as the descriptor limit, and containers set that to a
 * thousand million. */
static int limit_descriptors(int64_t max_conn)
{
	struct rlimit l;
	rlim_t want = (rlim_t)max_conn + SPARE_DESCRIPTORS;

	if (getrlimit(RLIMIT_NOFILE, &l) < 0)
		return 0;
	if (l.rlim_cur < want)
		return 0; /* bridge.c makes do with it */
	l.rlim_cur = want;
	return setrlimit(RLIMIT_NOFILE, &l) < 0 ? -errno : 0;
}

static int start_failed(int error)
{
	LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-error)), "cannot start");
	return PROGRAM_SYSTEM;
}

static int start(struct running *r, struct bridge_settings *settings)
{
	int64_t watchdog_ms = program_watchdog_interval_ms();
	int error = limit_descriptors(settings->max_conn), rc;

	if (error == 0)
		error = loop_new(&r->loop);
	if (error < 0)
		return start_failed(error);
	rc = bridge_open(r->loop, settings, &r->bridge);
	if (rc != PROGRAM_OK)
		return rc;
	if ((error = loop_on_signal(r->loop, SIGTERM, on_signal, r)) < 0 ||
	    (error = loop_on_signal(r->loop, SIGINT, on_signal, r)) < 0 ||
	    (error = loop_on_signal(r->loop, SIGHUP, on_signal, r)) < 0 ||
	    (error = loop_later_new(r->loop, on_reload, r, &r->reload)) < 0 ||
	    (error = loop_timer_new(r->loop, on_watchdog, r, &r->watchdog)) < 0)
		return start_failed(error);
	if (watchdog_ms > 0)
		loop_timer_start(r->watchdog, watchdog_ms, watchdog_ms);
	program_notify("READY=1\nSTATUS=listening on %s", settings->bind);
	return PROGRAM_OK;
}

static int run(struct bridge_settings *settings)
{
	struct running r = {0};
	int rc = start(&r, settings);

	if (rc != PROGRAM_OK && r.bridge)
		lifecycle_drain(r.bridge, on_closed, &r);
	if (r.loop) {
		if (rc == PROGRAM_OK || r.bridge)
			loop_run(r.loop);
		loop_free(r.loop);
	}
	bridge_free(r.bridge);
	return rc;
}

/* The words begin with the path of the file that is at fault. */
static void check_tls_files(const struct bridge_settings *c, struct settings_faults *f)
{
	const struct {
		const char *name, *path;
	} files[] = {{"AGENT_BRIDGE_TLS_CERT", c->tls_cert},
		     {"AGENT_BRIDGE_TLS_KEY", c->tls_key},
		     {"AGENT_BRIDGE_TLS_CLIENT_CA", c->tls_client_ca},
		     {"AGENT_BRIDGE_TLS_CRL", c->tls_crl}};
	char why[256] = "";
	const struct http_lws_tls tls = {.cert_path = c->tls_cert,
					 .key_path = c->tls_key,
					 .client_ca_path = c->tls_client_ca,
					 .crl_path = c->tls_crl,
					 .msg = why,
					 .msg_cap = sizeof(why)};
	const char *name = files[0].name;

	if (!c->tls_cert)
		return;
	if (tls_dates_fault(c->tls_cert, why, sizeof(why)))
		settings_warning_add(f, name, "%s", why);
	if (http_tls_check(&tls) == 0)
		return;
	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		size_t n = files[i].path ? strlen(files[i].path) : 0;

		if (n && strncmp(why, files[i].path, n) == 0 && why[n] == ':')
			name = files[i].name;
	}
	settings_fault_add(f, name, "%s", why);
}

/* Faulty manifests do not keep a bridge from starting: it then knows secrets by name only. */
static void check_files(const void *cfg, struct settings_faults *f)
{
	const struct bridge_settings *c = cfg;

	check_tls_files(c, f);
	verbs_check(c->verbs_dir, "AGENT_BRIDGE_VERBS_DIR", true, f);
}

int main(int argc, char **argv)
{
	struct bridge_settings settings = {0};
	struct settings_spec spec = bridge_settings_spec;
	char **words;

	spec.check_files = check_files;
	int rc = program_start(&spec, argc, argv, &settings, &words);

	if (rc < 0) {
		program_harden();
		if (settings.enabled) {
			rc = run(&settings);
			if (rc == PROGRAM_OK)
				LOG_INFO(FIELDS(.event = "stopped"), "stopped");
		} else {
			LOG_INFO(FIELDS(.event = "disabled"), "AGENT_BRIDGE_ENABLED is false");
			program_notify("READY=1\nSTATUS=disabled"); /* or systemd calls it failed */
			rc = PROGRAM_OK;
		}
	}
	settings_free(&bridge_settings_spec, &settings);
	if (loop_resolver_hangs()) {
		(void)fflush(NULL);
		_exit(rc);
	}
	return rc;
}
