#include "endpoints.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/jsonw.h"
#include "base/program.h"
#include "bridge.h"
#include "bridge_metrics.h"
#include "order.h"
#include "ratelimit.h"

#define ANSWER_MAX     (64u * 1024 * 1024)
#define PAGE_DEFAULT   100
#define PAGE_MAX       1000
#define RATE_AGENTS    16384
#define FULL_RETRY_S   5
#define CANCEL_RETRY_S 60 /* when redis/post.lua forgets whose cancel was asked */

struct endpoints {
	struct bridge *bridge;
	struct ratelimit *command_rate;
	uint64_t evicted; /* frames that left the rings for the budget, as far as counted */
};

/* ---- small helpers ---- */

static void respond(struct http_response *r, int status, struct jsonw *w, struct buf *out)
{
	if (jsonw_finish(w) == 0)
		http_respond_json(r, status, out);
	else
		http_respond_error(r, 500, "internal", "the answer could not be built");
	buf_fini(out);
}

static void begin(struct jsonw *w, struct buf *out)
{
	buf_init(out, ANSWER_MAX);
	jsonw_init(w, out);
	jsonw_obj(w, NULL);
}

static void write_time(struct jsonw *w, const char *key, int64_t wall_ms)
{
	char text[CLOCK_RFC3339_LEN + 1];

	clock_format_rfc3339(wall_ms, text);
	jsonw_str(w, key, text);
}

/* A whole number within [min, max] from the query; absent: def. false: answered with 400. */
static bool query_int(const struct http_request *q, struct http_response *r, const char *name,
		      int64_t min, int64_t max, int64_t def, int64_t *ret)
{
	char text[24];
	char *end;

	*ret = def;
	if (!http_query(q, name, text, sizeof(text)))
		return true;
	errno = 0;
	*ret = strtoll(text, &end, 10);
	if (*text && !*end && errno == 0 && *ret >= min && *ret <= max)
		return true;
	http_respond_error(r, 400, "bad_query", "%s must be a number from %lld to %lld", name,
			   (long long)min, (long long)max);
	return false;
}

/* The agent's open session here, or NULL and answered with 404. */
static struct session *session_of(struct endpoints *e, const struct http_request *q,
				  struct http_response *r)
{
	struct session *s = sessions_by_agent(&e->bridge->sessions, q->param[0]);

	if (s && session_is_open(s))
		return s;
	http_respond_error(r, 404, "not_connected", "this agent is not connected to this bridge");
	return NULL;
}

/* ---- health ---- */

static void get_healthz(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	struct bridge *b = ((struct endpoints *)arg)->bridge;
	struct jsonw w;
	struct buf out;

	begin(&w, &out);
	jsonw_str(&w, "status", "ok");
	jsonw_int(&w, "uptime_s", (clock_boot_ms() - b->started_ms) / 1000);
	jsonw_uint(&w, "connections", b->sessions.all);
	jsonw_str(&w, "version", program_version);
	jsonw_str(&w, "bridge_id", b->id);
	jsonw_obj_end(&w);
	respond(r, 200, &w, &out);
}

static void get_readyz(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	struct bridge *b = ((struct endpoints *)arg)->bridge;
	bool up = store_is_up(b->store), draining = b->phase != BRIDGE_OPEN,
	     ready = up && !draining;
	char text[256];
	struct jsonw w;
	struct buf out;

	begin(&w, &out);
	jsonw_str(&w, "status", ready ? "ready" : "not_ready");
	jsonw_arr(&w, "reasons");
	if (draining)
		jsonw_str(&w, NULL, "draining");
	if (!up) {
		snprintf(text, sizeof(text), "redis: %s", store_down_reason(b->store));
		jsonw_str(&w, NULL, text);
	}
	if (up && b->pressed)
		jsonw_str(&w, NULL, "redis: behind, sockets are paused");
	jsonw_arr_end(&w);
	jsonw_obj_end(&w);
	respond(r, ready ? 200 : 503, &w, &out);
}

static void get_health(void *arg UNUSED, const struct http_request *q UNUSED,
		       struct http_response *r)
{
	struct jsonw w;
	struct buf out;

	begin(&w, &out);
	jsonw_str(&w, "status", "enabled");
	jsonw_obj_end(&w);
	respond(r, 200, &w, &out);
}

