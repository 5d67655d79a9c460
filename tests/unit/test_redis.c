/*
 * lib/redis on a loop against a real redis-server. What a program must survive: server absent,
 * killed, stopped, wrong password, LOADING, script cache lost, limits.
 */
#include "redis_server.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "loop/loop.h"

static struct loop *loop;
static bool done;

/* ---- the client under test ---- */

struct client {
	struct redis *r;
	int ups, downs, replies, nulls;
	int stop_at_ups, stop_at_downs, stop_at_answers;
	char why[200], last[200];
	int64_t last_int;
	enum redis_error_class last_class;
	bool close_in_callback;
};

static void check_stop(struct client *c)
{
	if ((c->stop_at_ups && c->ups >= c->stop_at_ups) ||
	    (c->stop_at_downs && c->downs >= c->stop_at_downs) ||
	    (c->stop_at_answers && c->replies + c->nulls >= c->stop_at_answers)) {
		done = true;
		loop_stop(loop);
	}
}

static void on_up(void *arg)
{
	struct client *c = arg;

	c->ups++;
	check_stop(c);
}

static void on_down(void *arg, const char *why)
{
	struct client *c = arg;

	c->downs++;
	(void)snprintf(c->why, sizeof(c->why), "%s", why);
	check_stop(c);
}

static void on_reply(void *arg, const struct redis_reply *r)
{
	struct client *c = arg;

	if (r)
		c->replies++;
	else
		c->nulls++;
	c->last_class = redis_error_class(r);
	c->last_int = redis_int(r);
	(void)snprintf(c->last, sizeof(c->last), SPAN_FMT, SPAN_ARG(redis_str(r)));
	if (c->close_in_callback)
		redis_close(c->r);
	check_stop(c);
}

static const struct redis_ops ops = {on_up, on_down};

static void on_deadline(void *arg UNUSED)
{
	fail_msg("not in time");
}

static void run(struct client *c, int ups, int downs, int answers)
{
	struct loop_timer *t;

	c->stop_at_ups = ups;
	c->stop_at_downs = downs;
	c->stop_at_answers = answers;
	assert_ok(loop_timer_new(loop, on_deadline, NULL, &t));
	loop_timer_start(t, 15000, 0);
	for (done = false, check_stop(c);
	     !done;) /* a stop asked for outside ends a run before it began */
		loop_run(loop);
	loop_timer_close(t);
}

static void on_turn(void *arg UNUSED)
{
	loop_stop(loop);
}

/* What is queued leaves; nothing is waited for. (Not by a timer: libuv 1.45 runs those that are
 * due before the first turn, and then there would be none.) */
static void run_one_turn(void)
{
	struct loop_later *x;

	assert_ok(loop_later_new(loop, on_turn, NULL, &x));
	loop_later_ask(x);
	loop_run(loop);
	loop_later_close(x);
}

static void open_client(struct client *c, const char *at, const struct redis_limits *limits)
{
	assert_ok(redis_open(loop, at, limits, &ops, c, &c->r));
}

static void connect_client(struct client *c, const char *at, const struct redis_limits *limits)
{
	open_client(c, at, limits);
	run(c, 1, 0, 0);
}

#define ask(c, ...) assert_ok(redis_cmdf((c)->r, on_reply, (c), __VA_ARGS__))

/* An ECHO of "abc", written in place. */
static void commit_echo(struct client *c)
{
	static const char cmd[] = "*2\r\n$4\r\nECHO\r\n$3\r\nabc\r\n";
	char *at;

	assert_ok(redis_reserve(c->r, 1000, &at));
	memcpy(at, cmd, sizeof(cmd) - 1);
	redis_commit(c->r, sizeof(cmd) - 1, on_reply, c);
}

static int set_up(void **state)
{
	return server_set_up(state) < 0 ? -1 : loop_new(&loop);
}

static int tear_down(void **state)
{
	loop_free(loop);
	return server_tear_down(state);
}

/* ---- cases ---- */

