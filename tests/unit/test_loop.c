/* lib/loop: what programs rely on, on a real loop. Every wait has a deadline in run_until. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "loop/loop.h"

static struct loop *loop;
static int calls;

static int set_up(void **state)
{
	(void)state;
	calls = 0;
	return loop_new(&loop);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop); /* asserts that nothing is left open */
	return 0;
}

static void on_deadline(void *arg)
{
	(void)arg;
	fail_msg("the loop was not stopped in time");
}

static void run_with_deadline(void)
{
	struct loop_timer *t;

	assert_int_equal(loop_timer_new(loop, on_deadline, NULL, &t), 0);
	loop_timer_start(t, 10000, 0);
	loop_run(loop);
	loop_timer_close(t);
}

static void count_and_stop_at_3(void *arg)
{
	(void)arg;
	if (++calls == 3)
		loop_stop(loop);
}

static void test_timer_repeats_until_closed(void **state)
{
	int64_t before = clock_boot_ms();
	struct loop_timer *t;

	(void)state;
	assert_int_equal(loop_timer_new(loop, count_and_stop_at_3, NULL, &t), 0);
	loop_timer_start(t, 10, 10);
	assert_true(loop_timer_active(t));
	run_with_deadline();
	assert_int_equal(calls, 3);
	assert_true(clock_boot_ms() - before >= 28);
	loop_timer_stop(t);
	assert_false(loop_timer_active(t));
	loop_timer_close(t);
}

static void test_now_follows_the_clock(void **state)
{
	int64_t diff;
	struct loop_timer *t;

	(void)state;
	assert_int_equal(loop_timer_new(loop, count_and_stop_at_3, NULL, &t), 0);
	loop_timer_start(t, 5, 5);
	run_with_deadline();
	diff = clock_boot_ms() - loop_now_ms(loop);
	assert_true(diff >= 0 && diff < 1000);
	loop_timer_close(t);
}

/* ---- later ---- */

struct later_case {
	struct loop_later *later, *other;
	struct loop_timer *timer;
	int64_t asked_ms, ran_ms;
	int runs;
};

static void on_later(void *arg)
{
	struct later_case *c = arg;

	c->runs++;
	c->ran_ms = clock_boot_ms();
	loop_stop(loop);
}

static void ask_thrice(void *arg)
{
	struct later_case *c = arg;

	c->asked_ms = clock_boot_ms();
	for (int i = 0; i < 3; i++)
		loop_later_ask(c->later);
}

static void test_later_runs_once_in_the_turn_it_was_asked(void **state)
{
	struct later_case c = {0};

	(void)state;
	assert_int_equal(loop_later_new(loop, on_later, &c, &c.later), 0);
	assert_int_equal(loop_timer_new(loop, ask_thrice, &c, &c.timer), 0);
	loop_timer_start(c.timer, 1, 0);
	run_with_deadline();
	assert_int_equal(c.runs, 1);
	assert_true(c.ran_ms - c.asked_ms < 1000); /* not at the next, ten seconds away, event */
	loop_timer_close(c.timer);
	loop_later_close(c.later);
}

static void ask_other(void *arg)
{
	struct later_case *c = arg;

	loop_later_ask(c->later);
}

static void test_later_asked_from_another_later_does_not_sleep(void **state)
{
	struct later_case c = {0};
	int64_t before = clock_boot_ms();

	(void)state;
	assert_int_equal(loop_later_new(loop, on_later, &c, &c.later), 0);
	assert_int_equal(loop_later_new(loop, ask_other, &c, &c.other), 0);
	loop_later_ask(c.other);
	run_with_deadline();
	assert_int_equal(c.runs, 1);
	assert_true(clock_boot_ms() - before < 1000);
	loop_later_close(c.later);
	loop_later_close(c.other);
}

/* ---- wake, work, signal ---- */

static void *send_wake(void *w)
{
	loop_wake_send(w);
	return NULL;
}

static void stop(void *arg)
{
	(void)arg;
	calls++;
	loop_stop(loop);
}

static void test_wake_from_another_thread(void **state)
{
	struct loop_wake *w;
	pthread_t t;

	(void)state;
	assert_int_equal(loop_wake_new(loop, stop, NULL, &w), 0);
	assert_int_equal(pthread_create(&t, NULL, send_wake, w), 0);
	run_with_deadline();
	pthread_join(t, NULL);
	assert_int_equal(calls, 1);
	loop_wake_close(w);
}

