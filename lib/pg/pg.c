/*
 * One connection. States: none → connected → (failure) → none; a transaction is the server's
 * state, not ours. Every wait has a deadline of our own, because a frozen server keeps the socket
 * open and its timeouts cannot fire.
 */
#include "pg/pg.h"

#include <assert.h>
#include <errno.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pg/array.h"
#include "pg/sqlstate.h"

enum { STMT_MAX = 64, PARAM_MAX = 64, ERROR_MAX = 512, WAIT_MS = 1000 };

struct pg {
	PQconninfoOption *uri;
	char *application_name;
	PGconn *conn;
	const char *session_sql;
	int64_t deadline_ms;
	void (*on_wait)(void *arg);
	void *on_wait_arg;
	bool (*meanwhile)(void *arg, int *ret_fd);
	void *meanwhile_arg;
	const struct pg_stmt *prepared[STMT_MAX];
	size_t n_prepared;
	bool unreachable; /* the last try to connect failed */
	char sqlstate[6];
	char error[ERROR_MAX];
};

struct pg_rows {
	PGresult *res;
};

/* What a URI that does not say gets. Dead peers are found by TCP within about 15 s. */
static const struct {
	const char *keyword, *value;
} conn_default[] = {
    {"target_session_attrs", "read-write"},
    {"connect_timeout", "5"},
    {"keepalives_idle", "5"},
    {"keepalives_interval", "3"},
    {"keepalives_count", "3"},
    {"tcp_user_timeout", "15000"},
    {"client_encoding", "UTF8"},
};

/* Whatever the role or the database has been given. By name where a server may not know them: an
 * idle connection that is ended reads like an outage. What is committed must be there after a crash
 * of the server, for then Redis is told to forget it. */
static const char default_session[] =
    "SET statement_timeout = '30s'; SET lock_timeout = '5s'; "
    "SET idle_in_transaction_session_timeout = '60s'; SET timezone = 'UTC'; "
    "SELECT set_config(name, '0', false) FROM pg_settings "
    "WHERE name IN ('idle_session_timeout', 'transaction_timeout') UNION ALL "
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'";

/* ---- errors ---- */

static void pg_clear_error(struct pg *p)
{
	p->sqlstate[0] = '\0';
	p->error[0] = '\0';
}

static void pg_set_error(struct pg *p, const char *state, const char *text)
{
	snprintf(p->sqlstate, sizeof p->sqlstate, "%s", state);
	snprintf(p->error, sizeof p->error, "%s%s%s", state, state[0] ? ": " : "", text);
	size_t n = strlen(p->error);
	while (n && (p->error[n - 1] == '\n' || p->error[n - 1] == ' '))
		p->error[--n] = '\0';
	for (size_t i = 0; i < n; i++)
		if (p->error[i] == '\n')
			p->error[i] = ' ';
}

/* Takes the error out of res. Messages of class 22 quote the value after a colon: cut there. */
static enum pg_verdict pg_fail_result(struct pg *p, const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	char cut[ERROR_MAX];

	snprintf(cut, sizeof cut, "%s", text ? text : PQresultErrorMessage(res));
	if (state && strncmp(state, "22", 2) == 0)
		cut[strcspn(cut, ":\"")] = '\0';
	pg_set_error(p, state ? state : "", cut);
	enum pg_verdict v = sqlstate_verdict(p->sqlstate);
	if (v == PG_RECONNECT || PQstatus(p->conn) == CONNECTION_BAD) {
		pg_disconnect(p);
		return PG_RECONNECT;
	}
	return v;
}

static enum pg_verdict pg_fail_conn(struct pg *p, const char *text)
{
	pg_set_error(p, "", text);
	pg_disconnect(p);
	return PG_RECONNECT;
}

static const char no_memory_text[] = "no memory for parameters";

enum pg_verdict pg_no_memory(struct pg *p)
{
	pg_set_error(p, "", no_memory_text);
	return PG_PAUSE;
}

bool pg_is_no_memory(const struct pg *p)
{
	return strcmp(p->error, no_memory_text) == 0;
}

const char *pg_error(const struct pg *p)
{
	return p->error;
}

bool pg_is_unreachable(const struct pg *p)
{
	return p->unreachable;
}

const char *pg_sqlstate(const struct pg *p)
{
	return p->sqlstate;
}

