#include "migrations.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "crypto/crypto.h"

enum { FILE_MAX = 4 << 20, LOCK_WAIT_MS = 60000, LOCK_TRIES = 20, LOCK_PAUSE_MS = 500 };

/* hashtext-like constant of our own: "viw" in ASCII and a version. */
#define LOCK_SQL       "SELECT pg_try_advisory_lock(7760631, 1)"
#define NO_TRANSACTION "-- viw: no transaction\n"

/* ---- the files ---- */

void migrations_fini(struct migrations *m)
{
	for (size_t i = 0; i < m->n; i++) {
		free(m->item[i].name);
		free(m->item[i].sql);
	}
	free(m->item);
	*m = (struct migrations){0};
}

static bool name_is_numbered(const char *name)
{
	for (int i = 0; i < 4; i++)
		if (!isdigit((unsigned char)name[i]))
			return false;
	return name[4] == '_' && name[5];
}

static int by_number(const void *a, const void *b)
{
	const struct migration *x = a, *y = b;

	return (x->number > y->number) - (x->number < y->number);
}

/* name without ".sql". */
static int migrations_add(struct migrations *m, const char *name, size_t name_n, const char *sql,
			  size_t sql_n)
{
	struct migration *larger = realloc(m->item, (m->n + 1) * sizeof *larger);
	uint8_t sum[SHA256_BYTES];

	if (!larger)
		return -ENOMEM;
	m->item = larger;
	struct migration *x = &m->item[m->n];
	*x = (struct migration){.number = (unsigned)strtoul(name, NULL, 10)};
	x->name = strndup(name, name_n);
	x->sql = strndup(sql, sql_n);
	m->n++;
	if (!x->name || !x->sql)
		return -ENOMEM;
	crypto_sha256(sql, sql_n, sum);
	crypto_hex(sum, sizeof sum, x->checksum);
	return 0;
}

static int migrations_sort(struct migrations *m, char *msg, size_t msg_cap)
{
	if (m->n)
		qsort(m->item, m->n, sizeof *m->item, by_number);
	for (size_t i = 1; i < m->n; i++) {
		if (m->item[i].number != m->item[i - 1].number)
			continue;
		snprintf(msg, msg_cap, "two migrations have number %04u: %s and %s",
			 m->item[i].number, m->item[i - 1].name, m->item[i].name);
		return -EEXIST;
	}
	return 0;
}

static int migrations_add_file(struct migrations *m, const char *dir, const char *file, char *msg,
			       size_t msg_cap)
{
	CLEANUP(buf_fini) struct buf text;
	CLEANUP(freep) char *path = NULL;

	buf_init(&text, FILE_MAX);
	if (asprintf(&path, "%s/%s", dir, file) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	int r = file_read(path, &text);
	if (r == 0 && text.len && strlen(text.data) != text.len)
		r = -EINVAL;
	if (r == 0)
		r = migrations_add(m, file, strlen(file) - 4, text.len ? text.data : "", text.len);
	if (r < 0)
		snprintf(msg, msg_cap, "%s: %s", path, strerror(-r));
	return r;
}

static void closedirp(DIR **d)
{
	if (*d)
		closedir(*d);
}

int migrations_from_dir(const char *dir, struct migrations *ret, char *msg, size_t msg_cap)
{
	CLEANUP(migrations_fini) struct migrations m = {0};
	CLEANUP(closedirp) DIR *d = opendir(dir);
	struct dirent *e;

	if (!d) {
		int r = -errno;
		snprintf(msg, msg_cap, "%s: %s", dir, strerror(-r));
		return r;
	}
	while ((e = readdir(d))) {
		size_t n = strlen(e->d_name);
		if (n < 10 || strcmp(e->d_name + n - 4, ".sql") != 0 ||
		    !name_is_numbered(e->d_name))
			continue;
		int r = migrations_add_file(&m, dir, e->d_name, msg, msg_cap);
		if (r < 0)
			return r;
	}
	int r = migrations_sort(&m, msg, msg_cap);
	if (r < 0)
		return r;
	*ret = m;
	m = (struct migrations){0};
	return 0;
}

int migrations_from_texts(const struct migration_text *text, struct migrations *ret, char *msg,
			  size_t msg_cap)
{
	CLEANUP(migrations_fini) struct migrations m = {0};
	int r = 0;

	for (; r == 0 && text->name; text++)
		r = migrations_add(&m, text->name, strlen(text->name), text->sql,
				   strlen(text->sql));
	if (r < 0)
		snprintf(msg, msg_cap, "%s", strerror(-r));
	else
		r = migrations_sort(&m, msg, msg_cap);
	if (r < 0)
		return r;
	*ret = m;
	m = (struct migrations){0};
	return 0;
}

/* ---- the database ---- */

static void pg_rows_freep(struct pg_rows **r)
{
	pg_rows_free(*r);
}

static struct migration *migrations_find(struct migrations *m, int64_t number)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->item[i].number == number)
			return &m->item[i];
	return NULL;
}

