/* status.json and its table. See status.h. */
#include "status.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "base/program.h"
#include "base/utf8.h"

#define STATUS_MAX_BYTES 262144

static void put_time(struct jsonw *w, const char *key, int64_t wall_ms)
{
	char text[CLOCK_RFC3339_LEN + 1];

	if (!wall_ms)
		return;
	clock_format_rfc3339(wall_ms, text);
	jsonw_str(w, key, text);
}

static void put_days(struct jsonw *w, const char *key, int64_t days)
{
	if (days != INT64_MIN)
		jsonw_int(w, key, days);
}

static void put_link(struct jsonw *w, const struct session_view *v)
{
	size_t i;

	jsonw_obj(w, "link");
	jsonw_str(w, "state", v->state);
	jsonw_str(w, "url", v->url);
	jsonw_str(w, "conn_id", v->conn_id[0] ? v->conn_id : NULL);
	if (v->connected_ms) {
		jsonw_uint(w, "epoch", v->epoch);
		put_time(w, "connected_at", v->connected_ms);
	}
	jsonw_uint(w, "reconnects", v->reconnects);
	if (v->next_dial_in_ms >= 0)
		jsonw_int(w, "next_dial_in_ms", v->next_dial_in_ms);
	if (v->last_end_ms) {
		put_time(w, "last_end_at", v->last_end_ms);
		jsonw_str(w, "last_end", redial_cause_word(v->last_end.cause));
		jsonw_str(w, "last_end_detail", v->last_end.detail[0] ? v->last_end.detail : NULL);
	}
	jsonw_str(w, "backend_pin_seen", v->peer->pin[0] ? v->peer->pin : NULL);
	jsonw_arr(w, "backends");
	for (i = 0; i < v->link->n; i++) {
		jsonw_obj(w, NULL);
		jsonw_str(w, "url", v->link->backend[i].url);
		jsonw_uint(w, "failures", v->link->backend[i].failures);
		jsonw_obj_end(w);
	}
	jsonw_arr_end(w);
	jsonw_obj_end(w);
}

