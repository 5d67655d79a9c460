/* The inbound feature. See local_http.h. */
#include "local_http.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "base/program.h"
#include "http/http.h"

#define TTL_DEFAULT_S 60
#define TTL_MAX_S     3600

struct local_http {
	struct agent *agent;
	struct http_server *server;
	struct http_table table;
	int64_t started_ms;
	const char *agent_id;
};

static void respond(struct http_response *r, int err, int status, const struct buf *b)
{
	if (err < 0)
		http_respond_error(r, 500, "internal", "out of memory");
	else
		http_respond_json(r, status, b);
}

static void on_health(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	struct jsonw w;
	struct buf b;

	(void)q;
	buf_init(&b, 4096);
	jsonw_init(&w, &b);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "status", "ok");
	jsonw_uint(&w, "uptime_s", (uint64_t)(clock_boot_ms() - h->started_ms) / 1000);
	jsonw_str(&w, "version", program_version);
	jsonw_str(&w, "agent_id", h->agent_id);
	jsonw_bool(&w, "connected", agent_is_connected(h->agent));
	jsonw_obj_end(&w);
	respond(r, jsonw_finish(&w), 200, &b);
	buf_fini(&b);
}

static void on_ready(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	bool up = agent_is_connected(h->agent);
	struct jsonw w;
	struct buf b;

	(void)q;
	buf_init(&b, 1024);
	jsonw_init(&w, &b);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "status", up ? "ready" : "not_ready");
	jsonw_arr(&w, "reasons");
	if (!up)
		jsonw_str(&w, NULL, "no bridge has welcomed this agent");
	jsonw_arr_end(&w);
	jsonw_obj_end(&w);
	respond(r, jsonw_finish(&w), up ? 200 : 503, &b);
	buf_fini(&b);
}

static void on_status(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	struct buf b;

	(void)q;
	buf_init(&b, 65536);
	respond(r, agent_status_json(h->agent, &b), 200, &b);
	buf_fini(&b);
}

static void on_simple_status(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	struct buf b;

	(void)q;
	buf_init(&b, 64);
	if (buf_append_str(&b, agent_is_connected(h->agent) ? "connected\n" : "disconnected\n") < 0)
		http_respond_error(r, 500, "internal", "out of memory");
	else
		http_respond_text(r, 200, "text/plain; charset=utf-8", &b);
	buf_fini(&b);
}

static void on_metrics(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	struct buf b;

	(void)q;
	buf_init(&b, 262144);
	if (agent_metrics_text(h->agent, &b) < 0)
		http_respond_error(r, 500, "internal", "out of memory");
	else
		http_respond_text(r, 200, "text/plain; version=0.0.4; charset=utf-8", &b);
	buf_fini(&b);
}

/* ---- POST /execute {"command"|"verb", "params"|"args", "correlation_id", "ttl_s"} ---- */

static void on_executed(void *arg, const char *result_json, size_t n)
{
	struct http_response *r = arg;
	struct buf b;

	if (!result_json) {
		http_respond_error(r, 503, "stopping",
				   "the agent stops; give the same correlation_id again to learn "
				   "what became of it");
		return;
	}
	buf_init(&b, n + 16);
	respond(r, buf_append(&b, result_json, n), 200, &b);
	buf_wipe(&b);
	buf_fini(&b);
}

static void on_execute(void *arg, const struct http_request *q, struct http_response *r)
{
	struct local_http *h = arg;
	char id[CORRELATION_ID_MAX + 1] = "local-", verb[129];
	struct json_member m;
	struct span args = SPAN("{}");
	int64_t ttl_s = TTL_DEFAULT_S;
	int e;

	if (!(json_find(q->body, "command", &m) || json_find(q->body, "verb", &m)) ||
	    m.type != JSON_T_STR || span_copy(m.raw, verb, sizeof verb) < 0 || !verb[0]) {
		http_respond_error(r, 400, "missing_field", "`command` must be a verb's name");
		return;
	}
	if (json_find(q->body, "params", &m) || json_find(q->body, "args", &m)) {
		if (m.type != JSON_T_OBJ) {
			http_respond_error(r, 400, "bad_field", "`params` must be an object");
			return;
		}
		args = m.raw;
	}
	if (json_find(q->body, "ttl_s", &m) &&
	    (m.type != JSON_T_INT || json_int(m.raw, &ttl_s) < 0 || ttl_s < 1 ||
	     ttl_s > TTL_MAX_S)) {
		http_respond_error(r, 400, "bad_field", "`ttl_s` must be 1 to %d", TTL_MAX_S);
		return;
	}
	ident_uuid4(id + strlen("local-"));
	if (json_find(q->body, "correlation_id", &m) &&
	    (m.type != JSON_T_STR || span_copy(m.raw, id, sizeof id) < 0 ||
	     !ident_is_correlation_id(id, strlen(id)))) {
		http_respond_error(r, 400, "bad_field", "`correlation_id` is not valid");
		return;
	}
	LOG_INFO(FIELDS(.event = "local_execute", .agent_id = h->agent_id, .correlation_id = id,
			.verb = verb),
		 "a command was given on this host");
	e = agent_execute(h->agent, id, verb, args, ttl_s * 1000, on_executed, r);
	if (e == -EEXIST)
		http_respond_error(r, 409, "duplicate", "this correlation_id is under way");
	else if (e < 0)
		http_respond_error(r, 429, "busy", "too many commands are held");
}

static const struct http_route routes[] = {
    {HTTP_GET, "/_healthz", HTTP_OPEN, on_health},
    {HTTP_GET, "/_readyz", HTTP_OPEN, on_ready},
    {HTTP_GET, "/health", HTTP_OPEN, on_health},
    {HTTP_GET, "/simple-status", HTTP_OPEN, on_simple_status},
    {HTTP_GET, "/status", HTTP_OPEN, on_status},
    {HTTP_GET, "/metrics", HTTP_OPEN, on_metrics},
    {HTTP_POST, "/execute", HTTP_TOKEN, on_execute},
};

int local_http_open(struct loop *l, struct agent *a, const struct agent_settings *cfg,
		    struct local_http **ret)
{
	struct local_http *h = calloc(1, sizeof *h);
	int r;

	if (!h)
		return -ENOMEM;
	h->agent = a;
	h->agent_id = cfg->id;
	h->started_ms = clock_boot_ms();
	h->table = (struct http_table){
	    .route = routes, .n = ARRAY_LEN(routes), .arg = h, .token = cfg->local_token};
	r = http_server_open(l, cfg->bind_address, &h->table, &h->server);
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "bind_failed", .setting = "VIW_AGENT_BIND_ADDRESS",
				 .error = strerror(-r)),
			  "cannot listen on %s", cfg->bind_address);
		free(h);
		return r;
	}
	LOG_INFO(FIELDS(.event = "inbound_http", .agent_id = h->agent_id), "listening on port %u",
		 (unsigned)http_server_port(h->server));
	*ret = h;
	return 0;
}

void local_http_set_token(struct local_http *h, const char *token)
{
	if (h)
		h->table.token = token;
}

void local_http_close(struct local_http *h)
{
	if (!h)
		return;
	http_server_close(h->server);
	free(h);
}
