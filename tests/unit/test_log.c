/* Lines are caught by putting a pipe in place of stderr, and JSON is read back with jansson. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <jansson.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/log_limit.h"
#include "base/utf8.h"

static char line[16384];
static int kept = -1, ends[2];

static void catch_begin(void)
{
	assert_ok(pipe(ends));
	kept = dup(STDERR_FILENO);
	dup2(ends[1], STDERR_FILENO);
	close(ends[1]);
}

static void catch_end(void)
{
	dup2(kept, STDERR_FILENO);
	close(kept);
	ssize_t n = read(ends[0], line, sizeof line - 1); /* one write(2): one read */
	assert_true(n >= 0);
	line[n] = '\0';
	char more;
	assert_int_equal(read(ends[0], &more, 1), 0);
	close(ends[0]);
}

static json_t *caught_json(void)
{
	json_error_t e;
	size_t n = strlen(line);
	assert_true(n > 0 && n <= 8192 && line[n - 1] == '\n');
	assert_ptr_equal(strchr(line, '\n'), line + n - 1);
	json_t *j = json_loads(line, JSON_REJECT_DUPLICATES, &e);
	assert_non_null(j);
	return j;
}

static const char *text_of(json_t *j, const char *key)
{
	return json_string_value(json_object_get(j, key));
}

static void test_json_line_has_set_fields_only(void **state)
{
	(void)state;
	log_setup(true, LOG_LEVEL_INFO);
	catch_begin();
	LOG_INFO(FIELDS(.event = "connected", .agent_id = "a-1", .ip = "::1", .has_rc = true,
			.rc = -3, .has_duration_ms = true, .duration_ms = 12),
		 "agent %s", "connected");
	catch_end();
	json_t *j = caught_json();
	assert_string_equal(text_of(j, "msg"), "agent connected");
	assert_string_equal(text_of(j, "level"), "info");
	assert_string_equal(text_of(j, "event"), "connected");
	assert_string_equal(text_of(j, "agent_id"), "a-1");
	assert_int_equal(json_integer_value(json_object_get(j, "rc")), -3);
	assert_int_equal(json_integer_value(json_object_get(j, "duration_ms")), 12);
	assert_int_equal(strlen(text_of(j, "ts")), 24);
	assert_int_equal(json_object_size(j), 8);
	json_decref(j);
}

static void test_peer_text_cannot_forge_lines(void **state)
{
	(void)state;
	const char *evil = "x\",\"level\":\"error\"}\n{\"a\":1}\x1b[2J\xff";
	log_setup(true, LOG_LEVEL_INFO);
	catch_begin();
	LOG_WARN(FIELDS(.event = "e", .error = evil), "%s", evil);
	catch_end();
	json_t *j = caught_json();
	assert_string_equal(text_of(j, "level"), "warn");
	assert_true(strncmp(text_of(j, "error"), "x\",\"level\"", 10) == 0);
	json_decref(j);
	log_setup(false, LOG_LEVEL_INFO);
	catch_begin();
	LOG_WARN(FIELDS(.event = "e", .error = evil), "%s", evil);
	catch_end();
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
	assert_null(strchr(line, '\x1b'));
}

static void test_long_texts_are_cut_and_marked(void **state)
{
	static char big[20000];
	(void)state;
	memset(big, '\n', sizeof big - 1); /* each becomes two bytes */
	log_setup(true, LOG_LEVEL_DEBUG);
	catch_begin();
	LOG_DEBUG(FIELDS(.event = big, .agent_id = big, .conn_id = big, .correlation_id = big,
			 .ip = big, .error = big, .setting = big, .stream = big, .verb = big,
			 .detail = big, .has_rc = true, .has_count = true, .count = INT64_MIN,
			 .has_duration_ms = true, .duration_ms = INT64_MIN),
		  "%s", big);
	catch_end();
	json_t *j = caught_json();
	assert_non_null(strstr(text_of(j, "msg"), "...[cut]"));
	assert_non_null(strstr(text_of(j, "detail"), "...[cut]"));
	assert_true(json_is_integer(json_object_get(j, "count")));
	json_decref(j);
}

static void test_cut_keeps_utf8_whole(void **state)
{
	static char big[12001];
	(void)state;
	for (size_t i = 0; i + 3 <= sizeof big - 1; i += 3)
		memcpy(big + i, "\xe2\x82\xac", 3);
	log_setup(true, LOG_LEVEL_INFO);
	catch_begin();
	LOG_INFO(NULL, "%s", big);
	catch_end();
	json_decref(caught_json());
	assert_true(utf8_is_valid(line, strlen(line)));
	assert_null(strstr(line, "\xef\xbf\xbd"));
}

