/* viwctl send: one command to one gateway, or a rolling fan-out to many. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/program.h"
#include "follow.h"

#define PARAMS_MAX 65536
#define GRACE_MS   10000 /* past the command's time, for the writers */

struct send_options {
	bool wait, dry_run, all, help;
	const char *site, *label_key, *label_value, *id;
	long ttl_s, batch, max_failures;
};

static bool parse_label(struct send_options *o, char *text)
{
	char *eq = strchr(text, '=');
	if (!eq || eq == text) {
		ctl_error("--label takes key=value");
		return false;
	}
	*eq = '\0';
	o->label_key = text;
	o->label_value = eq + 1;
	return true;
}

static bool parse_options(int argc, char **argv, struct send_options *o)
{
	bool ok = true;
	for (int opt; ok && (opt = ctl_option("send", argc, argv)) != -1;) {
		switch (opt) {
		case 'w':
			o->wait = true;
			break;
		case 'd':
			o->dry_run = true;
			break;
		case 'a':
			o->all = true;
			break;
		case 's':
			o->site = optarg;
			break;
		case 'i':
			o->id = optarg;
			break;
		case CTL_OPTION_HELP:
			o->help = true;
			return false;
		case 'l':
			ok = parse_label(o, optarg);
			break;
		case 't':
			ok = ctl_number("--ttl", optarg, 1, TTL_S_MAX, &o->ttl_s);
			break;
		case 'b':
			ok = ctl_number("--batch", optarg, 1, 10000, &o->batch);
			break;
		case 'm':
			ok = ctl_number("--max-failures", optarg, 0, 1000000, &o->max_failures);
			break;
		default:
			ok = false;
		}
	}
	if (ok && o->id && !ident_is_correlation_id(o->id, strlen(o->id))) {
		ctl_error("--id '%s' is not a correlation id (letters, digits, . _ : -)", o->id);
		ok = false;
	}
	return ok;
}

/* Against the manifest, when the verb is known here. */
static int check_params(struct ctl *c, const char *verb_name, struct span params)
{
	const struct verbs *verbs = ctl_verbs(c);
	char msg[256];
	if (!verbs)
		return CTL_CONFIG;
	const struct verb *verb = verbs_find(verbs, verb_name);
	if (!verb) {
		if (!c->cfg.verbs_dir)
			return CTL_OK;
		ctl_error("no verb '%s' in VIWCTL_VERBS_DIR (%s) nor built in", verb_name,
			  c->cfg.verbs_dir);
		return CTL_USAGE;
	}
	struct verb_args args = {0};
	int r = verb_args_check(verb, params, &args, msg, sizeof msg);
	verb_args_fini(&args, verb);
	if (r < 0) {
		ctl_error("%s: %s", verb_name, msg);
		return CTL_USAGE;
	}
	return CTL_OK;
}

static void print_dry_json(const char *agent_id, const char *verb_name, const struct buf *params,
			   long ttl_s)
{
	struct buf out;
	struct jsonw w;
	buf_init(&out, PARAMS_MAX * 3);
	jsonw_init(&w, &out);
	jsonw_obj(&w, NULL);
	jsonw_bool(&w, "dry_run", true);
	jsonw_str(&w, "agent_id", agent_id);
	jsonw_str(&w, "command", verb_name);
	jsonw_raw(&w, "params", params->data, params->len);
	jsonw_int(&w, "ttl_s", ttl_s);
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) == 0)
		printf("%s\n", out.data);
	buf_fini(&out);
}

static void show_dry(struct ctl *c, const char *agent_id, const char *verb_name, const char *params,
		     long ttl_s)
{
	struct buf masked;
	bool any = false;
	const struct verbs *verbs = ctl_verbs(c);
	buf_init(&masked, PARAMS_MAX * 2);
	int r = redact_params(verbs ? verbs_find(verbs, verb_name) : NULL, span_of(params), &masked,
			      &any);
	if (r == 0 && c->json)
		print_dry_json(agent_id, verb_name, &masked, ttl_s);
	else if (r == 0)
		printf("would XADD %s.commands * correlation_id <new> agent_id %s command %s "
		       "params '%.*s' ttl_s %ld\n",
		       c->cfg.stream_prefix, agent_id, verb_name, (int)masked.len, masked.data,
		       ttl_s);
	buf_fini(&masked);
}