/* ---- agents ---- */

static void write_agent(struct endpoints *e, struct jsonw *w, const struct session *s)
{
	struct dispatch_counts n = dispatch_counts_of(e->bridge->dispatch, s->sid);

	jsonw_str(w, "agent_id", s->agent_id);
	jsonw_str(w, "conn_id", s->conn_id);
	jsonw_uint(w, "epoch", s->epoch);
	write_time(w, "connected_at", s->connected_ms);
	write_time(w, "last_seen", s->seen_ms);
	jsonw_str(w, "ip", s->ip);
	jsonw_str(w, "version", s->version);
	jsonw_str(w, "site", s->site);
	jsonw_uint(w, "in_flight", n.in_flight);
	jsonw_uint(w, "waiting", n.waiting);
}

static void get_agents(void *arg, const struct http_request *q, struct http_response *r)
{
	struct endpoints *e = arg;
	struct session **page;
	char after[AGENT_ID_MAX + 1] = "";
	struct jsonw w;
	struct buf out;
	int64_t limit;
	size_t n;
	bool more;

	if (!query_int(q, r, "limit", 1, PAGE_MAX, PAGE_DEFAULT, &limit))
		return;
	/* One that is cut: no id is longer, so the same ones stand behind it. */
	(void)!http_query(q, "after", after, sizeof(after));
	page = calloc((size_t)limit + 1, sizeof(struct session *));
	if (!page) {
		http_respond_error(r, 500, "internal", "out of memory");
		return;
	}
	n = sessions_page(&e->bridge->sessions, after, page, (size_t)limit, &more);
	begin(&w, &out);
	jsonw_arr(&w, "agents");
	for (size_t i = 0; i < n; i++) {
		jsonw_obj(&w, NULL);
		write_agent(e, &w, page[i]);
		jsonw_obj_end(&w);
	}
	jsonw_arr_end(&w);
	jsonw_str(&w, "next", more ? page[n - 1]->agent_id : NULL);
	jsonw_obj_end(&w);
	free(page);
	respond(r, 200, &w, &out);
}

static void get_agent(void *arg, const struct http_request *q, struct http_response *r)
{
	struct session *s = session_of(arg, q, r);
	struct jsonw w;
	struct buf out;

	if (!s)
		return;
	begin(&w, &out);
	write_agent(arg, &w, s);
	jsonw_obj_end(&w);
	respond(r, 200, &w, &out);
}

static void get_telemetry(void *arg, const struct http_request *q, struct http_response *r)
{
	struct session *s;
	struct jsonw w;
	struct buf out;
	int64_t limit;
	size_t skip;

	if (!query_int(q, r, "limit", 1, 100000, 100000, &limit))
		return;
	s = session_of(arg, q, r);
	if (!s)
		return;
	skip = s->ring.n > (size_t)limit ? s->ring.n - (size_t)limit : 0;
	begin(&w, &out);
	jsonw_str(&w, "agent_id", s->agent_id);
	jsonw_arr(&w, "frames");
	for (struct ring_frame *f = s->ring.oldest; f; f = f->next)
		if (skip)
			skip--;
		else
			jsonw_raw(&w, NULL, f->bytes, f->n);
	jsonw_arr_end(&w);
	jsonw_obj_end(&w);
	respond(r, 200, &w, &out);
}

static void respond_raw(struct http_response *r, const char *json, size_t n)
{
	struct buf out;

	buf_init(&out, n);
	if (buf_append(&out, json, n) == 0)
		http_respond_json(r, 200, &out);
	else
		http_respond_error(r, 500, "internal", "out of memory");
	buf_fini(&out);
}

static void get_latest(void *arg, const struct http_request *q, struct http_response *r)
{
	struct session *s = session_of(arg, q, r);

	if (!s)
		return;
	if (s->ring.newest)
		respond_raw(r, s->ring.newest->bytes, s->ring.newest->n);
	else
		http_respond_error(r, 404, "no_telemetry", "this agent sent no telemetry yet");
}

static void get_last_result(void *arg, const struct http_request *q, struct http_response *r)
{
	struct session *s = session_of(arg, q, r);

	if (!s)
		return;
	if (s->result.newest)
		respond_raw(r, s->result.newest->bytes, s->result.newest->n);
	else
		http_respond_error(r, 404, "no_result",
				   "this agent sent no result, or it is no longer in memory");
}

