/* lib/pg: arrays, verdicts and URIs always; the rest against the PostgreSQL of VIW_TEST_PG_URI
 * (tests/integration/test_00_pg.py starts one and demands that nothing was skipped). */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "base/clock.h"
#include "pg/array.h"
#include "pg/pg.h"
#include "pg/sqlstate.h"

static struct pg *server(void)
{
	const char *uri = getenv("VIW_TEST_PG_URI");
	struct pg *p = NULL;

	if (!uri)
		skip();
	assert_int_equal(pg_new(uri, "test_pg", &p), 0);
	assert_int_equal(pg_connect(p), PG_OK);
	return p;
}

static void test_sqlstate_verdict_follows_the_class(void **state UNUSED)
{
	static const struct {
		const char *state;
		enum pg_verdict verdict;
	} row[] = {
	    {"", PG_RECONNECT},	     {"08006", PG_RECONNECT}, {"57P01", PG_RECONNECT},
	    {"53300", PG_RECONNECT}, {"25006", PG_RECONNECT}, {"26000", PG_RECONNECT},
	    {"0A000", PG_RECONNECT}, {"40001", PG_RETRY},     {"40P01", PG_RETRY},
	    {"55P03", PG_RETRY},     {"57014", PG_RETRY},     {"22021", PG_BAD_DATA},
	    {"22P05", PG_BAD_DATA},  {"23514", PG_BAD_DATA},  {"21000", PG_BAD_DATA},
	    {"54000", PG_BAD_DATA},  {"VW001", PG_BAD_DATA},  {"53100", PG_PAUSE},
	    {"53200", PG_PAUSE},     {"58030", PG_PAUSE},     {"42501", PG_PAUSE},
	    {"42P01", PG_PAUSE},     {"28P01", PG_PAUSE},     {"3D000", PG_PAUSE},
	    {"XX000", PG_PAUSE},     {"F0000", PG_PAUSE},
	};
	for (size_t i = 0; i < ARRAY_LEN(row); i++)
		if (sqlstate_verdict(row[i].state) != row[i].verdict)
			fail_msg("%s is %s", row[i].state,
				 pg_verdict_word(sqlstate_verdict(row[i].state)));
}

static void test_uri_check_names_no_password(void **state UNUSED)
{
	char msg[200] = "";

	assert_int_equal(
	    pg_uri_check("postgresql://u:p@a:1,b:2/d?sslmode=require", msg, sizeof msg), 0);
	assert_int_equal(pg_uri_check("host=a dbname=d", msg, sizeof msg), 0);
	assert_int_equal(pg_uri_check("postgresql://u:canary@[::/d", msg, sizeof msg), -EINVAL);
	assert_null(strstr(msg, "canary"));
	assert_int_equal(pg_uri_check("no connection string", msg, sizeof msg), -EINVAL);
}

static void test_array_bytes_are_what_array_recv_reads(void **state UNUSED)
{
	struct pg_array *a;
	static const unsigned char want[] = {0,	 0, 0, 1, 0, 0, 0,    1,    0,	  0,   0,
					     23, 0, 0, 0, 2, 0, 0,    0,    1,	  0,   0,
					     0,	 4, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff};

	assert_int_equal(pg_array_new(PG_INT4, &a), 0);
	assert_int_equal(pg_array_bytes(a).n, 12); /* empty: no dimension */
	assert_int_equal(pg_array_int(a, 7), 0);
	assert_int_equal(pg_array_null(a), 0);
	assert_int_equal(pg_array_int(a, INT64_C(1) << 40), -ERANGE);
	assert_int_equal(pg_array_len(a), 2);
	assert_int_equal(pg_array_bytes(a).n, sizeof want);
	assert_memory_equal(pg_array_bytes(a).p, want, sizeof want);
	pg_array_clear(a);
	assert_int_equal(pg_array_len(a), 0);
	pg_array_free(a);
}

