#include "lifecycle.h"

#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/program.h"
#include "bridge.h"
#include "bridge_metrics.h"
#include "dispatch.h"
#include "endpoints.h"
#include "loop/loop.h"
#include "tls_dates.h"
#include "tls_watch.h"

#define STEP_MS	       50
#define SPACING_MAX_MS 250   /* few agents need not wait for the whole DRAIN_S */
#define LINGER_MS      5000  /* for close frames to be answered */
#define QUEUE_MS       15000 /* most for close frames to leave, should peers be slow to answer */
#define FLUSH_MS       5000  /* for Redis to take what waits */

extern char **environ;

/* ---- drain ---- */

static void close_all(struct bridge *b)
{
	if (b->router)
		router_close(TAKE(b->router));
	if (b->dispatch)
		dispatch_close(TAKE(b->dispatch));
	if (b->store)
		store_close(TAKE(b->store));
	denylist_close(TAKE(b->denylist));
	tls_watch_close(TAKE(b->tls_watch));
	loop_timer_close(TAKE(b->tick));
	loop_timer_close(TAKE(b->beat));
	loop_timer_close(TAKE(b->drain_timer));
	b->phase = BRIDGE_CLOSED;
	if (b->on_closed)
		b->on_closed(b->on_closed_arg);
}

static void on_store_drained(void *arg)
{
	close_all(arg);
}

static void on_sockets_gone(void *arg)
{
	struct bridge *b = arg;

	bridge_send_events(b);
	if (b->store)
		store_drain(b->store, FLUSH_MS, on_store_drained, b);
	else
		close_all(b);
}

/* Cuts the sockets left, then waits for Redis to answer what was sent. */
static void flush(struct bridge *b)
{
	b->phase = BRIDGE_FLUSHING;
	if (b->drain_timer)
		loop_timer_stop(b->drain_timer);
	http_server_close(TAKE(b->internal));
	if (b->ws)
		ws_server_close(TAKE(b->ws), on_sockets_gone, b);
	else
		on_sockets_gone(b);
}

/* When the n-th of all sockets is to be closed, in ms from the start of the drain. */
static int64_t due_ms(const struct bridge *b, size_t n)
{
	int64_t spacing = b->settings->drain_s * 1000 / (int64_t)(b->drain_total + 1);

	return (int64_t)n * (spacing > SPACING_MAX_MS ? SPACING_MAX_MS : spacing);
}

/* Whoever reads a large page slowly gets it whole, within DRAIN_S. */
static bool is_answering(const struct bridge *b)
{
	return (b->ws && ws_server_answering(b->ws)) ||
	       (b->internal && http_server_answering(b->internal));
}

static void on_drain_step(void *arg)
{
	struct bridge *b = arg;
	int64_t at_ms = loop_now_ms(b->loop) - b->drain_from_ms, due;
	struct session *s = b->sessions.first;
	bool all_told;

	while (s && b->drain_closed < b->drain_total && due_ms(b, b->drain_closed) <= at_ms) {
		struct session *next = s->next;

		if (session_is_open(s)) {
			session_close(s, SESSION_CLOSE_DRAINING, "draining");
			b->drain_closed++;
		}
		s = next;
	}
	/* Some left by themselves meanwhile, or came through while we began. */
	all_told = true;
	for (s = b->sessions.first; s && all_told; s = s->next)
		all_told = !session_is_open(s);
	if (!all_told && b->drain_closed >= b->drain_total)
		b->drain_total++;
	due = due_ms(b, b->drain_closed);
	if (b->ws && ws_server_close_queue(b->ws) > 0 && at_ms < due + QUEUE_MS)
		b->drain_told_ms = at_ms;
	if (due < b->drain_told_ms)
		due = b->drain_told_ms;
	if (is_answering(b) && at_ms < b->answers_until_ms)
		return;
	if (all_told && (b->sessions.all == 0 || at_ms > due + LINGER_MS))
		flush(b);
}

static void begin(struct bridge *b)
{
	b->phase = BRIDGE_DRAINING;
	b->drain_from_ms = loop_now_ms(b->loop);
	b->drain_total = b->sessions.all;
	b->answers_until_ms = b->settings->drain_s * 1000;
	metric_set(metrics_get(b->metrics, M_draining, NULL, NULL), 1);
	program_notify("STOPPING=1\nSTATUS=draining %zu agents", b->drain_total);
	LOG_INFO(FIELDS(.event = "draining", .has_count = true, .count = (int64_t)b->drain_total),
		 "draining %zu agents", b->drain_total);
	if (loop_timer_new(b->loop, on_drain_step, b, &b->drain_timer) < 0) {
		flush(b);
		return;
	}
	loop_timer_start(b->drain_timer, 0, STEP_MS);
}