static int send_one(struct ctl *c, const struct send_options *o, const char *agent_id,
		    const char *verb_name, const char *params)
{
	if (!ident_is_agent_id(agent_id, strlen(agent_id))) {
		ctl_error("'%s' is not an agent id", agent_id);
		return CTL_USAGE;
	}
	if (o->dry_run) {
		show_dry(c, agent_id, verb_name, params, o->ttl_s);
		return CTL_OK;
	}
	struct command_out out = {
	    .correlation_id = o->id,
	    .agent_id = agent_id,
	    .verb = verb_name,
	    .params_json = params,
	    .ttl_s = o->ttl_s,
	};
	if (o->wait && !ctl_pg(c))
		return CTL_UNAVAILABLE;
	int code = command_send(c, &out);
	if (code != CTL_OK)
		return code;
	if (!o->wait) {
		printf(c->json ? "{\"correlation_id\":\"%s\"}\n" : "%s\n", out.id);
		return CTL_OK;
	}
	struct command_state s;
	fprintf(stderr, "%s\n", out.id);
	code = command_wait(c, out.id, o->ttl_s * 1000 + GRACE_MS, true, &s);
	if (code != CTL_OK)
		return code;
	if (*s.status)
		command_print(c, out.id);
	if (!s.terminal)
		ctl_error("still %s; `viwctl command %s` shows what became of it",
			  *s.status ? s.status : "without a row", out.id);
	return command_exit_code(&s);
}

/* ---- fan-out ---- */

struct target {
	char agent_id[AGENT_ID_MAX + 1], id[CORRELATION_ID_MAX + 1];
	struct command_state state;
	bool sent;
};

static const struct pg_stmt targets_stmt = {
    "viwctl_targets",
    "select agent_id from os_gateways where status <> 'decommissioned' "
    "and ($1::text is null or site = $1) and ($2::text is null or labels ->> $2 = $3) "
    "order by agent_id",
};

static int find_targets(struct ctl *c, const struct send_options *o, struct target **ret,
			size_t *ret_n)
{
	const char *param[] = {o->site, o->label_key, o->label_value};
	struct pg_rows *r = ctl_query(c, &targets_stmt, 3, param);
	if (!r)
		return CTL_UNAVAILABLE;
	size_t n = pg_rows_len(r);
	struct target *t = calloc(n ? n : 1, sizeof *t);
	int code = t ? CTL_OK : CTL_SYSTEM;
	for (size_t i = 0; t && i < n; i++) {
		if (span_copy(pg_rows_text(r, i, 0), t[i].agent_id, sizeof t[i].agent_id) < 0)
			code = CTL_SYSTEM;
	}
	pg_rows_free(r);
	if (code == CTL_OK && n == 0) {
		ctl_error("no gateway matches; `viwctl gateways` lists them");
		code = CTL_NO;
	}
	if (code != CTL_OK) {
		free(t);
		return code;
	}
	*ret = t;
	*ret_n = n;
	return CTL_OK;
}

static int send_target(struct ctl *c, const struct send_options *o, struct target *t,
		       const char *verb_name, const char *params)
{
	struct command_out out = {
	    .agent_id = t->agent_id, .verb = verb_name, .params_json = params, .ttl_s = o->ttl_s};
	int code = command_send(c, &out);
	if (code == CTL_OK) {
		memcpy(t->id, out.id, sizeof t->id);
		t->sent = true;
	}
	return code;
}

struct tally {
	size_t done, failed, open;
};