/* Every element type goes to the server and comes back as its text. */
static void test_exec_round_trips_every_array_type(void **state UNUSED)
{
	static const struct pg_stmt stmt = {"all", "SELECT * FROM unnest($1::text[], $2::int4[], "
						   "$3::int8[], $4::float8[], $5::timestamptz[], "
						   "$6::jsonb[], $7::bytea[], $8::bool[])"};
	static const char *const want[] = {"é\"{},\\",
					   "-5",
					   "9007199254740993",
					   "0.1",
					   "2026-11-20 11:09:00.123+00",
					   "{\"a\": [1]}",
					   "\\x00ff",
					   "t"};
	static const enum pg_elem type[] = {PG_TEXT,	    PG_INT4,  PG_INT8,	PG_FLOAT8,
					    PG_TIMESTAMPTZ, PG_JSONB, PG_BYTEA, PG_BOOL};
	struct pg_array *a[8];
	struct pg_param param[8];
	struct pg_rows *rows = NULL;
	struct pg *p = server();
	int64_t ms = 0;

	for (size_t i = 0; i < 8; i++) {
		assert_int_equal(pg_array_new(type[i], &a[i]), 0);
		param[i] = (struct pg_param){.kind = PG_PARAM_ARRAY, .array = a[i]};
	}
	assert_int_equal(clock_parse_rfc3339("2026-11-20T11:09:00.123Z", 24, &ms), 0);
	assert_int_equal(pg_array_text(a[0], span_of(want[0])), 0);
	assert_int_equal(pg_array_int(a[1], -5), 0);
	assert_int_equal(pg_array_int(a[2], INT64_C(9007199254740993)), 0);
	assert_int_equal(pg_array_num(a[3], 0.1), 0);
	assert_int_equal(pg_array_int(a[4], ms), 0);
	assert_int_equal(pg_array_text(a[5], SPAN("{\"a\":[1]}")), 0);
	assert_int_equal(pg_array_text(a[6], ((struct span){"\0\xff", 2})), 0);
	assert_int_equal(pg_array_int(a[7], 1), 0);
	for (size_t i = 0; i < 8; i++)
		assert_int_equal(pg_array_null(a[i]), 0);
	for (int again = 0; again < 2; again++) { /* the second time it is prepared already */
		assert_int_equal(pg_exec(p, &stmt, 8, param, &rows), PG_OK);
		assert_int_equal(pg_rows_len(rows), 2);
		for (size_t i = 0; i < 8; i++) {
			struct span got = pg_rows_text(rows, 0, i);
			if (!span_eq(got, want[i]))
				fail_msg("column %zu: " SPAN_FMT, i, SPAN_ARG(got));
			assert_null(pg_rows_text(rows, 1, i).p);
		}
		pg_rows_free(rows);
	}
	for (size_t i = 0; i < 8; i++)
		pg_array_free(a[i]);
	pg_free(p);
}

static void test_errors_give_a_verdict_and_leave_the_connection_usable(void **state UNUSED)
{
	static const struct pg_stmt bad = {"bad", "SELECT $1::text::int"};
	static const struct pg_stmt good = {"good", "SELECT 1"};
	const struct pg_param param[] = {{.kind = PG_PARAM_TEXT, .text = SPAN("row-canary")}};
	struct pg_rows *rows = NULL;
	struct pg *p = server();

	assert_int_equal(pg_begin(p), PG_OK);
	assert_int_equal(pg_exec(p, &bad, 1, param, NULL), PG_BAD_DATA);
	assert_string_equal(pg_sqlstate(p), "22P02");
	assert_null(strstr(pg_error(p), "canary"));
	assert_int_equal(pg_commit(p),
			 PG_RECONNECT); /* the server would roll back and call it well */
	assert_int_equal(pg_begin(p), PG_OK);
	assert_int_equal(pg_exec(p, &bad, 1, param, NULL), PG_BAD_DATA);
	pg_rollback(p);
	assert_string_equal(pg_sqlstate(p), "22P02"); /* the reason survives the rollback */
	assert_int_equal(pg_exec(p, &good, 0, NULL, &rows), PG_OK);
	assert_int_equal(pg_rows_int(rows, 0, 0), 1);
	pg_rows_free(rows);
	assert_int_equal(pg_script(p, "SELECT 1; SELECT nothing; SELECT 2"), PG_PAUSE);
	assert_string_equal(pg_sqlstate(p), "42703");
	pg_free(p);
}

static void test_a_broken_connection_is_made_anew_with_its_session(void **state UNUSED)
{
	static const struct pg_stmt suicide = {"suicide",
					       "SELECT pg_terminate_backend(pg_backend_pid())"};
	static const struct pg_stmt show = {"show", "SELECT current_setting('lock_timeout')"};
	struct pg_rows *rows = NULL;
	struct pg *p = server();

	assert_int_equal(pg_exec(p, &show, 0, NULL, &rows), PG_OK);
	assert_true(span_eq(pg_rows_text(rows, 0, 0), "5s"));
	/* A statement has connected anew since BEGIN: the server would say COMMIT to nothing. */
	assert_int_equal(pg_commit(p), PG_RECONNECT);
	pg_rows_free(rows);
	assert_int_equal(pg_begin(p), PG_OK);
	assert_int_equal(pg_exec(p, &suicide, 0, NULL, NULL), PG_RECONNECT);
	assert_false(pg_is_connected(p));
	assert_int_equal(pg_commit(p), PG_RECONNECT); /* never on a fresh connection */
	assert_int_equal(pg_exec(p, &show, 0, NULL, &rows), PG_OK);
	assert_true(span_eq(pg_rows_text(rows, 0, 0), "5s"));
	pg_rows_free(rows);
	pg_free(p);
}

