#include "unit.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/metrics.h"

#define ROWS(METRIC)                                                                           \
	METRIC(COUNTER, frames, "viw_frames_total", "type,direction", NULL, "Frames by type.") \
	METRIC(GAUGE, up, "viw_up", NULL, NULL, "1 while up.")                                 \
	METRIC(COUNTER, plain, "viw_plain_total", NULL, NULL, "Back\\slash and\nnewline.")     \
	METRIC(HISTOGRAM, seconds, "viw_seconds", NULL, "0.001,0.01,1", "How long.")

enum { ROWS(METRIC_ID) COUNT };
static const struct metric_family table[] = {ROWS(METRIC_ROW)};

static struct metrics *m;

static int setup(void **state)
{
	(void)state;
	return metrics_new(table, COUNT, &m);
}

static int teardown(void **state)
{
	(void)state;
	metrics_free(m);
	return 0;
}

static void expect_has(const char *line)
{
	struct buf b;
	buf_init(&b, 1 << 20);
	assert_ok(metrics_render(m, &b));
	if (!strstr(b.data, line))
		fail_msg("missing: %s\nin:\n%s", line, b.data);
	buf_fini(&b);
}

static void test_unlabelled_are_shown_at_once(void **state)
{
	(void)state;
	expect_has("# HELP viw_up 1 while up.\n# TYPE viw_up gauge\nviw_up 0\n");
	expect_has("# HELP viw_plain_total Back\\\\slash and\\nnewline.\n# TYPE viw_plain_total "
		   "counter\nviw_plain_total 0\n");
	expect_has("viw_seconds_bucket{le=\"+Inf\"} 0\nviw_seconds_sum 0\nviw_seconds_count 0\n");
	expect_has("# TYPE viw_frames_total counter\n#");
}

static void test_counters_and_labels(void **state)
{
	(void)state;
	struct metric *s = metrics_get(m, M_frames, "HELLO", "in");
	metric_add(s, 2);
	assert_ptr_equal(s, metrics_get(m, M_frames, "HELLO", "in"));
	metric_add(metrics_get(m, M_frames, "q\"b\\n\n", "out"), 1);
	expect_has("viw_frames_total{type=\"HELLO\",direction=\"in\"} 2\n");
	expect_has("viw_frames_total{type=\"q\\\"b\\\\n\\n\",direction=\"out\"} 1\n");
	assert_true(metric_value(s) == 2);
}

static void test_gauge(void **state)
{
	(void)state;
	struct metric *s = metrics_get(m, M_up, NULL, NULL);
	metric_set(s, 1.5);
	expect_has("viw_up 1.5\n");
	metric_set(s, INFINITY);
	expect_has("viw_up +Inf\n");
	metric_set(s, -1);
	metric_add(s, 3);
	assert_true(metric_value(s) == 2);
}

static void test_histogram_is_cumulative(void **state)
{
	(void)state;
	struct metric *s = metrics_get(m, M_seconds, NULL, NULL);
	metric_observe(s, 0.001); /* bounds are inclusive */
	metric_observe(s, 0.002);
	metric_observe(s, 0.5);
	metric_observe(s, 7);
	expect_has("viw_seconds_bucket{le=\"0.001\"} 1\nviw_seconds_bucket{le=\"0.01\"} 2\n"
		   "viw_seconds_bucket{le=\"1\"} 3\nviw_seconds_bucket{le=\"+Inf\"} 4\n"
		   "viw_seconds_sum 7.503\nviw_seconds_count 4\n");
}

static void test_series_are_bounded(void **state)
{
	(void)state;
	for (int i = 0; i < 1000; i++) {
		char v[16];
		snprintf(v, sizeof v, "t%d", i);
		metric_add(metrics_get(m, M_frames, v, "in"), 1);
	}
	expect_has("viw_frames_total{type=\"t255\",direction=\"in\"} 1\n");
	expect_has("viw_frames_total{type=\"other\",direction=\"other\"} 744\n");
}

static int files_in_folder(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = -3; /* ".", ".." and the folder itself */

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void test_process_lines(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 1 << 20);
	assert_ok(metrics_render(m, &b));
	const char *rss = strstr(b.data, "\nprocess_resident_memory_bytes ");
	const char *start = strstr(b.data, "\nprocess_start_time_seconds ");
	const char *fds = strstr(b.data, "\nprocess_open_fds ");
	assert_true(rss && start && fds);
	assert_true(strtod(strchr(rss, ' '), NULL) > 500000);
	assert_true(strtod(strchr(fds, ' '), NULL) >= 3);
	assert_int_equal((int)strtod(strchr(fds, ' '), NULL), files_in_folder());
	double age = (double)time(NULL) - strtod(strchr(start, ' '), NULL);
	assert_true(age > -2 && age < 600);
	buf_fini(&b);
}

static void *count_up(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20000; i++) {
		char v[8];
		snprintf(v, sizeof v, "%d", i % 300);
		metric_add(metrics_get(m, M_plain, NULL, NULL), 1);
		metric_add(metrics_get(m, M_frames, v, "t"), 1);
		metric_observe(metrics_get(m, M_seconds, NULL, NULL), 0.5);
	}
	return NULL;
}

static void test_threads_lose_nothing(void **state)
{
	pthread_t t[3];
	(void)state;
	for (int i = 0; i < 3; i++)
		assert_ok(pthread_create(&t[i], NULL, count_up, NULL));
	for (int i = 0; i < 20; i++)
		expect_has("viw_plain_total ");
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	expect_has("viw_plain_total 60000\n");
	expect_has("viw_seconds_sum 30000\nviw_seconds_count 60000\n");
	expect_has("viw_frames_total{type=\"255\",direction=\"t\"} 198\n");
}

static void test_markdown(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 4096);
	assert_ok(metrics_markdown(table, COUNT, &b));
	assert_non_null(strstr(
	    b.data, "| `viw_frames_total` | counter | `type,direction` | Frames by type. |\n"));
	buf_fini(&b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(test_unlabelled_are_shown_at_once),
	    T(test_counters_and_labels),
	    T(test_gauge),
	    T(test_histogram_is_cumulative),
	    T(test_series_are_bounded),
	    T(test_process_lines),
	    T(test_threads_lose_nothing),
	    T(test_markdown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