enum pg_verdict migrations_load_state(struct migrations *m, struct pg *p)
{
	static const struct pg_stmt exists = {
	    "mig_exists", "SELECT to_regclass('schema_migrations') IS NOT NULL"};
	static const struct pg_stmt applied = {
	    "mig_applied", "SELECT version, checksum, to_char(applied_at AT TIME ZONE 'UTC', "
			   "'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM schema_migrations"};
	CLEANUP(pg_rows_freep) struct pg_rows *there = NULL;
	CLEANUP(pg_rows_freep) struct pg_rows *rows = NULL;

	m->unknown = 0;
	enum pg_verdict v = pg_exec(p, &exists, 0, NULL, &there);
	if (v != PG_OK || !span_eq(pg_rows_text(there, 0, 0), "t"))
		return v;
	v = pg_exec(p, &applied, 0, NULL, &rows);
	if (v != PG_OK)
		return v;
	for (size_t i = 0; i < pg_rows_len(rows); i++) {
		struct migration *x = migrations_find(m, pg_rows_int(rows, i, 0));
		if (!x) {
			m->unknown++;
			continue;
		}
		x->applied = true;
		x->changed = !span_eq(pg_rows_text(rows, i, 1), x->checksum);
		if (span_copy(pg_rows_text(rows, i, 2), x->applied_at, sizeof x->applied_at) < 0)
			x->applied_at[0] = '\0';
	}
	return PG_OK;
}

static void pause_ms(unsigned ms)
{
	usleep(ms * 1000);
}

/* The lock dies with the session, so nothing has to be cleaned up. */
static enum migrations_end migrations_lock(struct pg *p)
{
	static const struct pg_stmt lock = {"mig_lock", LOCK_SQL};
	int64_t until_ms = clock_boot_ms() + LOCK_WAIT_MS;

	for (;;) {
		CLEANUP(pg_rows_freep) struct pg_rows *rows = NULL;
		if (pg_exec(p, &lock, 0, NULL, &rows) != PG_OK)
			return MIGRATIONS_FAILED;
		if (span_eq(pg_rows_text(rows, 0, 0), "t"))
			return MIGRATIONS_DONE;
		if (clock_boot_ms() >= until_ms)
			return MIGRATIONS_LOCKED;
		pause_ms(100);
	}
}

static enum pg_verdict migration_record(const struct migration *x, struct pg *p,
					int64_t duration_ms)
{
	static const struct pg_stmt record = {
	    "mig_record", "INSERT INTO schema_migrations (version, name, checksum, duration_ms) "
			  "VALUES ($1, $2, $3, $4)"};
	const struct pg_param param[] = {
	    {.kind = PG_PARAM_INT8, .int8 = x->number},
	    {.kind = PG_PARAM_TEXT, .text = span_of(x->name)},
	    {.kind = PG_PARAM_TEXT, .text = span_of(x->checksum)},
	    {.kind = PG_PARAM_INT8, .int8 = duration_ms},
	};

	return pg_exec(p, &record, ARRAY_LEN(param), param, NULL);
}

