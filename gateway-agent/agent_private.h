/* What the files agent*.c share: the agent itself. Nobody else looks in. */
#pragma once

#include "agent.h"
#include "agent_metrics.h"
#include "audit_summary.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/program.h"
#include "commands.h"
#include "helper_client.h"
#include "local_http.h"
#include "loop/loop.h"
#include "session.h"
#include "status.h"
#include "telemetry.h"
#include "trust.h"
#include "verbset.h"

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
	    *trim, *watchdog, *stop;
	struct agent_watch *watch;
	int64_t commands_at_ms; /* 0: no tick planned */
	struct telemetry_cpu cpu;
	char telemetry_id[UUID_LEN + 16];
	bool telemetry_asked, stopping, state_dir_bad, no_host_figures;
	int64_t started_wall_ms, started_boot_ms, last_audit_ms;
	int64_t warned[3]; /* days of the last expiry warning: client, bundle, backend */
	struct audit_summary audit;
};

/* agent.c */
struct commands_config agent_commands_config(const struct agent *a);
int agent_open_helper(struct agent *a, struct helper_client **ret) MUST_CHECK;
void agent_trim_soon(struct agent *a); /* gives back what only happens now and then */

/* agent_report.c: what the agent tells of itself and its host */
void agent_check_expiry(void *agent);
void agent_state_path(const struct agent *a, const char *name, char *out, size_t cap);
void agent_write_state(struct agent *a, const char *name, const char *text, size_t n);
void agent_write_status(void *agent);
void agent_changed(void *agent); /* status.json is written anew soon */
void agent_take_telemetry(void *agent);

/* agent_reload.c: settings and TLS material taken over while it runs */
struct trust_config agent_trust_config(const struct agent_settings *s);
void agent_reload(void *agent);

/* agent_watch.c: a reload by itself when a file that was read changes */
void agent_watch_files(struct agent *a); /* those that the settings name now */
void agent_watch_close(struct agent_watch *w);
