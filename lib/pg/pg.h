/*
 * PostgreSQL for blocking programs: one connection, prepared statements, transactions, arrays in
 * binary, and what an error means. libpq stays inside.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"
#include "wire/json_scan.h" /* struct span */

/* By SQLSTATE class (PostgreSQL manual, appendix A). */
enum pg_verdict {
	PG_OK,
	PG_RETRY,     /* 40* 55P03 57014: same transaction again */
	PG_RECONNECT, /* 08* 57P0x 53300 25006 26* 0A000, connection lost: outcome unknown, again
		       * after reconnect. 25006: the server became a standby; 26*, 0A000: prepared
		       * plans went stale */
	PG_BAD_DATA,  /* 22* 23* 21* 54* P0* VW*: one row is at fault: bisect */
	PG_PAUSE,     /* 53* 58* 42* 28* 3D* and all unknown: wait, alarm, again */
};
const char *pg_verdict_word(enum pg_verdict v);

struct pg;
/* uri: libpq URI or key=value list, several hosts allowed; target_session_attrs=read-write and
 * timeouts are added when absent. Connects lazily. */
int pg_new(const char *uri, const char *application_name, struct pg **ret) MUST_CHECK;
void pg_free(struct pg *p);
/* Syntax only; -EINVAL with msg that holds no password. */
int pg_uri_check(const char *uri, char *msg, size_t msg_cap) MUST_CHECK;
/* Connects if needed; PG_OK, PG_RECONNECT, PG_PAUSE. Waits 5 s a host unless the URI says
 * otherwise. */
enum pg_verdict pg_connect(struct pg *p) MUST_CHECK;
bool pg_is_connected(const struct pg *p);
/* Drops the connection; the next call connects again. */
void pg_disconnect(struct pg *p);
/* SQL run after each connect, such as SET statement_timeout. Kept by pointer. Default: statement
 * 30 s, lock 5 s, idle in transaction 60 s. */
void pg_set_session(struct pg *p, const char *sql);
/* How long one call may take before the connection is given up as dead (a frozen server answers
 * nothing, not even its own timeouts). Default 45 s; 0: no limit. */
void pg_set_deadline_ms(struct pg *p, int64_t ms);
/* Called about once a second while a statement waits for the server, so that a program stays
 * visibly alive; must not use p. NULL: nothing. */
void pg_set_on_wait(struct pg *p, void (*on_wait)(void *arg), void *arg);
/* What to do while a statement is on its way or in work: a little a call (well under a
 * millisecond), without using p. True: there is more. False: wait; also for *ret_fd (-1 before the
 * call) to turn readable, if that is set. NULL: nothing. */
void pg_set_meanwhile(struct pg *p, bool (*meanwhile)(void *arg, int *ret_fd), void *arg);
/* Text of the last failure: SQLSTATE and primary message; no row data, no password. */
const char *pg_error(const struct pg *p);
const char *pg_sqlstate(const struct pg *p); /* "" when none */
/* For callers that run out of memory while they make parameters: takes it as the last failure,
 * without a word to the server. PG_PAUSE. */
enum pg_verdict pg_no_memory(struct pg *p);
bool pg_is_no_memory(const struct pg *p); /* the last failure was that */
/* The last try to connect failed: no server, or it does not let us in. */
bool pg_is_unreachable(const struct pg *p);

/* ---- parameters ---- */
struct pg_array; /* one binary array column being built, reused between batches */
enum pg_elem { PG_TEXT, PG_INT4, PG_INT8, PG_FLOAT8, PG_TIMESTAMPTZ, PG_JSONB, PG_BYTEA, PG_BOOL };
int pg_array_new(enum pg_elem type, struct pg_array **ret) MUST_CHECK;
void pg_array_free(struct pg_array *a);
void pg_array_clear(struct pg_array *a);
/* Each appends one element; -ENOMEM. p NULL in a span: SQL NULL. Times are Unix ms. */
int pg_array_text(struct pg_array *a, struct span s) MUST_CHECK; /* TEXT, JSONB, BYTEA */
int pg_array_int(struct pg_array *a, int64_t v)
    MUST_CHECK; /* INT4, INT8, TIMESTAMPTZ, BOOL; -ERANGE when it does not fit */
int pg_array_num(struct pg_array *a, double v) MUST_CHECK;
int pg_array_null(struct pg_array *a) MUST_CHECK;
size_t pg_array_len(const struct pg_array *a);

struct pg_param {
	enum { PG_PARAM_NULL, PG_PARAM_TEXT, PG_PARAM_INT8, PG_PARAM_ARRAY } kind;
	struct span text;
	int64_t int8;
	const struct pg_array *array;
};

/* ---- statements ---- */
struct pg_stmt {
	const char *name, *sql; /* prepared on first use per connection */
};
struct pg_rows; /* result in text format */
/* rows may be NULL. */
enum pg_verdict pg_exec(struct pg *p, const struct pg_stmt *s, size_t n,
			const struct pg_param *param, struct pg_rows **ret_rows) MUST_CHECK;
enum pg_verdict pg_begin(struct pg *p) MUST_CHECK;
enum pg_verdict pg_commit(struct pg *p) MUST_CHECK; /* PG_RECONNECT: it may have committed */
void pg_rollback(struct pg *p);
/* Plain SQL without parameters, several statements allowed (migrations). */
enum pg_verdict pg_script(struct pg *p, const char *sql) MUST_CHECK;
/* The same after something else, whose error pg_error goes on to tell. Where it fails the
 * connection is given up, and with it whatever was to be undone. */
void pg_tidy(struct pg *p, const char *sql);

size_t pg_rows_len(const struct pg_rows *r);
struct span pg_rows_text(const struct pg_rows *r, size_t row, size_t col); /* p NULL: SQL NULL */
int64_t pg_rows_int(const struct pg_rows *r, size_t row, size_t col);
uint64_t pg_rows_affected(const struct pg_rows *r);
void pg_rows_free(struct pg_rows *r);
