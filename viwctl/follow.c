/* Sending a command and following its states. */
#include "follow.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "crypto/crypto.h"

#define POLL_FIRST_MS	10
#define POLL_MAX_MS	250
#define PARAM_VALUE_MAX 65536

static const char *issuer(const struct ctl *c)
{
	if (c->cfg.issued_by && *c->cfg.issued_by)
		return c->cfg.issued_by;
	const struct passwd *pw = getpwuid(getuid());
	return pw ? pw->pw_name : "viwctl";
}

static int xadd(struct ctl *c, size_t argc, const struct span *argv)
{
	struct redis_sync *r = ctl_redis(c);
	int error = 0;
	if (!r)
		return CTL_UNAVAILABLE;
	const struct redis_reply *reply = redis_sync_cmd(r, &error, argc, argv);
	if (reply && redis_type(reply) == REDIS_STR)
		return CTL_OK;
	if (reply)
		ctl_error("Redis refused the command: " SPAN_FMT, SPAN_ARG(redis_str(reply)));
	else
		ctl_error("Redis: %s; the command may or may not have been queued: look with "
			  "`viwctl command` before sending it again under another id",
			  redis_sync_error(r));
	return CTL_UNAVAILABLE;
}

int command_send(struct ctl *c, struct command_out *o)
{
	char key[128], ttl[24];
	if (o->correlation_id)
		snprintf(o->id, sizeof o->id, "%s", o->correlation_id);
	else
		ident_uuid4(o->id);
	ctl_key(c, "commands", key, sizeof key);
	snprintf(ttl, sizeof ttl, "%ld", o->ttl_s);
	const struct span argv[] = {
	    SPAN("XADD"),
	    span_of(key),
	    SPAN("*"),
	    SPAN("correlation_id"),
	    span_of(o->id),
	    SPAN("agent_id"),
	    span_of(o->agent_id),
	    SPAN("command"),
	    span_of(o->verb),
	    SPAN("params"),
	    span_of(o->params_json),
	    SPAN("ttl_s"),
	    span_of(ttl),
	    SPAN("issued_by_admin_id"),
	    span_of(issuer(c)),
	};
	return xadd(c, ARRAY_LEN(argv), argv);
}

int command_send_cancel(struct ctl *c, const char *correlation_id, const char *agent_id)
{
	char key[128];
	ctl_key(c, "commands", key, sizeof key);
	const struct span argv[] = {
	    SPAN("XADD"),
	    span_of(key),
	    SPAN("*"),
	    SPAN("correlation_id"),
	    span_of(correlation_id),
	    SPAN("agent_id"),
	    span_of(agent_id),
	    SPAN("op"),
	    SPAN("cancel"),
	    SPAN("issued_by_admin_id"),
	    span_of(issuer(c)),
	};
	return xadd(c, ARRAY_LEN(argv), argv);
}

static const struct pg_stmt look_stmt = {
    "viwctl_look",
    "select c.status, r.rc, r.error_code, "
    "(extract(epoch from c.queued_at) * 1000)::bigint, "
    "(extract(epoch from c.offered_at) * 1000)::bigint, "
    "(extract(epoch from c.accepted_at) * 1000)::bigint, "
    "(extract(epoch from c.completed_at) * 1000)::bigint "
    "from agent_commands c left join agent_command_results r using (correlation_id) "
    "where c.correlation_id = $1",
};

static bool is_open(const char *status)
{
	return !*status || strcmp(status, "queued") == 0 || strcmp(status, "offered") == 0 ||
	       strcmp(status, "accepted") == 0;
}

int command_look(struct ctl *c, const char *correlation_id, struct command_state *ret)
{
	struct command_state s = {0};
	struct pg_rows *r = ctl_query(c, &look_stmt, 1, &correlation_id);
	if (!r)
		return CTL_UNAVAILABLE;
	if (pg_rows_len(r) > 0) {
		if (span_copy(pg_rows_text(r, 0, 0), s.status, sizeof s.status) < 0)
			s.status[0] = '\0';
		s.has_rc = pg_rows_text(r, 0, 1).p != NULL;
		s.rc = (int)pg_rows_int(r, 0, 1);
		struct span error = pg_rows_text(r, 0, 2);
		if (error.p && span_copy(error, s.error_code, sizeof s.error_code) < 0)
			s.error_code[0] = '\0';
		for (size_t i = 0; i < ARRAY_LEN(s.at_ms); i++)
			s.at_ms[i] = pg_rows_int(r, 0, 3 + i);
	}
	s.terminal = !is_open(s.status);
	pg_rows_free(r);
	*ret = s;
	return CTL_OK;
}

int command_exit_code(const struct command_state *s)
{
	static const struct {
		const char *status;
		int code;
	} codes[] = {
	    {"done", CTL_OK},		{"expired", CTL_EXPIRED}, {"cancelled", CTL_CANCELLED},
	    {"rejected", CTL_REJECTED}, {"unknown", CTL_UNKNOWN},
	};
	for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
		if (strcmp(s->status, codes[i].status) == 0)
			return codes[i].code;
	}
	if (strcmp(s->status, "failed") == 0)
		return s->has_rc && s->rc > 0 && s->rc < 110 ? s->rc : 1;
	return CTL_WAITING;
}

static void print_state(const struct command_state *s, int64_t start_ms)
{
	char now[CLOCK_RFC3339_LEN + 1];
	clock_format_rfc3339(clock_wall_ms(), now);
	fprintf(stderr, "%s  +%6.3f s  %s\n", now, (double)(clock_boot_ms() - start_ms) / 1000.0,
		*s->status ? s->status : "sent");
}