static void test_commands_are_answered_in_order(void **state UNUSED)
{
	struct client c = {0};
	struct span argv[3] = {SPAN("SET"), SPAN("k"), {"a\0b\r\n", 5}};

	open_client(&c, url, NULL);
	assert_int_equal(redis_cmdf(c.r, on_reply, &c, "PING"), -ENOTCONN);
	run(&c, 1, 0, 0);
	assert_true(redis_is_up(c.r));
	assert_ok(redis_cmd(c.r, on_reply, &c, 3, argv));
	ask(&c, "STRLEN %s", "k");
	assert_int_equal(redis_in_flight(c.r), 2);
	run(&c, 0, 0, 2);
	assert_int_equal(c.last_int, 5);
	assert_int_equal(redis_in_flight(c.r), 0);
	ask(&c, "ECHO a%d-%lld-%b-%s", 7, (long long)INT64_MIN, SPAN("x y"), "z");
	run(&c, 0, 0, 3);
	assert_string_equal(c.last, "a7--9223372036854775808-x y-z");
	redis_close(c.r);
}

static void test_a_large_command_is_taken(void **state UNUSED)
{
	struct client c = {0};
	size_t n = 3 << 20;
	char *big = malloc(n);
	struct span argv[3] = {SPAN("SET"), SPAN("big"), {big, n}};

	memset(big, 'x', n);
	connect_client(&c, url, NULL);
	assert_ok(redis_cmd(c.r, on_reply, &c, 3, argv));
	run(&c, 0, 0, 1);
	assert_string_equal(c.last, "OK");
	ask(&c, "STRLEN big");
	run(&c, 0, 0, 2);
	assert_int_equal(c.last_int, n);
	redis_close(c.r);
	free(big);
}

static void test_reserve_and_commit_write_in_place(void **state UNUSED)
{
	struct client c = {0};
	char *at;

	connect_client(&c, url, NULL);
	for (int i = 0; i < 100; i++) {
		commit_echo(&c);
		assert_ok(redis_reserve(c.r, 1000, &at));
		redis_commit(c.r, 0, on_reply, &c);
	}
	run(&c, 0, 0, 100);
	assert_string_equal(c.last, "abc");
	assert_int_equal(c.replies, 100);
	redis_close(c.r);
}

/* A gathered command leaves when its time is over, or with the next ordinary one, in order. */
static void test_committed_commands_gather(void **state UNUSED)
{
	struct redis_limits limits = {.gather_ms = 150};
	struct client c = {0};
	int64_t began;

	connect_client(&c, url, &limits);
	for (int alone = 1; alone >= 0; alone--) {
		began = clock_boot_ms();
		commit_echo(&c);
		if (!alone)
			ask(&c, "ECHO last");
		c.replies = 0;
		run(&c, 0, 0, alone ? 1 : 2);
		assert_string_equal(c.last, alone ? "abc" : "last");
		if (alone)
			assert_true(clock_boot_ms() - began >= 140);
	}
	redis_close(c.r);
}

/* Where turns are kept apart, nothing waits for the gathering time. */
static void test_a_paced_loop_gathers_by_the_turn(void **state UNUSED)
{
	struct redis_limits limits = {.gather_ms = 3000, .urgent = true};
	struct client c = {0};
	int64_t began;

	connect_client(&c, url, &limits);
	loop_pace(loop, 1500000, 60000); /* half as far is far enough */
	loop_hurry_once(loop);		 /* a turn more does not matter */
	began = clock_boot_ms();
	commit_echo(&c);
	run(&c, 0, 0, 1);
	assert_string_equal(c.last, "abc");
	assert_true(clock_boot_ms() - began < 2000);
	loop_pace(loop, 0, 0);
	redis_close(c.r);
}