static void report_target(const struct target *t)
{
	fprintf(stderr, "%-24s %-10s %s  %s\n", t->agent_id,
		*t->state.status ? t->state.status : "sent", t->id, t->state.error_code);
}

/* Sends [from, to), waits for all of them. */
static int run_batch(struct ctl *c, const struct send_options *o, struct target *t, size_t from,
		     size_t to, const char *verb_name, const char *params, struct tally *tally)
{
	for (size_t i = from; i < to; i++) {
		int code = send_target(c, o, &t[i], verb_name, params);
		if (code != CTL_OK)
			return code;
	}
	int64_t until = clock_boot_ms() + o->ttl_s * 1000 + GRACE_MS;
	for (size_t i = from; i < to; i++) {
		int64_t left = until - clock_boot_ms();
		int code = command_wait(c, t[i].id, left > 0 ? left : 0, false, &t[i].state);
		if (code != CTL_OK)
			return code;
		if (!t[i].state.terminal)
			tally->open++;
		else if (strcmp(t[i].state.status, "done") == 0)
			tally->done++;
		else
			tally->failed++;
		report_target(&t[i]);
	}
	return CTL_OK;
}

static void print_summary(const struct ctl *c, const struct target *t, size_t n,
			  const struct tally *y)
{
	size_t sent = y->done + y->failed + y->open;
	if (!c->json) {
		printf("%zu done, %zu not done, %zu still open, %zu not sent\n", y->done, y->failed,
		       y->open, n - sent);
		return;
	}
	printf("{\"done\":%zu,\"not_done\":%zu,\"open\":%zu,\"not_sent\":%zu,\"commands\":[",
	       y->done, y->failed, y->open, n - sent);
	for (size_t i = 0; i < sent; i++)
		printf("%s{\"agent_id\":\"%s\",\"correlation_id\":\"%s\",\"status\":\"%s\"}",
		       i ? "," : "", t[i].agent_id, t[i].id, t[i].state.status);
	puts("]}");
}

static int send_many(struct ctl *c, const struct send_options *o, const char *verb_name,
		     const char *params)
{
	struct target *t = NULL;
	size_t n = 0;
	struct tally tally = {0};
	int code = find_targets(c, o, &t, &n);
	if (code != CTL_OK)
		return code;
	for (size_t i = 0; o->dry_run && i < n; i++)
		show_dry(c, t[i].agent_id, verb_name, params, o->ttl_s);
	size_t step = (size_t)o->batch;
	for (size_t i = 0; !o->dry_run && i < n && code == CTL_OK; i += step) {
		code =
		    run_batch(c, o, t, i, i + step < n ? i + step : n, verb_name, params, &tally);
		fprintf(stderr, "%zu of %zu\n", i + step < n ? i + step : n, n);
		if (tally.failed + tally.open > (size_t)o->max_failures)
			break;
	}
	if (!o->dry_run)
		print_summary(c, t, n, &tally);
	free(t);
	if (code == CTL_OK && !o->dry_run && tally.done != n)
		code = CTL_NO;
	return code;
}

int cmd_send(struct ctl *c, int argc, char **argv)
{
	struct send_options o = {.ttl_s = 60, .batch = 10};
	if (!parse_options(argc, argv, &o))
		return o.help ? CTL_OK : CTL_USAGE;
	bool many = o.all || o.site || o.label_key;
	int first = optind + (many ? 1 : 2);
	if (argc < first || (many && o.id)) {
		ctl_usage("send", stderr);
		return CTL_USAGE;
	}
	const char *verb_name = argv[first - 1];
	struct buf params;
	buf_init(&params, PARAMS_MAX);
	int code = command_params(argc - first, argv + first, &params);
	if (code == CTL_OK)
		code = check_params(c, verb_name, (struct span){params.data, params.len});
	if (code == CTL_OK)
		code = many ? send_many(c, &o, verb_name, params.data)
			    : send_one(c, &o, argv[optind], verb_name, params.data);
	buf_wipe(&params);
	buf_fini(&params);
	return code;
}