/* ---- pace ---- */

static struct loop_wake *again;

static void wake_again(void *arg)
{
	(void)arg;
	if (++calls == 20)
		loop_stop(loop);
	else
		loop_wake_send(again);
}

static int64_t ms_of_20_turns(void)
{
	int64_t before = clock_boot_ms();

	assert_int_equal(loop_wake_new(loop, wake_again, NULL, &again), 0);
	loop_wake_send(again);
	run_with_deadline();
	loop_wake_close(again);
	return clock_boot_ms() - before;
}

static void test_pace_keeps_turns_apart(void **state)
{
	(void)state;
	loop_pace(loop, 5000, 10000);
	assert_true(ms_of_20_turns() >= 90);
}

static void test_who_waits_hurries_a_paced_loop(void **state)
{
	(void)state;
	loop_pace(loop, 100000, 60000);
	loop_hurry(loop, 1);
	assert_int_equal(loop_pace_us(loop), 500);
	assert_in_range(ms_of_20_turns(), 9, 1800); /* unhurried 1,900 at least */
	loop_hurry(loop, -1);
	assert_int_equal(loop_pace_us(loop), 100000);
	calls = 18;
	assert_true(ms_of_20_turns() >= 90);
}

static void test_hurry_for_a_while(void **state)
{
	(void)state;
	loop_pace(loop, 100000, 60000);
	loop_hurry_for(loop, 60000);
	loop_hurry_for(loop, 1); /* the longer one stays */
	assert_in_range(ms_of_20_turns(), 9, 1800);
	loop_pace(loop, 5000, 60000);
}

static void test_a_loop_that_hurries_need_not_wait_at_all(void **state)
{
	(void)state;
	loop_pace(loop, 100000, 60000);
	loop_pace_hurried(loop, 0);
	loop_hurry_for(loop, 60000);
	assert_int_equal(loop_pace_us(loop), 0);
	assert_true(ms_of_20_turns() < 1000);
}

static void test_hurry_for_a_while_ends(void **state)
{
	(void)state;
	loop_pace(loop, 100000, 60000);
	loop_hurry_for(loop, 1);
	calls = 14;
	assert_true(ms_of_20_turns() >= 180);
}

static void on_urgent(void *arg, int events)
{
	char c;

	(void)events;
	assert_int_equal(read(*(int *)arg, &c, 1), 1);
	if (++calls == 3)
		loop_stop(loop);
}

/* Three bytes come to a loop whose turns are ten seconds apart, each after the one before it was
 * met. Urgent ones end the sleep. */
static void test_what_is_urgent_ends_the_sleep(void **state)
{
	struct loop_poll *poll;
	int64_t before;
	int fd[2];

	(void)state;
	assert_int_equal(pipe(fd), 0);
	assert_int_equal(loop_poll_new(loop, fd[0], on_urgent, &fd[0], &poll), 0);
	loop_poll_urgent(poll, true);
	loop_poll_urgent(poll, true); /* once is enough */
	assert_int_equal(loop_poll_set(poll, LOOP_READ), 0);
	loop_pace(loop, 10 * 1000 * 1000, 60000);
	assert_int_equal(write(fd[1], "abc", 3), 3);
	before = clock_boot_ms();
	run_with_deadline();
	assert_true(clock_boot_ms() - before < 5000);
	assert_int_equal(calls, 3);

	loop_poll_urgent(poll, false);
	loop_pace(loop, 200 * 1000, 60000);
	calls = 2;
	assert_int_equal(write(fd[1], "d", 1), 1);
	before = clock_boot_ms();
	run_with_deadline();
	assert_true(clock_boot_ms() - before >= 100);
	loop_poll_close(poll, NULL, NULL);
	(void)close(fd[0]);
	(void)close(fd[1]);
}

static void test_pace_ends_by_itself(void **state)
{
	struct loop_timer *t;

	(void)state;
	assert_int_equal(loop_pace_us(loop), 0);
	loop_pace(loop, 1000, 5);
	assert_int_equal(loop_pace_us(loop), 1000);
	assert_int_equal(loop_timer_new(loop, stop, NULL, &t), 0);
	loop_timer_start(t, 20, 0);
	run_with_deadline();
	loop_timer_close(t);
	calls = 0;
	loop_pace(loop, 1000000, -1); /* over already: the deadline would pass */
	assert_true(ms_of_20_turns() < 9000);
}

static void note_thread(void *arg)
{
	*(pthread_t *)arg = pthread_self();
}