/* Else each of its many turns would send the little that it found. */
static void test_a_paced_loop_that_hurries_gathers_by_the_time(void **state UNUSED)
{
	struct redis_limits limits = {.gather_ms = 150};
	struct client c = {0};
	int64_t began;

	connect_client(&c, url, &limits);
	loop_pace(loop, 150000, 60000);
	loop_hurry_for(loop, 60000);
	began = clock_boot_ms();
	commit_echo(&c);
	run(&c, 0, 0, 1);
	assert_string_equal(c.last, "abc");
	assert_true(clock_boot_ms() - began >= 140);
	loop_pace(loop, 0, 0);
	redis_close(c.r);
}

/* It leaves as the socket takes it, not a part of it in each of turns a second apart. */
static void test_what_the_socket_did_not_take_hurries_a_paced_loop(void **state UNUSED)
{
	enum { PIECE = 1 << 20, PIECES = 16 };
	struct redis_limits limits = {.gather_ms = 1};
	struct client c = {0};
	int64_t began;
	char *at;

	connect_client(&c, url, &limits);
	loop_pace(loop, 1000000, 60000);
	began = clock_boot_ms();
	for (int i = 0; i < PIECES; i++) {
		assert_ok(redis_reserve(c.r, PIECE + 64, &at));
		int n = sprintf(at, "*2\r\n$6\r\nSTRLEN\r\n$%d\r\n", PIECE);

		memset(at + n, 'k', PIECE);
		memcpy(at + n + PIECE, "\r\n", 2);
		redis_commit(c.r, (size_t)n + PIECE + 2, on_reply, &c);
	}
	run(&c, 0, 0, PIECES);
	assert_true(clock_boot_ms() - began < 3500);
	loop_pace(loop, 0, 0);
	redis_close(c.r);
}

static void test_limits_refuse_and_do_not_call_back(void **state UNUSED)
{
	struct redis_limits limits = {.max_in_flight = 3, .max_in_flight_bytes = 1000};
	struct client c = {0};
	char text[990];

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	connect_client(&c, url, &limits);
	for (int i = 0; i < 3; i++)
		ask(&c, "PING");
	assert_int_equal(redis_cmdf(c.r, on_reply, &c, "PING"), -ENOBUFS);
	run(&c, 0, 0, 3);
	ask(&c, "ECHO %s", text);
	assert_int_equal(redis_cmdf(c.r, on_reply, &c, "ECHO %s", text), -ENOBUFS);
	run(&c, 0, 0, 4);
	assert_int_equal(c.replies, 4);
	assert_int_equal(c.nulls, 0);
	redis_close(c.r);
}

static void test_killed_server_nulls_then_reconnects(void **state UNUSED)
{
	struct client c = {0};
	int64_t back;

	connect_client(&c, url, NULL);
	ask(&c, "BLPOP nothing 0");
	ask(&c, "PING");
	server_kill();
	run(&c, 0, 1, 0);
	assert_int_equal(c.nulls, 2);
	assert_false(redis_is_up(c.r));
	run(&c, 0, c.downs + 2, 0); /* goes on trying, and says so */
	server_start(NULL);
	server_wait(url);
	back = clock_boot_ms();
	run(&c, 2, 0, 0);
	assert_true(clock_boot_ms() - back < 2000);
	redis_close(c.r);
}

static void test_stopped_server_times_out_the_oldest(void **state UNUSED)
{
	struct redis_limits limits = {.timeout_ms = 1000};
	struct client c = {0};
	int64_t began;

	connect_client(&c, url, &limits);
	ask(&c, "PING");
	run(&c, 0, 0, 1);
	kill(server, SIGSTOP);
	began = clock_boot_ms();
	ask(&c, "PING");
	ask(&c, "PING");
	run(&c, 0, 1, 0);
	assert_int_equal(c.nulls, 2);
	assert_true(clock_boot_ms() - began >= 1000);
	assert_true(clock_boot_ms() - began < 5000);
	assert_string_equal(c.why, "no answer in time");
	kill(server, SIGCONT);
	run(&c, 2, 0, 0);
	redis_close(c.r);
}

