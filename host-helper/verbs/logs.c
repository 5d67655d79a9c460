/*
 * tail_logs: the last lines of the systemd journal, or those after a cursor. A cursor whose entry
 * is gone (vacuumed, rotated away) gives gap = true: lines may be missing, and it says so.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include "base/clock.h"
#include "builtin.h"
#include "confine.h"

#define FIELD_MAX     8192 /* of one message; longer ones are cut */
#define OPEN_ATTEMPTS 8
#define OPEN_PAUSE_US 10000

static int priority_number(const char *word)
{
	static const char *const words[] = {"emerg",   "alert",	 "crit", "err",
					    "warning", "notice", "info", "debug"};

	if (!word)
		return -1;
	if (word[0] >= '0' && word[0] <= '7' && !word[1])
		return word[0] - '0';
	for (int i = 0; i < (int)ARRAY_LEN(words); i++)
		if (strcmp(word, words[i]) == 0)
			return i;
	return -1;
}

static int open_journal(const struct builtin_ctx *x, sd_journal **ret)
{
	if (x->cfg->journal_dir)
		return sd_journal_open_directory(ret, x->cfg->journal_dir, 0);
	return sd_journal_open(ret, SD_JOURNAL_LOCAL_ONLY);
}

static int match(sd_journal *j, const char *field, const char *value)
{
	char text[512];
	int n = snprintf(text, sizeof text, "%s=%s", field, value);

	return sd_journal_add_match(j, text, (size_t)n);
}

/* As journalctl -u: lines of the unit itself, and what systemd says about it. */
static int add_matches(sd_journal *j, const char *unit, int priority)
{
	char level[2] = {0};
	int r = 0;

	for (int p = 0; r >= 0 && p <= priority; p++) {
		level[0] = (char)('0' + p);
		r = match(j, "PRIORITY", level);
	}
	if (r >= 0 && unit)
		r = sd_journal_add_conjunction(j);
	if (r >= 0 && unit)
		r = match(j, "_SYSTEMD_UNIT", unit);
	if (r >= 0 && unit)
		r = sd_journal_add_disjunction(j);
	/* What follows is OR-ed with the unit term, and both are AND-ed with the priorities. */
	if (r >= 0 && unit)
		r = match(j, "UNIT", unit);
	if (r >= 0 && unit)
		r = match(j, "_PID", "1");
	return r;
}

static size_t get_field(sd_journal *j, const char *name, const char **ret)
{
	const void *data;
	size_t n, skip = strlen(name) + 1;

	if (sd_journal_get_data(j, name, &data, &n) < 0 || n < skip)
		return 0;
	*ret = (const char *)data + skip;
	return n - skip;
}

/* Masked and made valid before it enters the JSON. */
static void write_message(sd_journal *j, struct jsonw *w)
{
	const char *text = "";
	size_t n = get_field(j, "MESSAGE", &text);
	struct buf clean;
	bool cut;

	buf_init(&clean, FIELD_MAX + 8);
	if (redact_output(NULL, text, n, false, FIELD_MAX, &clean, &cut) == 0)
		jsonw_strn(w, "message", clean.data ? clean.data : "", clean.len);
	buf_fini(&clean);
}

static void write_text(sd_journal *j, const char *field, const char *key, struct jsonw *w)
{
	const char *text;
	size_t n = get_field(j, field, &text);

	if (n)
		jsonw_strn(w, key, text, n);
}

static void write_number(sd_journal *j, const char *field, const char *key, struct jsonw *w)
{
	const char *text;
	char digits[16];
	size_t n = get_field(j, field, &text);

	if (n == 0 || n >= sizeof digits)
		return;
	memcpy(digits, text, n);
	digits[n] = 0;
	jsonw_int(w, key, strtol(digits, NULL, 10));
}

static void write_entry(sd_journal *j, const char *cursor, struct jsonw *w)
{
	char ts[CLOCK_RFC3339_LEN + 1];
	uint64_t us = 0;

	jsonw_obj(w, NULL);
	if (sd_journal_get_realtime_usec(j, &us) >= 0) {
		clock_format_rfc3339((int64_t)(us / 1000), ts);
		jsonw_str(w, "ts", ts);
	}
	jsonw_str(w, "cursor", cursor);
	const char *text;
	write_text(j, get_field(j, "UNIT", &text) ? "UNIT" : "_SYSTEMD_UNIT", "unit", w);
	write_number(j, "_PID", "pid", w);
	write_number(j, "PRIORITY", "priority", w);
	write_message(j, w);
	jsonw_obj_end(w);
}