static void test_work_runs_elsewhere_and_reports_here(void **state)
{
	pthread_t worker = pthread_self();

	(void)state;
	assert_int_equal(loop_work(loop, note_thread, stop, &worker), 0);
	run_with_deadline();
	assert_false(pthread_equal(worker, pthread_self()));
	assert_int_equal(calls, 1);
}

static void on_usr1(void *arg, int signum)
{
	(void)arg;
	calls = signum;
	loop_stop(loop);
}

static void test_signal_gives_its_number(void **state)
{
	(void)state;
	assert_int_equal(loop_on_signal(loop, SIGUSR1, on_usr1, NULL), 0);
	assert_int_equal(raise(SIGUSR1), 0);
	run_with_deadline();
	assert_int_equal(calls, SIGUSR1);
}

/* ---- poll ---- */

static int poll_events;

static void on_poll(void *arg, int events)
{
	(void)arg;
	poll_events |= events;
	loop_stop(loop);
}

static void close_fd(void *arg)
{
	(void)close(*(int *)arg);
}

static void test_poll_reports_a_refused_connect(void **state)
{
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(sin);
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd, error = 0;
	struct loop_poll *p;

	(void)state;
	poll_events = 0;
	/* A port that was ours a moment ago and is nobody's now. */
	assert_int_equal(bind(listener, (struct sockaddr *)&sin, sizeof(sin)), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&sin, &len), 0);
	close(listener);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	(void)!connect(fd, (struct sockaddr *)&sin, sizeof(sin));
	assert_int_equal(loop_poll_new(loop, fd, on_poll, NULL, &p), 0);
	assert_int_equal(loop_poll_set(p, LOOP_READ | LOOP_WRITE), 0);
	run_with_deadline();
	assert_int_equal(poll_events, LOOP_READ | LOOP_WRITE);
	len = sizeof(error);
	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len), 0);
	loop_poll_close(p, close_fd, &fd);
	loop_free(loop);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(loop_new(&loop), 0);
}

/* ---- streams ---- */

struct stream_case {
	struct loop_stream *s;
	int connect_error, end_error, ends, connects;
	bool stop_when_connected;
	char got[64];
	size_t n;
};

static void on_connect(void *arg, int error)
{
	struct stream_case *c = arg;

	c->connects++;
	c->connect_error = error;
	if (error || c->stop_when_connected)
		loop_stop(loop);
	else
		assert_int_equal(loop_stream_write(c->s, "ping", 4), 0);
}

static void on_bytes(void *arg, const char *bytes, size_t n)
{
	struct stream_case *c = arg;

	assert_true(c->n + n < sizeof(c->got));
	memcpy(c->got + c->n, bytes, n);
	c->n += n;
}

static void on_end(void *arg, int error)
{
	struct stream_case *c = arg;

	c->ends++;
	c->end_error = error;
	loop_stop(loop);
}

static const struct loop_stream_ops stream_ops = {on_connect, on_bytes, on_end};

static void *echo_once(void *arg)
{
	int listener = *(int *)arg, fd = accept(listener, NULL, NULL);
	char bytes[16];
	ssize_t n = read(fd, bytes, sizeof(bytes));

	(void)!write(fd, bytes, n > 0 ? (size_t)n : 0);
	close(fd);
	return NULL;
}