/* It was we who slept: answers that are there count, however late. */
static void test_own_pause_is_no_timeout(void **state UNUSED)
{
	struct redis_limits limits = {.timeout_ms = 100};
	struct client c = {0};

	connect_client(&c, url, &limits);
	ask(&c, "PING");
	run_one_turn();
	usleep(250000);
	run(&c, 0, 0, 1);
	assert_int_equal(c.replies, 1);
	assert_int_equal(c.downs, 0);
	redis_close(c.r);
}

static void test_nobody_there_is_reported_again_and_again(void **state UNUSED)
{
	struct client c = {0}, d = {0};

	open_client(&c, "redis://127.0.0.1:1/0", NULL);
	run(&c, 0, 2, 0);
	assert_non_null(strstr(c.why, "refused"));
	redis_close(c.r);
	open_client(&d, "unix:///tmp/viw-nobody/s", NULL);
	run(&d, 0, 2, 0);
	redis_close(d.r);
}

static void test_wrong_password_never_goes_up(void **state UNUSED)
{
	struct client c = {0}, d = {0}, e = {0};
	struct redis_sync *s;
	char at[256];
	int error;

	server_kill();
	server_start("sesame");
	(void)snprintf(at, sizeof(at), "unix://:sesame@%s", sock);
	server_wait(at);
	connect_client(&c, at, NULL);
	redis_close(c.r);
	(void)snprintf(at, sizeof(at), "unix://:hush-hush@%s", sock);
	open_client(&d, at, NULL);
	run(&d, 0, 2, 0);
	assert_int_equal(d.ups, 0);
	assert_non_null(strstr(d.why, "WRONGPASS"));
	assert_null(strstr(d.why, "hush-hush"));
	redis_close(d.r);
	assert_ok(redis_sync_new(at, 1000, &s));
	assert_null(redis_sync_cmdf(s, &error, "PING"));
	assert_int_equal(error, -ENOTCONN);
	assert_non_null(strstr(redis_sync_error(s), "WRONGPASS"));
	redis_sync_free(s);
	open_client(&e, url, NULL); /* none given: PING is refused */
	run(&e, 0, 1, 0);
	assert_non_null(strstr(e.why, "NOAUTH"));
	redis_close(e.r);
}

/* A server that speaks RESP by script: what a real one cannot be made to say reliably. */
static pid_t fake_start(const char *const *answers, size_t n)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	pid_t pid;

	unlink(sock);
	memcpy(un.sun_path, sock, strlen(sock) + 1);
	assert_int_equal(bind(listener, (struct sockaddr *)&un, sizeof(un)), 0);
	assert_int_equal(listen(listener, 8), 0);
	pid = fork();
	if (pid == 0) {
		for (size_t i = 0; i < n; i++) {
			int fd = accept(listener, NULL, NULL);
			char bytes[256];

			(void)!read(fd, bytes, sizeof(bytes));
			(void)!write(fd, answers[i], strlen(answers[i]));
			(void)!read(fd, bytes, sizeof(bytes));
			close(fd);
		}
		_exit(0);
	}
	close(listener);
	return pid;
}

static void test_loading_and_garbage_are_not_up(void **state UNUSED)
{
	static const char *const answers[] = {"-LOADING Redis is loading the dataset in memory\r\n",
					      "?what\r\n", "+PONG\r\n"};
	struct client c = {0};
	pid_t fake;

	server_kill();
	fake = fake_start(answers, 3);
	open_client(&c, url, NULL);
	run(&c, 0, 1, 0);
	assert_non_null(strstr(c.why, "LOADING"));
	run(&c, 0, 2, 0);
	assert_string_equal(c.why, "not a Redis answer");
	run(&c, 1, 0, 0);
	assert_int_equal(c.downs, 2);
	redis_close(c.r);
	kill(fake, SIGKILL);
	waitpid(fake, NULL, 0);
}