/* ---- connection ---- */

int pg_uri_check(const char *uri, char *msg, size_t msg_cap)
{
	PQconninfoOption *o = PQconninfoParse(uri, NULL);

	if (o) {
		PQconninfoFree(o);
		return 0;
	}
	/* libpq's own text quotes the URI, password and all. */
	snprintf(msg, msg_cap,
		 "not a libpq connection string; expected postgresql://user@host:port/database");
	return -EINVAL;
}

int pg_new(const char *uri, const char *application_name, struct pg **ret)
{
	PQconninfoOption *o = PQconninfoParse(uri, NULL);

	if (!o)
		return -EINVAL;
	struct pg *p = calloc(1, sizeof *p);
	if (p)
		p->application_name = strdup(application_name);
	if (!p || !p->application_name) {
		PQconninfoFree(o);
		free(p);
		return -ENOMEM;
	}
	p->uri = o;
	p->session_sql = default_session;
	p->deadline_ms = 45000;
	*ret = p;
	return 0;
}

void pg_free(struct pg *p)
{
	if (!p)
		return;
	pg_disconnect(p);
	for (PQconninfoOption *o = p->uri; o->keyword; o++)
		if (o->val)
			explicit_bzero(o->val, strlen(o->val));
	PQconninfoFree(p->uri);
	free(p->application_name);
	free(p);
}

void pg_set_session(struct pg *p, const char *sql)
{
	p->session_sql = sql;
}

void pg_set_deadline_ms(struct pg *p, int64_t ms)
{
	p->deadline_ms = ms;
}

void pg_set_on_wait(struct pg *p, void (*on_wait)(void *arg), void *arg)
{
	p->on_wait = on_wait;
	p->on_wait_arg = arg;
}

void pg_set_meanwhile(struct pg *p, bool (*meanwhile)(void *arg, int *ret_fd), void *arg)
{
	p->meanwhile = meanwhile;
	p->meanwhile_arg = arg;
}

void pg_disconnect(struct pg *p)
{
	if (p->conn)
		PQfinish(p->conn);
	p->conn = NULL;
	p->n_prepared = 0;
}

bool pg_is_connected(const struct pg *p)
{
	return p->conn && PQstatus(p->conn) == CONNECTION_OK;
}

static void on_notice(void *arg UNUSED, const char *text UNUSED)
{
}

static const char *uri_value(const struct pg *p, const char *keyword)
{
	for (PQconninfoOption *o = p->uri; o->keyword; o++)
		if (o->val && strcmp(o->keyword, keyword) == 0)
			return o->val;
	return NULL;
}

static PGconn *pg_dial(const struct pg *p)
{
	const char *keyword[64], *value[64];
	size_t n = 0;

	for (PQconninfoOption *o = p->uri; o->keyword && n < 48; o++) {
		if (!o->val)
			continue;
		keyword[n] = o->keyword;
		value[n++] = o->val;
	}
	for (size_t i = 0; i < ARRAY_LEN(conn_default); i++) {
		if (uri_value(p, conn_default[i].keyword))
			continue;
		keyword[n] = conn_default[i].keyword;
		value[n++] = conn_default[i].value;
	}
	keyword[n] = "fallback_application_name";
	value[n++] = p->application_name;
	keyword[n] = value[n] = NULL;
	return PQconnectdbParams(keyword, value, 0);
}

enum pg_verdict pg_connect(struct pg *p)
{
	if (pg_is_connected(p))
		return PG_OK;
	pg_disconnect(p);
	p->conn = pg_dial(p);
	if (!p->conn)
		return pg_fail_conn(p, "out of memory");
	if (PQstatus(p->conn) != CONNECTION_OK) {
		char text[ERROR_MAX];
		snprintf(text, sizeof text, "%s", PQerrorMessage(p->conn));
		p->unreachable = true;
		return pg_fail_conn(p, text);
	}
	p->unreachable = false;
	PQsetNoticeProcessor(p->conn, on_notice, NULL);
	if (PQsetnonblocking(p->conn, 1) != 0)
		return pg_fail_conn(p, "cannot make the socket non-blocking");
	enum pg_verdict v = p->session_sql[0] ? pg_script(p, p->session_sql) : PG_OK;
	if (v != PG_OK)
		pg_disconnect(p); /* else it would be used without its settings */
	return v;
}