/* ---- commands ---- */

struct waiting_post {
	struct http_response *response;
	struct endpoints *endpoints;
	bool cancel;
	char correlation_id[CORRELATION_ID_MAX + 1];
};

static void count_post(struct endpoints *e, const char *code)
{
	metric_add(metrics_get(e->bridge->metrics, M_http_commands, code, NULL), 1);
}

static void respond_queued(struct http_response *r, const char *correlation_id)
{
	struct jsonw w;
	struct buf out;

	begin(&w, &out);
	jsonw_bool(&w, "queued", true);
	jsonw_str(&w, "correlation_id", correlation_id);
	jsonw_obj_end(&w);
	respond(r, 202, &w, &out);
}

static void respond_later(struct http_response *r, int status, int retry_after_s, const char *code,
			  const char *msg)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", retry_after_s);
	http_respond_header(r, "Retry-After", text);
	http_respond_error(r, status, code, "%s", msg);
}

static void on_posted(void *arg, enum store_command_result result)
{
	struct waiting_post *p = arg;
	struct http_response *r = p->response;

	switch (result) {
	case STORE_COMMAND_QUEUED:
		count_post(p->endpoints, "202");
		respond_queued(r, p->correlation_id);
		break;
	case STORE_COMMAND_CONFLICT:
		count_post(p->endpoints, "409");
		http_respond_error(r, 409, "conflict",
				   "this correlation_id was used with other content");
		break;
	case STORE_COMMAND_OFFLINE:
		count_post(p->endpoints, "404");
		http_respond_error(r, 404, "not_connected", "this agent is connected to no bridge");
		break;
	case STORE_COMMAND_FULL:
		count_post(p->endpoints, "429");
		if (p->cancel)
			respond_later(r, 429, CANCEL_RETRY_S, "queue_full",
				      "too many cancels for this agent within a minute");
		else
			respond_later(r, 429, FULL_RETRY_S, "queue_full",
				      "too many commands wait for this agent");
		break;
	case STORE_COMMAND_UNAVAILABLE:
		count_post(p->endpoints, "503");
		respond_later(r, 503, 2, "redis_away", "Redis does not take the command now");
		break;
	}
	free(p);
}

static void post(struct endpoints *e, const struct order *o, const char *op, bool connected,
		 struct http_response *r)
{
	struct store_command c = {
	    .agent_id = o->agent_id,
	    .correlation_id = o->correlation_id,
	    .command = o->command,
	    .params_json = o->params,
	    .op = op,
	    .issued_by = o->issued_by[0] ? o->issued_by : NULL,
	    .ttl_s = o->ttl_s,
	    .require_connected = connected,
	    .queue_max = e->bridge->settings->queue_max,
	};
	struct waiting_post *p = calloc(1, sizeof(*p));

	if (!p) {
		http_respond_error(r, 500, "internal", "out of memory");
		return;
	}
	p->response = r;
	p->endpoints = e;
	p->cancel = !strcmp(op, "cancel");
	memcpy(p->correlation_id, o->correlation_id, sizeof(p->correlation_id));
	if (store_post_command(e->bridge->store, &c, on_posted, p) < 0)
		on_posted(p, STORE_COMMAND_UNAVAILABLE);
}

static void post_command(struct endpoints *e, const struct http_request *q, struct http_response *r,
			 bool connected)
{
	struct order o;
	const char *fault = order_read(q->param[0], q->body, &o);
	int wait_s = 0;

	if (!fault)
		wait_s = ratelimit_take(e->command_rate, o.agent_id, strlen(o.agent_id),
					e->bridge->settings->command_rate, clock_boot_ms());
	if (fault) {
		count_post(e, "400");
		http_respond_error(r, 400, "bad_command", "%s", fault);
	} else if (wait_s) {
		count_post(e, "429");
		respond_later(r, 429, wait_s, "rate_limited", "too many commands for this agent");
	} else {
		post(e, &o, "run", connected, r);
	}
	order_fini(&o);
}

static void post_to_connected(void *arg, const struct http_request *q, struct http_response *r)
{
	post_command(arg, q, r, true);
}

static void post_to_any(void *arg, const struct http_request *q, struct http_response *r)
{
	post_command(arg, q, r, false);
}

