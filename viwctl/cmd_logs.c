/*
 * viwctl logs: a unit's journal lines on a gateway's host, by repeated tail_logs commands. The
 * cursor of one answer is the start of the next, so nothing is shown twice; a gap (the journal was
 * rotated past the cursor) is said.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/jsonw.h"
#include "base/program.h"
#include "follow.h"

#define FOLLOW_PAUSE_S 2
#define TTL_S	       30
#define LINES_MAX      1000

struct logs_options {
	const char *agent_id, *unit, *priority;
	long lines;
	bool follow;
	char cursor[1024]; /* empty: from the end */
	bool full;	   /* the last answer held as many lines as were asked: there may be more */
};

static const struct pg_stmt output_stmt = {
    "viwctl_output", "select status, stdout_redacted, coalesce(error_msg, error_code, '') "
		     "from agent_command_results where correlation_id = $1"};

static int ask(struct ctl *c, const struct logs_options *o, char *ret_id)
{
	struct buf params;
	struct jsonw w;
	buf_init(&params, 8192);
	jsonw_init(&w, &params);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "unit", o->unit);
	jsonw_int(&w, "lines", o->lines);
	jsonw_str(&w, "since_cursor", o->cursor[0] ? o->cursor : NULL);
	jsonw_str(&w, "priority", o->priority);
	jsonw_obj_end(&w);
	int code = jsonw_finish(&w) < 0 ? CTL_SYSTEM : CTL_OK;
	struct command_out out = {.agent_id = o->agent_id,
				  .verb = "tail_logs",
				  .params_json = params.data,
				  .ttl_s = TTL_S};
	struct command_state s = {0};
	if (code == CTL_OK)
		code = command_send(c, &out);
	if (code == CTL_OK)
		code = command_wait(c, out.id, (TTL_S + 10) * 1000, false, &s);
	buf_fini(&params);
	snprintf(ret_id, CORRELATION_ID_MAX + 1, "%s", out.id);
	bool late = !s.terminal || strcmp(s.status, "expired") == 0;
	if (code == CTL_OK && late && o->follow) {
		fprintf(stderr, "-- no answer from %s within %d s; still asking --\n", o->agent_id,
			TTL_S);
		code = CTL_WAITING;
	} else if (code == CTL_OK && !s.terminal) {
		ctl_error("no answer from %s yet (command %s)", o->agent_id, out.id);
		code = CTL_WAITING;
	}
	return code;
}

static const char *text_of(const json_t *object, const char *key)
{
	const char *s = json_string_value(json_object_get(object, key));
	return s ? s : "";
}

static void print_line(const struct ctl *c, const json_t *line)
{
	if (c->json) {
		char *text = json_dumps(line, JSON_COMPACT);
		if (text)
			puts(text);
		free(text);
		return;
	}
	const json_t *pid = json_object_get(line, "pid");
	printf("%s %s[%lld]: ", text_of(line, "ts"), text_of(line, "unit"),
	       pid ? (long long)json_integer_value(pid) : 0);
	ctl_print_safe(span_of(text_of(line, "message")));
	putchar('\n');
}

static void print_answer(const struct ctl *c, struct logs_options *o, const json_t *answer)
{
	const json_t *lines = json_object_get(answer, "lines");
	if (json_is_true(json_object_get(answer, "gap")))
		fprintf(stderr, "-- gap: the journal no longer holds the place where the last "
				"answer ended --\n");
	for (size_t i = 0; i < json_array_size(lines); i++)
		print_line(c, json_array_get(lines, i));
	o->full = json_array_size(lines) >= (size_t)o->lines;
	const char *next = text_of(answer, "next_cursor");
	if (*next)
		snprintf(o->cursor, sizeof o->cursor, "%s", next);
	fflush(stdout);
}

static int show(struct ctl *c, struct logs_options *o, const char *id)
{
	const char *param = id;
	struct pg_rows *r = ctl_query(c, &output_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	int code = CTL_NO;
	if (pg_rows_len(r) > 0 && span_eq(pg_rows_text(r, 0, 0), "done")) {
		struct span text = pg_rows_text(r, 0, 1);
		json_t *answer = json_loadb(text.p ? text.p : "", text.n, 0, NULL);
		if (json_is_object(answer)) {
			print_answer(c, o, answer);
			code = CTL_OK;
		} else {
			ctl_error("the answer of %s is not the JSON of tail_logs", o->agent_id);
		}
		json_decref(answer);
	} else if (pg_rows_len(r) > 0) {
		struct span why = pg_rows_text(r, 0, 2), status = pg_rows_text(r, 0, 0);
		ctl_error("tail_logs " SPAN_FMT ": " SPAN_FMT, SPAN_ARG(status), SPAN_ARG(why));
	}
	pg_rows_free(r);
	return code;
}

static bool parse(int argc, char **argv, struct logs_options *o, int *ret_code)
{
	for (int opt; (opt = ctl_option("logs", argc, argv)) != -1;) {
		if (opt == 'u')
			o->unit = optarg;
		else if (opt == 'f')
			o->follow = true;
		else if (opt == 'p')
			o->priority = optarg;
		else if (opt != 'n' || !ctl_number("--lines", optarg, 1, LINES_MAX, &o->lines))
			return *ret_code = opt == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE, false;
	}
	o->agent_id = optind + 1 == argc ? argv[optind] : NULL;
	if (o->agent_id && o->unit && ident_is_agent_id(o->agent_id, strlen(o->agent_id)))
		return true;
	ctl_usage("logs", stderr);
	*ret_code = CTL_USAGE;
	return false;
}

int cmd_logs(struct ctl *c, int argc, char **argv)
{
	struct logs_options o = {.lines = 200};
	int usage_code = CTL_OK;
	if (!parse(argc, argv, &o, &usage_code))
		return usage_code;
	if (!ctl_pg(c) || program_catch_signals() < 0)
		return CTL_UNAVAILABLE;
	for (;;) {
		char id[CORRELATION_ID_MAX + 1];
		int code = ask(c, &o, id);
		if (code == CTL_OK)
			code = show(c, &o, id);
		else if (code == CTL_WAITING && o.follow)
			code = CTL_OK;
		if (code != CTL_OK || !o.follow || program_should_stop())
			return code;
		const struct timespec pause = {.tv_sec = FOLLOW_PAUSE_S};
		if (!o.full || !o.cursor[0])
			nanosleep(&pause, NULL);
		if (program_should_stop())
			return CTL_OK;
		o.lines = LINES_MAX;
	}
}