/* ---- waiting ---- */

static int64_t monotonic_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Sends what is queued and reads until a result can be taken. False: broken or too late. */
static bool pg_await(struct pg *p, int64_t until_ms)
{
	for (;;) {
		int unsent = PQflush(p->conn);
		if (unsent < 0)
			return false;
		if (!unsent && !PQisBusy(p->conn))
			return true;
		int64_t left = until_ms ? until_ms - monotonic_ms() : -1;
		if (until_ms && left <= 0)
			return false;
		struct pollfd fd[] = {
		    {.fd = PQsocket(p->conn), .events = (short)(POLLIN | (unsent ? POLLOUT : 0))},
		    {.fd = -1, .events = POLLIN}};
		bool more = p->meanwhile && p->meanwhile(p->meanwhile_arg, &fd[1].fd);
		if (p->on_wait && (left < 0 || left > WAIT_MS))
			left = WAIT_MS;
		int ready = poll(fd, ARRAY_LEN(fd), more ? 0 : (int)left);
		if (ready < 0 && errno != EINTR)
			return false;
		if (ready == 0 && !more && p->on_wait)
			p->on_wait(p->on_wait_arg);
		if ((fd[0].revents & (POLLIN | POLLERR | POLLHUP)) && !PQconsumeInput(p->conn))
			return false;
	}
}

/* Takes all results of what was sent; keeps the first error, else the last result. */
static enum pg_verdict pg_finish(struct pg *p, PGresult **ret)
{
	int64_t until_ms = p->deadline_ms ? monotonic_ms() + p->deadline_ms : 0;
	PGresult *kept = NULL;

	for (;;) {
		if (!pg_await(p, until_ms)) {
			char text[ERROR_MAX];
			bool late = PQstatus(p->conn) == CONNECTION_OK;
			snprintf(text, sizeof text, "%s",
				 late ? "no answer within the deadline" : PQerrorMessage(p->conn));
			PQclear(kept);
			return pg_fail_conn(p, text);
		}
		PGresult *res = PQgetResult(p->conn);
		if (!res)
			break;
		bool failed = kept && PQresultStatus(kept) == PGRES_FATAL_ERROR;
		PQclear(failed ? res : kept);
		if (!failed)
			kept = res;
	}
	if (!kept)
		return pg_fail_conn(p, "no result");
	ExecStatusType s = PQresultStatus(kept);
	if (s == PGRES_COMMAND_OK || s == PGRES_TUPLES_OK) {
		*ret = kept;
		return PG_OK;
	}
	enum pg_verdict v = pg_fail_result(p, kept);
	PQclear(kept);
	return v;
}

static enum pg_verdict pg_finish_quiet(struct pg *p)
{
	PGresult *res = NULL;
	enum pg_verdict v = pg_finish(p, &res);

	PQclear(res);
	return v;
}

/* ---- statements ---- */

static enum pg_verdict pg_prepare(struct pg *p, const struct pg_stmt *s)
{
	for (size_t i = 0; i < p->n_prepared; i++)
		if (p->prepared[i] == s)
			return PG_OK;
	assert(p->n_prepared < STMT_MAX);
	if (!PQsendPrepare(p->conn, s->name, s->sql, 0, NULL))
		return pg_fail_conn(p, PQerrorMessage(p->conn));
	enum pg_verdict v = pg_finish_quiet(p);
	if (v == PG_OK)
		p->prepared[p->n_prepared++] = s;
	return v;
}

struct bound { /* parameters as libpq takes them */
	const char *value[PARAM_MAX];
	int length[PARAM_MAX], format[PARAM_MAX];
	char number[PARAM_MAX][24];
	char *text[PARAM_MAX]; /* copies with a NUL */
};

static void bound_fini(struct bound *b)
{
	for (size_t i = 0; i < PARAM_MAX; i++)
		free(b->text[i]);
}