static void delete_command(void *arg, const struct http_request *q, struct http_response *r)
{
	struct order o = {0};

	if (!ident_is_agent_id(q->param[0], strlen(q->param[0])) ||
	    !ident_is_correlation_id(q->param[1], strlen(q->param[1]))) {
		http_respond_error(r, 400, "bad_command",
				   "the path names no agent id and correlation_id");
		return;
	}
	memcpy(o.agent_id, q->param[0], strlen(q->param[0]) + 1);
	memcpy(o.correlation_id, q->param[1], strlen(q->param[1]) + 1);
	post(arg, &o, "cancel", false, r);
}

/* ---- metrics ---- */

static void update_gauges(struct endpoints *e)
{
	struct bridge *b = e->bridge;
	uint64_t paused = 0;

	for (const struct session *s = b->sessions.first; s; s = s->next)
		paused += s->pause != 0;
	metric_set(metrics_get(b->metrics, M_active_sessions, NULL, NULL), (double)b->sessions.all);
	metric_set(metrics_get(b->metrics, M_paused_sockets, NULL, NULL), (double)paused);
	metric_set(metrics_get(b->metrics, M_ring_bytes, NULL, NULL),
		   (double)b->sessions.rings.bytes);
	metric_add(metrics_get(b->metrics, M_frames_dropped, "ring_budget", NULL),
		   b->sessions.rings.evicted - e->evicted);
	e->evicted = b->sessions.rings.evicted;
	metric_set(metrics_get(b->metrics, M_nonces, NULL, NULL),
		   (double)handshake_nonces(b->handshake));
	metric_set(metrics_get(b->metrics, M_commands_waiting_ledger, NULL, NULL),
		   (double)dispatch_waiting_for_ledger(b->dispatch));
}

static void get_metrics(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	struct endpoints *e = arg;
	struct buf out;

	update_gauges(e);
	buf_init(&out, ANSWER_MAX);
	if (metrics_render(e->bridge->metrics, &out) == 0)
		http_respond_text(r, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
	else
		http_respond_error(r, 500, "internal", "the metrics could not be written");
	buf_fini(&out);
}

/* ---- the table ---- */

#define AGENT "/internal/agent/agents/:id"
static const struct http_route routes[] = {
    /* the first one is all that the agents' listener has beside INTERNAL_BIND */
    {HTTP_GET, "/agent/_health", HTTP_OPEN, get_health},
    {HTTP_GET, "/internal/agent/_healthz", HTTP_OPEN, get_healthz},
    {HTTP_GET, "/internal/agent/_readyz", HTTP_OPEN, get_readyz},
    {HTTP_GET, "/internal/agent/agents", HTTP_INTERNAL, get_agents},
    {HTTP_GET, AGENT, HTTP_INTERNAL, get_agent},
    {HTTP_GET, AGENT "/telemetry", HTTP_INTERNAL, get_telemetry},
    {HTTP_GET, AGENT "/last-result", HTTP_INTERNAL, get_last_result},
    {HTTP_POST, AGENT "/commands", HTTP_INTERNAL, post_to_connected},
    {HTTP_DELETE, AGENT "/commands/:correlation_id", HTTP_INTERNAL, delete_command},
    {HTTP_GET, "/agent/telemetry/:id/latest", HTTP_INTERNAL, get_latest},
    {HTTP_POST, "/agent/commands/:id", HTTP_INTERNAL, post_to_any},
    {HTTP_GET, "/metrics", HTTP_INTERNAL, get_metrics},
};

struct http_table endpoints_table(struct endpoints *e, bool outer)
{
	return (struct http_table){
	    .route = routes,
	    .n = outer ? 1 : ARRAY_LEN(routes),
	    .arg = e,
	    .token = e->bridge->settings->admin_token,
	    .trusted_proxies = handshake_proxies(e->bridge->handshake),
	};
}

int endpoints_new(struct bridge *b, struct endpoints **ret)
{
	struct endpoints *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->bridge = b;
	r = ratelimit_new(RATE_AGENTS, &e->command_rate);
	if (r < 0) {
		free(e);
		return r;
	}
	*ret = e;
	return 0;
}

void endpoints_free(struct endpoints *e)
{
	if (!e)
		return;
	ratelimit_free(e->command_rate);
	free(e);
}