int status_compose(const struct status_input *in, struct buf *out)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "agent_id", in->cfg->id);
	jsonw_str(&w, "version", program_version);
	jsonw_int(&w, "pid", getpid());
	put_time(&w, "started_at", in->started_ms);
	put_time(&w, "written_at", clock_wall_ms());
	jsonw_int(&w, "interval_s", in->cfg->telemetry_interval_s);
	put_link(&w, &in->session);
	jsonw_obj(&w, "helper");
	jsonw_str(&w, "state", in->helper_up ? "up" : "down");
	jsonw_str(&w, "why", in->helper_up ? NULL : in->helper_why);
	jsonw_str(&w, "journal_id", in->session.journal_id[0] ? in->session.journal_id : NULL);
	jsonw_obj_end(&w);
	jsonw_obj(&w, "commands");
	jsonw_uint(&w, "queued", in->commands.queued);
	jsonw_uint(&w, "running", in->commands.running);
	jsonw_uint(&w, "held", in->commands.held);
	jsonw_uint(&w, "results_waiting", in->commands.results);
	jsonw_obj_end(&w);
	jsonw_obj(&w, "telemetry");
	jsonw_uint(&w, "seq", in->session.seq);
	jsonw_uint(&w, "waiting", in->session.ring_frames);
	jsonw_obj_end(&w);
	jsonw_obj(&w, "cert_days_left");
	put_days(&w, "client", in->cert_days);
	put_days(&w, "trust_bundle", in->bundle_days);
	put_days(&w, "backend", in->backend_days);
	jsonw_obj_end(&w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

/* ---- the subcommand ---- */

/* One line of the table: a path of at most two keys. */
static const struct {
	const char *label, *object, *member;
} lines[] = {
    {"agent", NULL, "agent_id"},
    {"version", NULL, "version"},
    {"pid", NULL, "pid"},
    {"started", NULL, "started_at"},
    {"link", "link", "state"},
    {"backend", "link", "url"},
    {"connected since", "link", "connected_at"},
    {"connection", "link", "conn_id"},
    {"reconnects", "link", "reconnects"},
    {"next dial in ms", "link", "next_dial_in_ms"},
    {"last end", "link", "last_end"},
    {"last end at", "link", "last_end_at"},
    {"last end detail", "link", "last_end_detail"},
    {"backend pin", "link", "backend_pin_seen"},
    {"helper", "helper", "state"},
    {"helper fault", "helper", "why"},
    {"commands held", "commands", "held"},
    {"results waiting", "commands", "results_waiting"},
    {"telemetry frames", "telemetry", "seq"},
    {"telemetry waiting", "telemetry", "waiting"},
    {"client cert days", "cert_days_left", "client"},
    {"bundle days", "cert_days_left", "trust_bundle"},
    {"backend cert days", "cert_days_left", "backend"},
};

static bool lookup(struct span doc, const char *object, const char *member, struct json_member *ret)
{
	if (object) {
		if (!json_find(doc, object, ret) || ret->type != JSON_T_OBJ)
			return false;
		doc = ret->raw;
	}
	return json_find(doc, member, ret);
}

static int64_t number_at(struct span doc, const char *member)
{
	struct json_member m;
	int64_t v = 0;

	if (json_find(doc, member, &m) && m.type == JSON_T_INT && json_int(m.raw, &v) < 0)
		v = 0;
	return v;
}

/* Text for the reader, or NULL when it is fresh. */
static const char *staleness(struct span doc)
{
	struct json_member m;
	int64_t written, limit = 3 * number_at(doc, "interval_s") * 1000 + 5000;
	int64_t pid = number_at(doc, "pid");

	if (pid <= 0 || (kill((pid_t)pid, 0) < 0 && errno == ESRCH))
		return "the agent that wrote this is not running";
	if (json_find(doc, "written_at", &m) && m.type == JSON_T_STR &&
	    clock_parse_rfc3339(m.raw.p, m.raw.n, &written) == 0 &&
	    clock_wall_ms() - written > limit)
		return "the agent has not written its status for a while; it may hang";
	return NULL;
}

/* 0; -errno, or -EBADMSG when it is not JSON. */
static int read_status(const struct agent_settings *cfg, struct buf *out, char *path, size_t cap)
{
	struct json_fault fault;
	int r;

	(void)snprintf(path, cap, "%s/status.json", cfg->state_dir);
	r = file_read(path, out);
	if (r == 0 && json_validate(out->data ? out->data : "", out->len, 16, &fault) < 0)
		r = -EBADMSG;
	return r;
}

bool status_is_connected(const struct agent_settings *cfg, char *url, size_t cap)
{
	struct json_member m;
	struct span doc;
	char path[512];
	bool yes = false;
	struct buf b;

	buf_init(&b, STATUS_MAX_BYTES);
	if (read_status(cfg, &b, path, sizeof path) == 0) {
		doc = (struct span){b.data, b.len};
		yes = !staleness(doc) && lookup(doc, NULL, "agent_id", &m) &&
		      span_eq(m.raw, cfg->id) && lookup(doc, "link", "state", &m) &&
		      span_eq(m.raw, "ready") && lookup(doc, "link", "url", &m) &&
		      span_copy(m.raw, url, cap) == 0;
	}
	buf_fini(&b);
	return yes;
}

static void print_line(const char *label, struct span value)
{
	char text[512];

	(void)snprintf(text, sizeof text, SPAN_FMT, SPAN_ARG(value));
	utf8_blank_controls(text);
	printf("%-18s %s\n", label, text);
}

int status_show(const struct agent_settings *cfg, bool json)
{
	struct json_member m;
	const char *stale;
	char path[512];
	struct buf b;
	size_t i;
	int r;

	buf_init(&b, STATUS_MAX_BYTES);
	r = read_status(cfg, &b, path, sizeof path);
	if (r < 0) {
		fprintf(stderr,
			"gateway-agent: %s: %s. Is the agent running, with the same "
			"VIW_AGENT_STATE_DIR?\n",
			path, r != -EBADMSG ? strerror(-r) : "not JSON");
		buf_fini(&b);
		return PROGRAM_UNAVAILABLE;
	}
	stale = staleness((struct span){b.data, b.len});
	if (json) {
		printf("%s\n", b.data);
	} else {
		for (i = 0; i < ARRAY_LEN(lines); i++) {
			if (lookup((struct span){b.data, b.len}, lines[i].object, lines[i].member,
				   &m))
				print_line(lines[i].label, m.raw);
		}
	}
	if (stale)
		fprintf(stderr, "gateway-agent: %s\n", stale);
	buf_fini(&b);
	return stale ? PROGRAM_UNAVAILABLE : PROGRAM_OK;
}
