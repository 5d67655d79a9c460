/*
 * What the subcommands of viwctl share: settings, lazily opened connections, options, output. A
 * subcommand is a row of subcommands.def, its options are rows of options.def, exit codes of
 * exits.def. It returns the exit code.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/jsonw.h"
#include "base/settings.h"
#include "pg/pg.h"
#include "redis/redis.h"
#include "verbs/verbs.h"

enum ctl_exit {
#define EXIT(name, code, line) CTL_##name = (code),
#include "exits.def"
#undef EXIT
};

struct viwctl_settings {
#define SETTING SETTING_FIELD
#include "viwctl_settings.def"
#undef SETTING
};
extern const struct settings_spec viwctl_settings_spec;

struct ctl {
	struct viwctl_settings cfg;
	struct pg *pg;
	struct redis_sync *redis;
	struct verbs *verbs;
	bool json;
};

/* Each opens on first use and says on stderr what is wrong: NULL then. */
struct pg *ctl_pg(struct ctl *c);
struct redis_sync *ctl_redis(struct ctl *c);
/* Manifests; built-in verbs only when VERBS_DIR is unset. NULL after saying why. */
const struct verbs *ctl_verbs(struct ctl *c);
void ctl_fini(struct ctl *c);

/* Query with text parameters (NULL: SQL NULL); NULL after saying why on stderr. */
struct pg_rows *ctl_query(struct ctl *c, const struct pg_stmt *s, size_t n,
			  const char *const *param);

/* "error: …" on stderr. */
void ctl_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* What ctl_error said last; "" at first. */
const char *ctl_last_error(void);

/* <prefix>.<name> into out. */
void ctl_key(const struct ctl *c, const char *name, char *out, size_t cap);

/* ---- options ---- */
#define CTL_OPTION_HELP 256
/* The next option of the word: its key in options.def, with optarg; -1 at the end (optind is the
 * first operand); '?' or CTL_OPTION_HELP once the usage has been shown. */
int ctl_option(const char *word, int argc, char **argv);
/* For a word with no options and so many operands (-1: any): *ret_end says to leave with the
 * returned exit code, else optind is the first operand. */
int ctl_no_options(const char *word, int argc, char **argv, int operands, bool *ret_end) MUST_CHECK;
/* A number of an option or operand: digits and nothing else, within the bounds; false after saying
 * what `what` must be. */
bool ctl_number(const char *what, const char *text, long min, long max, long *ret) MUST_CHECK;
/* Calls and options of the word. */
void ctl_usage(const char *word, FILE *out);

/* ---- tables for people, JSON for programs ---- */
enum col_kind { COL_TEXT, COL_NUM, COL_JSON };
struct col {
	const char *name; /* JSON member; upper-cased as the heading */
	enum col_kind kind;
};
/* Prints a result: the query's columns are the table's, in order. */
void ctl_print_rows(const struct ctl *c, const struct col *col, size_t cols,
		    const struct pg_rows *r);
/* The same as the JSON array `key` of w. */
void ctl_put_rows(struct jsonw *w, const char *key, const struct col *col, size_t cols,
		  const struct pg_rows *r);
/* One row as "name  value" lines, or one JSON object. */
void ctl_print_row(const struct ctl *c, const struct col *col, size_t cols, const struct pg_rows *r,
		   size_t row);
/* A span for a terminal: control bytes become '?'; at most width columns. */
void ctl_print_safe(struct span s);

int cmd_gateways(struct ctl *c, int argc, char **argv);
int cmd_send(struct ctl *c, int argc, char **argv);
int cmd_command(struct ctl *c, int argc, char **argv);
int cmd_cancel(struct ctl *c, int argc, char **argv);
int cmd_logs(struct ctl *c, int argc, char **argv);
int cmd_top(struct ctl *c, int argc, char **argv);
int cmd_enroll(struct ctl *c, int argc, char **argv);
int cmd_doctor(struct ctl *c, int argc, char **argv);
int cmd_rotation_check(struct ctl *c, int argc, char **argv);
int cmd_completion(struct ctl *c, int argc, char **argv);
int cmd_dead_letters(struct ctl *c, int argc, char **argv);
int cmd_lost(struct ctl *c, int argc, char **argv);