static void test_stream_echo_and_end(void **state)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct stream_case c = {0};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	char dir[] = "/tmp/viw-loop-XXXXXX";
	pthread_t t;

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(un.sun_path, sizeof(un.sun_path), "%s/s", dir);
	assert_int_equal(bind(listener, (struct sockaddr *)&un, sizeof(un)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(pthread_create(&t, NULL, echo_once, &listener), 0);
	assert_int_equal(loop_stream_connect_unix(loop, un.sun_path, &stream_ops, &c, &c.s), 0);
	run_with_deadline();
	pthread_join(t, NULL);
	assert_int_equal(c.connect_error, 0);
	assert_memory_equal(c.got, "ping", 4);
	assert_int_equal(c.ends, 1);
	assert_int_equal(c.end_error, 0);
	assert_int_equal(loop_stream_write(c.s, "x", 1), -ENOTCONN);
	loop_stream_close(c.s);
	close(listener);
	unlink(un.sun_path);
	rmdir(dir);
}

static void test_stream_nobody_there(void **state)
{
	struct stream_case c = {0};
	char path[200];

	(void)state;
	assert_int_equal(loop_stream_connect_unix(loop, "/tmp/viw-nobody/s", &stream_ops, &c, &c.s),
			 0);
	run_with_deadline();
	assert_int_equal(c.connects, 1);
	assert_int_equal(c.connect_error, -ENOENT);
	assert_int_equal(c.ends, 0);
	loop_stream_close(c.s);
	memset(path, 'a', sizeof(path) - 1);
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(loop_stream_connect_unix(loop, path, &stream_ops, &c, &c.s),
			 -ENAMETOOLONG);
}

static void test_stream_write_has_a_cap(void **state)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct stream_case c = {0};
	int listener = socket(AF_UNIX, SOCK_STREAM, 0), r = 0;
	char dir[] = "/tmp/viw-loop-XXXXXX", *block = calloc(1, 65536);

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(un.sun_path, sizeof(un.sun_path), "%s/s", dir);
	assert_int_equal(bind(listener, (struct sockaddr *)&un, sizeof(un)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(loop_stream_connect_unix(loop, un.sun_path, &stream_ops, &c, &c.s), 0);
	assert_int_equal(loop_stream_write(c.s, "x", 1), -ENOTCONN); /* not yet */
	c.stop_when_connected = true;
	run_with_deadline();
	assert_int_equal(c.connects, 1);
	for (int i = 0; i < 64 && r == 0; i++) /* nobody reads */
		r = loop_stream_write(c.s, block, 65536);
	assert_int_equal(r, -ENOBUFS);
	loop_stream_close(c.s);
	close(listener);
	unlink(un.sun_path);
	rmdir(dir);
	free(block);
}

/* ---- resolve, watch ---- */

static void on_resolved(void *arg, int error, const struct netaddr *addr, size_t n)
{
	(void)arg;
	calls = error ? error : (int)n;
	if (n)
		assert_true(netaddr_is_loopback(&addr[0]) && netaddr_port(&addr[0]) == 4242);
	loop_stop(loop);
}

static void test_resolve(void **state)
{
	struct loop_resolve *q;

	(void)state;
	assert_int_equal(loop_resolve(loop, "127.0.0.1", 4242, on_resolved, NULL, &q), 0);
	run_with_deadline();
	assert_int_equal(calls, 1);
	assert_int_equal(loop_resolve(loop, "no such host", 1, on_resolved, NULL, &q), 0);
	run_with_deadline();
	assert_true(calls < 0);
}

static void write_file(const char *dir, const char *name)
{
	char path[256];
	int fd;

	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "x", 1), 1);
	close(fd);
}

static void test_watch_sees_a_file_replaced(void **state)
{
	char dir[] = "/tmp/viw-loop-XXXXXX", path[256], tmp[256];
	struct loop_watch *w;

	(void)state;
	assert_non_null(mkdtemp(dir));
	write_file(dir, "cert.pem");
	write_file(dir, "cert.tmp");
	(void)snprintf(path, sizeof(path), "%s/cert.pem", dir);
	(void)snprintf(tmp, sizeof(tmp), "%s/cert.tmp", dir);
	assert_int_equal(loop_watch_new(loop, path, stop, NULL, &w), 0);
	assert_int_equal(rename(tmp, path), 0);
	run_with_deadline();
	assert_int_equal(calls, 1);
	loop_watch_close(w);
	unlink(path);
	rmdir(dir);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	    CASE(test_timer_repeats_until_closed),
	    CASE(test_now_follows_the_clock),
	    CASE(test_later_runs_once_in_the_turn_it_was_asked),
	    CASE(test_later_asked_from_another_later_does_not_sleep),
	    CASE(test_wake_from_another_thread),
	    CASE(test_pace_keeps_turns_apart),
	    CASE(test_pace_ends_by_itself),
	    CASE(test_hurry_for_a_while),
	    CASE(test_a_loop_that_hurries_need_not_wait_at_all),
	    CASE(test_hurry_for_a_while_ends),
	    CASE(test_what_is_urgent_ends_the_sleep),
	    CASE(test_who_waits_hurries_a_paced_loop),
	    CASE(test_work_runs_elsewhere_and_reports_here),
	    CASE(test_signal_gives_its_number),
	    CASE(test_poll_reports_a_refused_connect),
	    CASE(test_stream_echo_and_end),
	    CASE(test_stream_nobody_there),
	    CASE(test_stream_write_has_a_cap),
	    CASE(test_resolve),
	    CASE(test_watch_sees_a_file_replaced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
