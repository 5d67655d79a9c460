/*
 * What the subcommands of viwctl share: settings, lazily opened connections, output. A subcommand
 * is a row in main.c's table: word, arguments, one line, function. It returns the exit code.
 *
 * Exit codes: 0 done; 64 usage; 69 a service did not answer; 71 system; 78 settings; 1 not found
 * or refused. `send --wait`: the command's own rc, and 110 expired, 111 cancelled, 112 rejected,
 * 113 unknown, 114 still waiting.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/settings.h"
#include "pg/pg.h"
#include "redis/redis.h"
#include "verbs/verbs.h"

enum ctl_exit {
	CTL_OK = 0,
	CTL_NO = 1,
	CTL_USAGE = 64,
	CTL_UNAVAILABLE = 69,
	CTL_SYSTEM = 71,
	CTL_CONFIG = 78,
	CTL_EXPIRED = 110,
	CTL_CANCELLED = 111,
	CTL_REJECTED = 112,
	CTL_UNKNOWN = 113,
	CTL_WAITING = 114,
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

/* <prefix>.<name> into out. */
void ctl_key(const struct ctl *c, const char *name, char *out, size_t cap);

/* ---- tables for people, JSON for programs ---- */
enum col_kind { COL_TEXT, COL_NUM, COL_JSON };
struct col {
	const char *name; /* JSON member; upper-cased as the heading */
	enum col_kind kind;
};
/* Prints a result: the query's columns are the table's, in order. */
void ctl_print_rows(const struct ctl *c, const struct col *col, size_t cols,
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
int cmd_dead_letters(struct ctl *c, int argc, char **argv);
int cmd_lost(struct ctl *c, int argc, char **argv);