static int bound_set(struct bound *b, size_t i, const struct pg_param *q)
{
	switch (q->kind) {
	case PG_PARAM_NULL:
		return 0;
	case PG_PARAM_TEXT:
		if (!q->text.p)
			return 0;
		b->text[i] = strndup(q->text.p, q->text.n);
		b->value[i] = b->text[i];
		return b->text[i] ? 0 : -ENOMEM;
	case PG_PARAM_INT8:
		snprintf(b->number[i], sizeof b->number[i], "%lld", (long long)q->int8);
		b->value[i] = b->number[i];
		return 0;
	case PG_PARAM_ARRAY: {
		struct span bytes = pg_array_bytes(q->array);
		b->value[i] = bytes.p;
		b->length[i] = (int)bytes.n;
		b->format[i] = 1;
		return 0;
	}
	}
	return -EINVAL;
}

enum pg_verdict pg_exec(struct pg *p, const struct pg_stmt *s, size_t n,
			const struct pg_param *param, struct pg_rows **ret_rows)
{
	CLEANUP(bound_fini) struct bound b = {0};

	assert(n <= PARAM_MAX);
	pg_clear_error(p);
	enum pg_verdict v = pg_connect(p);
	if (v == PG_OK)
		v = pg_prepare(p, s);
	if (v != PG_OK)
		return v;
	for (size_t i = 0; i < n; i++)
		if (bound_set(&b, i, &param[i]) < 0)
			return pg_fail_conn(p, "out of memory");
	if (!PQsendQueryPrepared(p->conn, s->name, (int)n, b.value, b.length, b.format, 0))
		return pg_fail_conn(p, PQerrorMessage(p->conn));
	PGresult *res = NULL;
	v = pg_finish(p, &res);
	if (v != PG_OK)
		return v;
	if (!ret_rows) {
		PQclear(res);
		return PG_OK;
	}
	struct pg_rows *rows = calloc(1, sizeof *rows);
	if (!rows) {
		PQclear(res);
		return pg_fail_conn(p, "out of memory");
	}
	rows->res = res;
	*ret_rows = rows;
	return PG_OK;
}

enum pg_verdict pg_script(struct pg *p, const char *sql)
{
	pg_clear_error(p);
	enum pg_verdict v = pg_connect(p);
	if (v != PG_OK)
		return v;
	if (!PQsendQuery(p->conn, sql))
		return pg_fail_conn(p, PQerrorMessage(p->conn));
	return pg_finish_quiet(p);
}

enum pg_verdict pg_begin(struct pg *p)
{
	return pg_script(p, "BEGIN");
}

enum pg_verdict pg_commit(struct pg *p)
{
	/* A connection lost since BEGIN must not be made anew for the COMMIT alone, and the server
	 * takes a COMMIT without a transaction, or of a failed one, without an error. */
	if (!pg_is_connected(p))
		return PG_RECONNECT;
	if (PQtransactionStatus(p->conn) != PQTRANS_INTRANS)
		return pg_fail_conn(p, "no transaction to commit");
	return pg_script(p, "COMMIT");
}

void pg_tidy(struct pg *p, const char *sql)
{
	char state[sizeof p->sqlstate], error[sizeof p->error];

	if (!pg_is_connected(p))
		return;
	memcpy(state, p->sqlstate, sizeof state);
	memcpy(error, p->error, sizeof error);
	if (pg_script(p, sql) != PG_OK)
		pg_disconnect(p);
	memcpy(p->sqlstate, state, sizeof state);
	memcpy(p->error, error, sizeof error);
}

void pg_rollback(struct pg *p)
{
	if (pg_is_connected(p) && PQtransactionStatus(p->conn) != PQTRANS_IDLE)
		pg_tidy(p, "ROLLBACK");
}

/* ---- rows ---- */

size_t pg_rows_len(const struct pg_rows *r)
{
	return (size_t)PQntuples(r->res);
}

struct span pg_rows_text(const struct pg_rows *r, size_t row, size_t col)
{
	int i = (int)row, j = (int)col;

	if (PQgetisnull(r->res, i, j))
		return (struct span){0};
	return (struct span){PQgetvalue(r->res, i, j), (size_t)PQgetlength(r->res, i, j)};
}

int64_t pg_rows_int(const struct pg_rows *r, size_t row, size_t col)
{
	return strtoll(PQgetvalue(r->res, (int)row, (int)col), NULL, 10);
}

uint64_t pg_rows_affected(const struct pg_rows *r)
{
	return strtoull(PQcmdTuples(r->res), NULL, 10);
}

void pg_rows_free(struct pg_rows *r)
{
	if (!r)
		return;
	PQclear(r->res);
	free(r);
}