/* Stands on the first line to give: 1, or 0 when there is none. */
static int seek(sd_journal *j, const char *since, uint64_t lines, bool *ret_gap)
{
	*ret_gap = false;
	if (since) {
		int r = sd_journal_seek_cursor(j, since);
		if (r < 0)
			return r;
		r = sd_journal_next(j);
		if (r <= 0) {
			/* Nothing at or after it: the entry itself must be gone. */
			*ret_gap = r == 0;
			return r;
		}
		if (sd_journal_test_cursor(j, since) > 0)
			return sd_journal_next(j);
		*ret_gap = true; /* it was vacuumed; this one is newer */
		return 1;
	}
	int r = sd_journal_seek_tail(j);
	if (r < 0)
		return r;
	r = sd_journal_previous_skip(j, lines);
	return r > 0 ? 1 : r;
}

/* The reply has a cap: what does not fit is left for the next call, after next_cursor. */
static void write_lines(sd_journal *j, struct builtin_ctx *x, int64_t lines, char **last)
{
	size_t room = (size_t)x->verb->max_output_bytes - FIELD_MAX * 6 - 4096;
	int more = 1;

	for (int64_t n = 0; more > 0 && n < lines && x->w->out->len < room; n++) {
		char *cursor = NULL;
		if (sd_journal_get_cursor(j, &cursor) < 0)
			break;
		write_entry(j, cursor, x->w);
		free(*last);
		*last = cursor;
		more = sd_journal_next(j);
	}
}

/* While journald rotates, a file may have no name for a moment: what fails or misses the cursor is
 * looked for again before it is called an error or a gap. */
static int open_at(struct builtin_ctx *x, const char *since, int64_t lines, sd_journal **ret,
		   bool *gap)
{
	for (int attempt = 1;; attempt++) {
		int r = open_journal(x, ret);

		*gap = false;
		if (r >= 0)
			r = add_matches(*ret, builtin_arg(x, "unit"),
					priority_number(builtin_arg(x, "priority")));
		if (r >= 0)
			r = seek(*ret, since, (uint64_t)lines, gap);
		if (r == -EINVAL || (r >= 0 && !*gap) || attempt == OPEN_ATTEMPTS)
			return r;
		sd_journal_close(*ret);
		*ret = NULL;
		(void)usleep(OPEN_PAUSE_US);
	}
}

static int tail(struct builtin_ctx *x)
{
	const char *since = builtin_arg(x, "since_cursor");
	int64_t lines = strtoll(builtin_arg(x, "lines"), NULL, 10);
	sd_journal *j = NULL;
	char *last = NULL;
	bool gap = false;
	int r = open_at(x, since, lines, &j, &gap);

	if (r < 0) {
		sd_journal_close(j);
		return r == -EINVAL
			   ? builtin_fail(x, "bad_args", "args.since_cursor: is not a cursor")
			   : builtin_fail(x, "internal", "the journal cannot be read: %s",
					  strerror(-r));
	}
	jsonw_arr(x->w, "lines");
	if (r > 0)
		write_lines(j, x, lines, &last);
	jsonw_arr_end(x->w);
	jsonw_str(x->w, "next_cursor", last ? last : since);
	jsonw_bool(x->w, "gap", gap);
	free(last);
	sd_journal_close(j);
	return 0;
}

/* journald cuts a file to its size when it puts it away; who still reads behind that gets SIGBUS.
 * It comes from reading a mapped page, so the way back is safe; what was open then is closed by the
 * process' end. */
static sigjmp_buf file_was_cut;

static void on_sigbus(int sig UNUSED)
{
	siglongjmp(file_was_cut, 1);
}

int builtin_tail_logs(struct builtin_ctx *x)
{
	const struct sigaction again = {.sa_handler = on_sigbus};
	const struct jsonw begun = *x->w;
	const size_t len = x->w->out->len;
	static volatile int cut;

	/* The capability that opens journals opens every file, and who writes to the journal may be
	 * anybody. */
	const char *const folders[] = {x->cfg->journal_dir ? x->cfg->journal_dir
							   : "/var/log/journal",
				       "/run/log/journal", NULL};
	int r = confine_reads(folders);
	if (r < 0)
		return builtin_fail(x, "internal", "cannot be confined: %s", strerror(-r));
	if (sigsetjmp(file_was_cut, 1) && ++cut == OPEN_ATTEMPTS)
		return builtin_fail(x, "internal",
				    "the journal changes too quickly to be read; ask again");
	*x->w = begun;
	x->w->out->len = len;
	(void)sigaction(SIGBUS, &again, NULL);
	return tail(x);
}
