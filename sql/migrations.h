/*
 * Schema migrations: numbered, forward-only, checksummed. Each is one transaction together with
 * its row in schema_migrations; a first line `-- viw: no transaction` lifts that for statements
 * that refuse one (CREATE INDEX CONCURRENTLY), which must then be safe to repeat.
 *
 * One run at a time (advisory lock). Locks on tables are waited for 3 s and then given up and
 * tried again, so that a migration never queues all other work behind itself.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pg/pg.h"

struct migration_text {
	const char *name; /* "0001_roles" */
	const char *sql;
};
extern const struct migration_text migrations_embedded[]; /* ends with a NULL name */

struct migration {
	unsigned number;
	char *name, *sql;
	char checksum[65]; /* SHA-256, hex */
	/* From the database: */
	bool applied, changed;
	char applied_at[32];
};
struct migrations {
	struct migration *item; /* by number */
	size_t n;
	size_t unknown; /* applied, but not known to this build */
};

/* Faults go to msg. Names other than NNNN_name.sql are skipped; two with one number: -EEXIST. */
int migrations_from_dir(const char *dir, struct migrations *ret, char *msg,
			size_t msg_cap) MUST_CHECK;
int migrations_from_texts(const struct migration_text *text, struct migrations *ret, char *msg,
			  size_t msg_cap) MUST_CHECK;
void migrations_fini(struct migrations *m);

/* Reads what is applied. A database without schema_migrations has nothing applied. */
enum pg_verdict migrations_load_state(struct migrations *m, struct pg *p) MUST_CHECK;

enum migrations_end {
	MIGRATIONS_DONE,
	MIGRATIONS_LOCKED,   /* another run holds the lock for over 60 s */
	MIGRATIONS_CHANGED,  /* an applied file differs from what was applied */
	MIGRATIONS_GAP,	     /* a pending number is lower than an applied one */
	MIGRATIONS_NOT_UTF8, /* an empty database of another encoding */
	MIGRATIONS_FAILED,   /* pg_error says why; *ret_at is the one that failed */
};
/* Applies what is pending; on_applied(name, duration_ms) after each. */
enum migrations_end migrations_apply(struct migrations *m, struct pg *p,
				     void (*on_applied)(const char *name, int64_t duration_ms),
				     const struct migration **ret_at) MUST_CHECK;
