#include "endpoints.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/jsonw.h"
#include "base/metrics.h"
#include "base/program.h"
#include "http/http.h"

enum { BODY_MAX = 4096, METRICS_MAX = 1 << 20 };

struct endpoints {
	struct http_thread *thread;
	struct http_table table;
	struct metrics *metrics;
	int64_t from_ms;
	atomic_bool redis_up, pg_up;
};

static void respond(struct http_response *r, int status, struct jsonw *w, const struct buf *out)
{
	if (jsonw_finish(w) < 0)
		http_respond_error(r, 500, "internal", "out of memory");
	else
		http_respond_json(r, status, out);
}

static void on_healthz(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	const struct endpoints *e = arg;
	CLEANUP(buf_fini) struct buf out;
	struct jsonw w;

	buf_init(&out, BODY_MAX);
	jsonw_init(&w, &out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "status", "ok");
	jsonw_int(&w, "uptime_s", (clock_boot_ms() - e->from_ms) / 1000);
	jsonw_str(&w, "version", program_version);
	jsonw_obj_end(&w);
	respond(r, 200, &w, &out);
}

static void on_readyz(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	struct endpoints *e = arg;
	bool redis = atomic_load(&e->redis_up), pg = atomic_load(&e->pg_up);
	CLEANUP(buf_fini) struct buf out;
	struct jsonw w;

	buf_init(&out, BODY_MAX);
	jsonw_init(&w, &out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "status", redis && pg ? "ok" : "unready");
	jsonw_arr(&w, "reasons");
	if (!redis)
		jsonw_str(&w, NULL, "redis_away");
	if (!pg)
		jsonw_str(&w, NULL, "postgres_away");
	jsonw_arr_end(&w);
	jsonw_obj_end(&w);
	respond(r, redis && pg ? 200 : 503, &w, &out);
}

static void on_metrics(void *arg, const struct http_request *q UNUSED, struct http_response *r)
{
	const struct endpoints *e = arg;
	CLEANUP(buf_fini) struct buf out;

	buf_init(&out, METRICS_MAX);
	if (metrics_render(e->metrics, &out) < 0)
		http_respond_error(r, 500, "internal", "out of memory");
	else
		http_respond_text(r, 200, "text/plain; version=0.0.4", &out);
}

/* Open to whoever reaches the listener, which is on loopback unless the setting says otherwise:
 * figures only, nothing of agents or commands. */
static const struct http_route routes[] = {
    {HTTP_GET, "/_healthz", HTTP_OPEN, on_healthz},
    {HTTP_GET, "/_readyz", HTTP_OPEN, on_readyz},
    {HTTP_GET, "/metrics", HTTP_OPEN, on_metrics},
};

int endpoints_open(const char *bind, struct metrics *m, struct endpoints **ret)
{
	struct endpoints *e = calloc(1, sizeof *e);

	if (!e)
		return -ENOMEM;
	e->metrics = m;
	e->from_ms = clock_boot_ms();
	e->table = (struct http_table){.route = routes, .n = ARRAY_LEN(routes), .arg = e};
	int r = http_thread_start(bind, &e->table, &e->thread);
	if (r < 0) {
		free(e);
		return r;
	}
	*ret = e;
	return 0;
}

void endpoints_close(struct endpoints *e)
{
	if (!e)
		return;
	http_thread_stop(e->thread);
	free(e);
}

void endpoints_set_redis(struct endpoints *e, bool up)
{
	atomic_store(&e->redis_up, up);
}

void endpoints_set_pg(struct endpoints *e, bool up)
{
	atomic_store(&e->pg_up, up);
}