int command_wait(struct ctl *c, const char *correlation_id, int64_t timeout_ms, bool live,
		 struct command_state *ret)
{
	int64_t start = clock_boot_ms(), pause_ms = POLL_FIRST_MS;
	char last[sizeof ret->status] = "?";
	for (;;) {
		int code = command_look(c, correlation_id, ret);
		if (code != CTL_OK)
			return code;
		if (live && strcmp(last, ret->status) != 0) {
			print_state(ret, start);
			memcpy(last, ret->status, sizeof last);
			pause_ms = POLL_FIRST_MS;
		}
		if (ret->terminal || clock_boot_ms() - start >= timeout_ms)
			return CTL_OK;
		const struct timespec ts = {.tv_nsec = pause_ms * 1000000};
		nanosleep(&ts, NULL);
		pause_ms = pause_ms * 2 > POLL_MAX_MS ? POLL_MAX_MS : pause_ms * 2;
	}
}

#define TS(column) "to_char(" column " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

static const struct col print_cols[] = {
    {"correlation_id", COL_TEXT},
    {"agent_id", COL_TEXT},
    {"command", COL_TEXT},
    {"params", COL_JSON},
    {"status", COL_TEXT},
    {"issued_by_admin_id", COL_TEXT},
    {"issued_at", COL_TEXT},
    {"expires_at", COL_TEXT},
    {"queued_at", COL_TEXT},
    {"offered_at", COL_TEXT},
    {"accepted_at", COL_TEXT},
    {"completed_at", COL_TEXT},
    {"rc", COL_NUM},
    {"duration_ms", COL_NUM},
    {"error_code", COL_TEXT},
    {"error_msg", COL_TEXT},
    {"truncated", COL_JSON},
    {"stdout", COL_TEXT},
    {"stderr", COL_TEXT},
    {"late_results", COL_NUM},
};

/* clang-format off */
static const struct pg_stmt print_stmt = {
    "viwctl_command",
    "select c.correlation_id, c.agent_id, c.command, c.params, c.status, c.issued_by_admin_id, "
    TS("c.issued_at") ", " TS("c.expires_at") ", " TS("c.queued_at") ", " TS("c.offered_at") ", "
    TS("c.accepted_at") ", " TS("c.completed_at") ", r.rc, r.duration_ms, r.error_code, "
    "r.error_msg, r.truncated, r.stdout_redacted, r.stderr_redacted, "
    "(select nullif(count(*), 0) from agent_command_late_results l "
    "where l.correlation_id = c.correlation_id) "
    "from agent_commands c left join agent_command_results r using (correlation_id) "
    "where c.correlation_id = $1",
};
/* clang-format on */

int command_print(struct ctl *c, const char *correlation_id)
{
	struct pg_rows *r = ctl_query(c, &print_stmt, 1, &correlation_id);
	if (!r)
		return CTL_UNAVAILABLE;
	int code = CTL_OK;
	if (pg_rows_len(r) == 0) {
		ctl_error("no command '%s' is in the database (yet)", correlation_id);
		code = CTL_NO;
	} else {
		ctl_print_row(c, print_cols, ARRAY_LEN(print_cols), r, 0);
	}
	pg_rows_free(r);
	return code;
}

/* The value of key=@file or key=-; appended to out without one trailing newline. */
static int read_value(const char *key, const char *source, struct buf *out)
{
	const char *path = strcmp(source, "-") == 0 ? "/dev/stdin" : source + 1;
	FILE *f = fopen(path, "re");
	if (!f) {
		ctl_error("%s: %s: %s", key, path, strerror(errno));
		return CTL_USAGE;
	}
	char chunk[4096];
	int r = 0;
	for (size_t n; r == 0 && (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
		r = buf_append(out, chunk, n);
	fclose(f);
	crypto_wipe(chunk, sizeof chunk);
	if (r < 0) {
		ctl_error("%s: the value in %s is larger than %d bytes", key, path,
			  PARAM_VALUE_MAX);
		return CTL_USAGE;
	}
	if (out->len > 0 && out->data[out->len - 1] == '\n')
		out->data[--out->len] = '\0';
	return CTL_OK;
}

static int add_param(struct jsonw *w, const char *word)
{
	const char *eq = strchr(word, '=');
	char key[128];
	if (!eq || eq == word || (size_t)(eq - word) >= sizeof key) {
		ctl_error("'%s' is not key=value", word);
		return CTL_USAGE;
	}
	memcpy(key, word, (size_t)(eq - word));
	key[eq - word] = '\0';
	if (eq[1] != '@' && strcmp(eq + 1, "-") != 0) {
		if (verb_name_is_secret(key, strlen(key)))
			fprintf(stderr,
				"note: %s looks like a secret; %s=@FILE or %s=- keeps it out of "
				"the process list and the shell's history\n",
				key, key, key);
		jsonw_str(w, key, eq + 1);
		return CTL_OK;
	}
	struct buf value;
	buf_init(&value, PARAM_VALUE_MAX);
	int code = read_value(key, eq + 1, &value);
	if (code == CTL_OK)
		jsonw_strn(w, key, value.data ? value.data : "", value.len);
	buf_wipe(&value);
	buf_fini(&value);
	return code;
}

int command_params(int argc, char **argv, struct buf *out)
{
	struct jsonw w;
	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	for (int i = 0; i < argc; i++) {
		int code = add_param(&w, argv[i]);
		if (code != CTL_OK)
			return code;
	}
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) < 0) {
		ctl_error("the parameters together are too large");
		return CTL_USAGE;
	}
	return CTL_OK;
}