static void hasten(struct bridge *b)
{
	struct session *next;

	if (b->phase != BRIDGE_DRAINING)
		return;
	LOG_INFO(FIELDS(.event = "drain_hastened"), "asked to stop again: closing all at once");
	b->answers_until_ms = 0;
	for (struct session *s = b->sessions.first; s; s = next) {
		next = s->next;
		session_close(s, SESSION_CLOSE_DRAINING, "draining");
	}
}

void lifecycle_drain(struct bridge *b, void (*done)(void *arg), void *arg)
{
	b->on_closed = done;
	b->on_closed_arg = arg;
	if (b->phase == BRIDGE_OPEN)
		begin(b);
	else
		hasten(b);
}

/* ---- reload ---- */

static void on_ignored(const char *name)
{
	LOG_WARN(FIELDS(.event = "reload_ignored", .setting = name),
		 "%s changed, which needs a restart", name);
}

/* A file cut short or emptied while it is written must not open the door. */
static int check_guards_stay(const struct bridge_settings *now, const struct bridge_settings *fresh,
			     struct settings_faults *faults)
{
	const struct {
		const char *name, *now, *fresh;
	} guards[] = {
	    {"AGENT_BRIDGE_SHARED_SECRET", now->shared_secret, fresh->shared_secret},
	    {"AGENT_BRIDGE_ADMIN_TOKEN", now->admin_token, fresh->admin_token},
	    {"AGENT_BRIDGE_ALLOWED_AGENT_IDS", now->allowed_agent_ids, fresh->allowed_agent_ids},
	    {"AGENT_BRIDGE_TRUSTED_PROXIES", now->trusted_proxies, fresh->trusted_proxies},
	    {"AGENT_BRIDGE_CLIENT_DN_POLICY", now->client_dn_policy, fresh->client_dn_policy},
	    {"AGENT_BRIDGE_MIN_AGENT_VERSION", now->min_agent_version, fresh->min_agent_version},
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_LEN(guards); i++) {
		if (!guards[i].now || guards[i].fresh)
			continue;
		settings_fault_add(faults, guards[i].name,
				   "is gone: a reload may change it, only a restart takes it away");
		r = -EINVAL;
	}
	return r;
}

static bool reload_settings(struct bridge *b)
{
	struct settings_faults faults = {0};
	struct bridge_settings fresh;
	int r = settings_load(&bridge_settings_spec, environ, &fresh, &faults);

	if (r == 0)
		r = check_guards_stay(b->settings, &fresh, &faults);
	for (size_t i = 0; i < faults.n; i++)
		LOG_ERROR(FIELDS(.event = "reload_failed", .setting = faults.item[i].setting),
			  "%s %s", faults.item[i].setting, faults.item[i].text);
	if (r == 0 &&
	    settings_apply_reload(&bridge_settings_spec, b->settings, &fresh, on_ignored) > 0)
		bridge_configure(b);
	settings_free(&bridge_settings_spec, &fresh);
	settings_faults_fini(&faults);
	return r == 0;
}

bool lifecycle_reload_tls(struct bridge *b)
{
	char why[256];

	if (!b->settings->tls_cert || !b->ws)
		return true;
	if (ws_server_reload_tls(b->ws, why, sizeof(why)) < 0) {
		LOG_ERROR(FIELDS(.event = "tls_refused", .error = why),
			  "the TLS files are refused, the old ones stay in use");
		return false;
	}
	LOG_INFO(FIELDS(.event = "tls_reloaded"), "certificate, key, CAs and CRLs were read anew");
	tls_dates_warn(b->settings->tls_cert);
	return true;
}

void lifecycle_reload(struct bridge *b)
{
	bool ok;

	if (b->phase != BRIDGE_OPEN)
		return;
	program_notify("RELOADING=1");
	ok = reload_settings(b);
	ok = lifecycle_reload_tls(b) && ok;
	if (b->dispatch)
		ok = dispatch_reload(b->dispatch) && ok;
	metric_add(metrics_get(b->metrics, M_reloads, ok ? "ok" : "failed", NULL), 1);
	if (ok)
		LOG_INFO(FIELDS(.event = "reloaded"), "settings were read anew");
	program_notify("READY=1");
}
