/* viw-migrate: brings a database to this build's schema. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/program.h"
#include "migrations.h"

static const char usage[] =
    "viw-migrate [--status] [--dir DIR] [<libpq URI>]\n"
    "\n"
    "Applies the pending schema migrations, in order, each once. Safe to repeat and to run twice\n"
    "at once, and on a live system: it waits for locks 3 s at a time.\n"
    "\n"
    "  --status   show each migration and change nothing; exit 1 when one is pending\n"
    "  --dir DIR  take NNNN_name.sql from DIR instead of those built in\n"
    "  --version  show the version\n"
    "\n"
    "Without a URI: VIW_DATABASE_URL from the environment, where a password belongs (any user of\n"
    "the host can read command lines).\n"
    "Exit codes: 0 done, 1 pending, 69 database away or refused, 78 wrong use, changed files, or "
    "no UTF8.\n";

struct options {
	const char *uri, *dir;
	bool status;
};

/* Run before each session of ours: no limit on a migration's own work, short waits for locks. */
static const char session[] = "SET statement_timeout = 0; SET lock_timeout = '3s'; "
			      "SET client_min_messages = warning; SET timezone = 'UTC'";

static int options_parse(int argc, char **argv, struct options *o)
{
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--status") == 0) {
			o->status = true;
		} else if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc) {
			o->dir = argv[++i];
		} else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			fputs(usage, stdout);
			return PROGRAM_OK;
		} else if (strcmp(argv[i], "--version") == 0) {
			printf("viw-migrate %s\n", VIW_VERSION);
			return PROGRAM_OK;
		} else if (argv[i][0] != '-' && !o->uri) {
			o->uri = argv[i];
		} else {
			fprintf(stderr, "viw-migrate: unknown argument %s\n%s", argv[i], usage);
			return PROGRAM_CONFIG;
		}
	}
	if (!o->uri)
		o->uri = getenv("VIW_DATABASE_URL");
	if (o->uri)
		return -1;
	fprintf(stderr, "viw-migrate: no database given\n%s", usage);
	return PROGRAM_CONFIG;
}

static void print_applied(const char *name, int64_t duration_ms)
{
	printf("applied %s in %lld ms\n", name, (long long)duration_ms);
	fflush(stdout);
}

static int show_status(struct migrations *m, struct pg *p)
{
	bool pending = false, changed = false;

	if (migrations_load_state(m, p) != PG_OK) {
		fprintf(stderr, "viw-migrate: %s\n", pg_error(p));
		return PROGRAM_UNAVAILABLE;
	}
	for (size_t i = 0; i < m->n; i++) {
		const struct migration *x = &m->item[i];
		pending |= !x->applied;
		changed |= x->changed;
		printf("%-32s %s%s%s\n", x->name, x->applied ? "applied " : "pending",
		       x->applied_at,
		       x->changed ? "  CHANGED since: its text is not what was applied" : "");
	}
	if (m->unknown)
		printf("%zu applied by a newer build\n", m->unknown);
	return changed ? PROGRAM_CONFIG : pending ? 1 : PROGRAM_OK;
}

static int apply(struct migrations *m, struct pg *p)
{
	const struct migration *at = NULL;

	switch (migrations_apply(m, p, print_applied, &at)) {
	case MIGRATIONS_DONE:
		puts(m->unknown ? "schema is newer than this build; nothing to do"
				: "schema is up to date");
		return PROGRAM_OK;
	case MIGRATIONS_LOCKED:
		fprintf(stderr,
			"viw-migrate: another run has held the lock for 60 s; try again later\n");
		return PROGRAM_UNAVAILABLE;
	case MIGRATIONS_CHANGED:
		fprintf(stderr,
			"viw-migrate: %s was changed after it had been applied; restore the file "
			"and put "
			"the change into a new one\n",
			at->name);
		return PROGRAM_CONFIG;
	case MIGRATIONS_GAP:
		fprintf(
		    stderr,
		    "viw-migrate: %s is pending though a later one is applied; give it the next "
		    "free number\n",
		    at->name);
		return PROGRAM_CONFIG;
	case MIGRATIONS_NOT_UTF8:
		fprintf(stderr,
			"viw-migrate: the encoding of this database is not UTF8; make it anew: "
			"CREATE DATABASE … ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0\n");
		return PROGRAM_CONFIG;
	case MIGRATIONS_FAILED:
		break;
	}
	fprintf(stderr, "viw-migrate: %s%s%s\n", at ? at->name : "", at ? ": " : "", pg_error(p));
	return PROGRAM_UNAVAILABLE;
}

static int run(const struct options *o)
{
	struct migrations m = {0};
	struct pg *p = NULL;
	char msg[512];
	int code;

	int r = o->dir ? migrations_from_dir(o->dir, &m, msg, sizeof msg)
		       : migrations_from_texts(migrations_embedded, &m, msg, sizeof msg);
	if (r < 0) {
		fprintf(stderr, "viw-migrate: %s\n", msg);
		return PROGRAM_CONFIG;
	}
	if (pg_uri_check(o->uri, msg, sizeof msg) < 0) {
		fprintf(stderr, "viw-migrate: %s\n", msg);
		migrations_fini(&m);
		return PROGRAM_CONFIG;
	}
	if (pg_new(o->uri, "viw-migrate", &p) < 0) {
		migrations_fini(&m);
		return PROGRAM_SYSTEM;
	}
	pg_set_session(p, session);
	pg_set_deadline_ms(p, 0);
	code = o->status ? show_status(&m, p) : apply(&m, p);
	pg_free(p);
	migrations_fini(&m);
	return code;
}

int main(int argc, char **argv)
{
	struct options o = {0};
	int code = options_parse(argc, argv, &o);

	return code >= 0 ? code : run(&o);
}