static enum pg_verdict migration_try(const struct migration *x, struct pg *p)
{
	bool transaction = strncmp(x->sql, NO_TRANSACTION, sizeof NO_TRANSACTION - 1) != 0;
	int64_t from_ms = clock_boot_ms();
	enum pg_verdict v = transaction ? pg_begin(p) : PG_OK;

	if (v == PG_OK)
		v = pg_script(p, x->sql);
	if (v == PG_OK)
		v = migration_record(x, p, clock_boot_ms() - from_ms);
	if (v == PG_OK && transaction)
		v = pg_commit(p);
	if (v != PG_OK)
		pg_rollback(p);
	return v;
}

static enum pg_verdict migration_apply(const struct migration *x, struct pg *p)
{
	enum pg_verdict v = PG_OK;

	for (int i = 0; i < LOCK_TRIES; i++) {
		v = migration_try(x, p);
		if (v != PG_RETRY)
			return v;
		pause_ms(LOCK_PAUSE_MS);
	}
	return v;
}

static enum migrations_end migrations_check(const struct migrations *m,
					    const struct migration **ret_at)
{
	bool pending = false;

	for (size_t i = 0; i < m->n; i++) {
		const struct migration *x = &m->item[i];
		if (!x->applied && !pending) {
			pending = true;
			*ret_at = x;
		}
		if (x->changed) {
			*ret_at = x;
			return MIGRATIONS_CHANGED;
		}
		if (x->applied && pending)
			return MIGRATIONS_GAP;
	}
	*ret_at = NULL;
	return MIGRATIONS_DONE;
}

/* Elsewhere a frame with one \u escape, or a character the encoding lacks, stops what it should
 * become a row of. What is set up already is left as it is. */
static enum migrations_end migrations_check_encoding(const struct migrations *m, struct pg *p)
{
	static const struct pg_stmt ask = {"mig_encoding",
					   "SELECT current_setting('server_encoding') = 'UTF8'"};
	CLEANUP(pg_rows_freep) struct pg_rows *rows = NULL;

	if (m->unknown || (m->n && m->item[0].applied))
		return MIGRATIONS_DONE;
	if (pg_exec(p, &ask, 0, NULL, &rows) != PG_OK)
		return MIGRATIONS_FAILED;
	return span_eq(pg_rows_text(rows, 0, 0), "t") ? MIGRATIONS_DONE : MIGRATIONS_NOT_UTF8;
}

enum migrations_end migrations_apply(struct migrations *m, struct pg *p,
				     void (*on_applied)(const char *name, int64_t duration_ms),
				     const struct migration **ret_at)
{
	static const char table[] =
	    "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, "
	    "name text NOT NULL, checksum text NOT NULL, "
	    "applied_at timestamptz NOT NULL DEFAULT now(), "
	    "duration_ms bigint NOT NULL)";

	*ret_at = NULL;
	enum migrations_end end = migrations_lock(p);
	if (end != MIGRATIONS_DONE)
		return end;
	if (migrations_load_state(m, p) != PG_OK)
		return MIGRATIONS_FAILED;
	end = migrations_check_encoding(m, p);
	if (end != MIGRATIONS_DONE)
		return end;
	if (pg_script(p, table) != PG_OK)
		return MIGRATIONS_FAILED;
	end = migrations_check(m, ret_at);
	if (end != MIGRATIONS_DONE)
		return end;
	for (size_t i = 0; i < m->n; i++) {
		struct migration *x = &m->item[i];
		if (x->applied)
			continue;
		int64_t from_ms = clock_boot_ms();
		if (migration_apply(x, p) != PG_OK) {
			*ret_at = x;
			return MIGRATIONS_FAILED;
		}
		x->applied = true;
		on_applied(x->name, clock_boot_ms() - from_ms);
	}
	return MIGRATIONS_DONE;
}