static void test_real_loading_server(void **state UNUSED)
{
	struct client c = {0};
	struct redis_sync *s;
	int error;

	assert_ok(redis_sync_new(url, 5000, &s));
	(void)redis_sync_cmdf(s, &error,
			      "CONFIG SET key-load-delay 300 "
			      "loading-process-events-interval-bytes 1024");
	(void)redis_sync_cmdf(s, &error, "DEBUG POPULATE 20000 key 100");
	connect_client(&c, url, NULL);
	assert_ok(redis_cmdf(c.r, NULL, NULL, "DEBUG RELOAD"));
	run_one_turn();
	/* While it loads it answers commands of others with LOADING: that class is passing. */
	for (int i = 0; i < 2000; i++) {
		const struct redis_reply *r = redis_sync_cmdf(s, &error, "GET x");

		if (redis_error_class(r) == REDIS_E_LOADING) {
			assert_true(redis_error_is_passing(REDIS_E_LOADING));
			break;
		}
		assert_true(i < 1999);
	}
	redis_sync_free(s);
	redis_close(c.r);
}

/* ---- scripts ---- */

static void test_script_survives_script_flush(void **state UNUSED)
{
	struct redis_script script = {.name = "add", .body = "return KEYS[1] .. '+' .. ARGV[1]"};
	struct span argv[2] = {SPAN("k"), SPAN("v")};
	struct client c = {0};

	connect_client(&c, url, NULL);
	for (int i = 1; i <= 3; i++) {
		assert_ok(redis_eval(c.r, &script, on_reply, &c, 1, 2, argv));
		run(&c, 0, 0, i);
		assert_string_equal(c.last, "k+v");
		if (i == 2) {
			c.replies--;
			ask(&c, "SCRIPT FLUSH");
			run(&c, 0, 0, i);
		}
	}
	assert_string_equal(script.sha1, "537a7c4cda08d2574e35317d024b4f67ccf6172d");
	redis_close(c.r);
}

static void test_script_error_reaches_the_caller(void **state UNUSED)
{
	struct redis_script script = {.name = "bad", .body = "return redis.error_reply('OOM no')"};
	struct client c = {0};

	connect_client(&c, url, NULL);
	assert_ok(redis_eval(c.r, &script, on_reply, &c, 0, 0, NULL));
	run(&c, 0, 0, 1);
	assert_int_equal(c.last_class, REDIS_E_OOM);
	assert_true(redis_error_is_passing(c.last_class));
	redis_close(c.r);
}

/* ---- closing ---- */

static void test_close_answers_all_and_may_come_from_a_callback(void **state UNUSED)
{
	struct client c = {0}, d = {0};

	connect_client(&c, url, NULL);
	for (int i = 0; i < 5; i++)
		ask(&c, "PING");
	redis_close(c.r);
	assert_int_equal(c.nulls, 5);
	d.close_in_callback = true;
	connect_client(&d, url, NULL);
	for (int i = 0; i < 3; i++)
		ask(&d, "PING");
	run(&d, 0, 0, 3);
	assert_int_equal(d.replies, 1);
	assert_int_equal(d.nulls, 2);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	    CASE(test_commands_are_answered_in_order),
	    CASE(test_a_large_command_is_taken),
	    CASE(test_reserve_and_commit_write_in_place),
	    CASE(test_committed_commands_gather),
	    CASE(test_a_paced_loop_gathers_by_the_turn),
	    CASE(test_a_paced_loop_that_hurries_gathers_by_the_time),
	    CASE(test_what_the_socket_did_not_take_hurries_a_paced_loop),
	    CASE(test_limits_refuse_and_do_not_call_back),
	    CASE(test_killed_server_nulls_then_reconnects),
	    CASE(test_stopped_server_times_out_the_oldest),
	    CASE(test_own_pause_is_no_timeout),
	    CASE(test_nobody_there_is_reported_again_and_again),
	    CASE(test_wrong_password_never_goes_up),
	    CASE(test_loading_and_garbage_are_not_up),
	    CASE(test_real_loading_server),
	    CASE(test_script_survives_script_flush),
	    CASE(test_script_error_reaches_the_caller),
	    CASE(test_close_answers_all_and_may_come_from_a_callback),
	};

	return cmocka_run_group_tests(tests, group_set_up, group_tear_down);
}