static void test_levels(void **state)
{
	enum log_level level;
	(void)state;
	log_setup(true, LOG_LEVEL_WARN);
	catch_begin();
	LOG_INFO(NULL, "unseen");
	catch_end();
	assert_string_equal(line, "");
	assert_false(log_enabled(LOG_LEVEL_INFO));
	assert_true(log_enabled(LOG_LEVEL_ERROR));
	assert_ok(log_level_parse("debug", &level));
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	assert_int_equal(log_level_parse("INFO", &level), -EINVAL);
	assert_int_equal(log_level_parse("", &level), -EINVAL);
}

static void test_text_line(void **state)
{
	(void)state;
	log_setup(false, LOG_LEVEL_INFO);
	catch_begin();
	LOG_ERROR(FIELDS(.event = "bind_failed", .error = "Address in use"), "cannot bind");
	catch_end();
	assert_string_equal(line + 24,
			    " error cannot bind event=bind_failed error=\"Address in use\"\n");
}

static void test_text_of_others_obeys_no_terminal(void **state)
{
	char text[] = "a\x1b[2J\xc2\x9b"
		      "b\x7f\xff\xc3\xa9\xe2\x82\xac\xc2";
	(void)state;
	log_setup(false, LOG_LEVEL_INFO);
	catch_begin();
	LOG_ERROR(FIELDS(.event = "x"), "%s", text);
	catch_end();
	assert_non_null(strstr(line, "a\\u001b[2J\\u009bb\\u007f\xef\xbf\xbd\xc3\xa9"));
	utf8_blank_controls(text);
	assert_string_equal(text, "a?[2J??b??\xc3\xa9\xe2\x82\xac?");
}

static void test_limit_counts_what_it_leaves_out(void **state)
{
	struct log_limit l = {0};
	(void)state;
	for (int i = 0; i < 10; i++)
		assert_int_equal(log_limit_pass(&l, 3), i < 3 ? 0 : -1);
	clock_test_shift(0, 61000);
	assert_int_equal(log_limit_pass(&l, 3), 7);
	assert_int_equal(log_limit_pass(&l, 3), 0);
	clock_test_shift(0, 0);
}

/* A reader that stands still stops nobody; what it missed is counted when it is back. */
static void test_nobody_takes_the_lines(void **state)
{
	static char filling[65536];
	static const char left_out[] = "\"event\":\"log_left_out\",\"count\":50}\n{";
	ssize_t n = 0, got;
	int64_t began_ms = clock_boot_ms();

	(void)state;
	log_setup(true, LOG_LEVEL_INFO);
	catch_begin();
	assert_ok(fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK));
	while ((got = write(STDERR_FILENO, filling, sizeof filling)) > 0)
		n += got;
	assert_ok(fcntl(STDERR_FILENO, F_SETFL, 0));
	for (int i = 0; i < 50; i++)
		LOG_INFO(FIELDS(.event = "lost"), "line %d", i);
	assert_true(clock_boot_ms() - began_ms < 5000);
	while (n > 0 && (got = read(ends[0], filling, sizeof filling)) > 0)
		n -= got;
	assert_int_equal(n, 0);
	LOG_INFO(FIELDS(.event = "back"), "taken again");
	LOG_INFO(FIELDS(.event = "back"), "and again");
	catch_end();
	assert_non_null(strstr(line, left_out));
	assert_ptr_equal(strstr(strstr(line, left_out) + 1, left_out), NULL);
	assert_non_null(strstr(line, "taken again"));
	assert_non_null(strstr(line, "and again"));
	assert_null(strstr(line, "lost"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_json_line_has_set_fields_only),
	    cmocka_unit_test(test_peer_text_cannot_forge_lines),
	    cmocka_unit_test(test_long_texts_are_cut_and_marked),
	    cmocka_unit_test(test_cut_keeps_utf8_whole),
	    cmocka_unit_test(test_levels),
	    cmocka_unit_test(test_text_line),
	    cmocka_unit_test(test_text_of_others_obeys_no_terminal),
	    cmocka_unit_test(test_limit_counts_what_it_leaves_out),
	    cmocka_unit_test(test_nobody_takes_the_lines),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