static void test_a_connection_without_its_session_is_none(void **state UNUSED)
{
	struct pg *p = server();

	pg_disconnect(p);
	pg_set_session(p, "SET lock_timeout = '1s'; SELECT 1 / 0");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(pg_connect(p), PG_BAD_DATA);
		assert_string_equal(pg_sqlstate(p), "22012");
		assert_false(pg_is_connected(p));
	}
	pg_set_session(p, "SET lock_timeout = '1s'");
	assert_int_equal(pg_connect(p), PG_OK);
	pg_free(p);
}

static void test_no_answer_within_the_deadline_gives_the_connection_up(void **state UNUSED)
{
	static const struct pg_stmt nap = {"nap", "SELECT pg_sleep(20)"};
	struct pg *p = server();
	int64_t from_ms = clock_boot_ms();

	pg_set_deadline_ms(p, 200);
	assert_int_equal(pg_exec(p, &nap, 0, NULL, NULL), PG_RECONNECT);
	assert_true(clock_boot_ms() - from_ms < 5000);
	pg_free(p);
}

struct idler {
	int calls, more, ready; /* turns readable at the first call */
};

static bool on_meanwhile(void *arg, int *ret_fd)
{
	struct idler *x = arg;

	assert_int_equal(*ret_fd, -1);
	x->calls++;
	if (x->more > 0)
		return --x->more > 0;
	if (x->ready >= 0) {
		char byte;
		if (read(x->ready, &byte, 1) == 1)
			x->ready = -1;
		else
			*ret_fd = x->ready;
	}
	return false;
}

static void test_something_else_is_done_while_the_server_works(void **state UNUSED)
{
	static const struct pg_stmt nap = {"nap", "SELECT pg_sleep(0.3)"};
	struct pg *p = server();
	struct idler x = {.more = 1000, .ready = -1};
	int fd[2];

	assert_int_equal(pg_connect(p), PG_OK);
	pg_set_meanwhile(p, on_meanwhile, &x);
	assert_int_equal(pg_exec(p, &nap, 0, NULL, NULL), PG_OK);
	assert_int_equal(x.more, 0);	      /* all of it, */
	assert_in_range(x.calls, 1000, 1020); /* and then it waits */
	/* A descriptor that turns readable ends the wait, too. */
	assert_int_equal(pipe2(fd, O_NONBLOCK), 0);
	x = (struct idler){.ready = fd[0]};
	if (fork() == 0) {
		usleep(50000);
		_exit(write(fd[1], "x", 1) != 1);
	}
	assert_int_equal(pg_exec(p, &nap, 0, NULL, NULL), PG_OK);
	assert_int_equal(x.ready, -1);
	(void)wait(NULL);
	close(fd[0]);
	close(fd[1]);
	pg_free(p);
}

static void test_connect_refused_says_why_without_the_password(void **state UNUSED)
{
	struct pg *p = NULL;

	assert_int_equal(pg_new("postgresql://u:canary@127.0.0.1:1/d", "test_pg", &p), 0);
	assert_int_equal(pg_connect(p), PG_RECONNECT);
	assert_true(pg_error(p)[0]);
	assert_null(strstr(pg_error(p), "canary"));
	pg_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_sqlstate_verdict_follows_the_class),
	    cmocka_unit_test(test_uri_check_names_no_password),
	    cmocka_unit_test(test_array_bytes_are_what_array_recv_reads),
	    cmocka_unit_test(test_exec_round_trips_every_array_type),
	    cmocka_unit_test(test_errors_give_a_verdict_and_leave_the_connection_usable),
	    cmocka_unit_test(test_a_broken_connection_is_made_anew_with_its_session),
	    cmocka_unit_test(test_a_connection_without_its_session_is_none),
	    cmocka_unit_test(test_no_answer_within_the_deadline_gives_the_connection_up),
	    cmocka_unit_test(test_something_else_is_done_while_the_server_works),
	    cmocka_unit_test(test_connect_refused_says_why_without_the_password),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
