/* agent-bridge: see bridge.h. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/program.h"
#include "bridge.h"
#include "lifecycle.h"
#include "loop/loop.h"

#define SPARE_DESCRIPTORS 1024

struct running {
	struct loop *loop;
	struct bridge *bridge;
	struct loop_timer *watchdog;
	bool stopping;
};

static void on_closed(void *arg)
{
	struct running *r = arg;

	loop_timer_close(TAKE(r->watchdog));
	loop_stop(r->loop);
}

static void on_signal(void *arg, int signum)
{
	struct running *r = arg;

	if (signum == SIGHUP) {
		lifecycle_reload(r->bridge);
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
	if (l.rlim_cur < want) {
		LOG_WARN(FIELDS(.event = "descriptor_limit", .has_count = true,
				.count = (int64_t)l.rlim_cur),
			 "only %llu files may be open: fewer than AGENT_BRIDGE_MAX_CONN needs",
			 (unsigned long long)l.rlim_cur);
		return 0;
	}
	l.rlim_cur = want;
	return setrlimit(RLIMIT_NOFILE, &l);
}

static int start(struct running *r, struct bridge_settings *settings)
{
	int64_t watchdog_ms = program_watchdog_interval_ms();
	int rc;

	if (limit_descriptors(settings->max_conn) < 0 || loop_new(&r->loop) < 0)
		return PROGRAM_SYSTEM;
	rc = bridge_open(r->loop, settings, &r->bridge);
	if (rc != PROGRAM_OK)
		return rc;
	if (loop_on_signal(r->loop, SIGTERM, on_signal, r) < 0 ||
	    loop_on_signal(r->loop, SIGINT, on_signal, r) < 0 ||
	    loop_on_signal(r->loop, SIGHUP, on_signal, r) < 0 ||
	    loop_timer_new(r->loop, on_watchdog, r, &r->watchdog) < 0)
		return PROGRAM_SYSTEM;
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

int main(int argc, char **argv)
{
	struct bridge_settings settings = {0};
	char **words;
	int rc = program_start(&bridge_settings_spec, argc, argv, &settings, &words);

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
