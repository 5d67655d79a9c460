#include "unit.h"

#include <errno.h>

#include "base/buf.h"

static void test_append_grows_and_terminates(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 10000);
	assert_null(b.data);
	for (int i = 0; i < 1000; i++)
		assert_ok(buf_append_char(&b, 'x'));
	assert_int_equal(b.len, 1000);
	assert_int_equal(b.data[1000], '\0');
	assert_ok(buf_append_str(&b, "end"));
	assert_string_equal(b.data + 1000, "end");
	buf_fini(&b);
	buf_fini(&b);
}

static void test_append_over_cap_changes_nothing(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 8);
	assert_ok(buf_append(&b, "12345678", 8));
	assert_int_equal(buf_append_char(&b, '9'), -ENOBUFS);
	assert_int_equal(buf_append(&b, "x", SIZE_MAX), -ENOBUFS);
	assert_string_equal(b.data, "12345678");
	buf_consume(&b, 3);
	assert_string_equal(b.data, "45678");
	assert_int_equal(buf_appendf(&b, "%s", "four"), -ENOBUFS);
	assert_string_equal(b.data, "45678");
	assert_ok(buf_appendf(&b, "%d", 999));
	assert_string_equal(b.data, "45678999");
	buf_fini(&b);
}

static void test_appendf_longer_than_room(void **state)
{
	struct buf b;
	char want[301];
	(void)state;
	memset(want, 'a', 300);
	want[300] = '\0';
	buf_init(&b, 4096);
	assert_ok(buf_append_str(&b, "p"));
	assert_ok(buf_appendf(&b, "%s", want));
	assert_int_equal(b.len, 301);
	assert_string_equal(b.data + 1, want);
	buf_fini(&b);
}

static void test_reserve_commit(void **state)
{
	struct buf b;
	char *at;
	(void)state;
	buf_init(&b, 100);
	assert_int_equal(buf_reserve(&b, 101, &at), -ENOBUFS);
	assert_ok(buf_reserve(&b, 100, &at));
	memcpy(at, "abc", 3);
	buf_commit(&b, 3);
	assert_string_equal(b.data, "abc");
	buf_fini(&b);
}

static void test_wipe_clears_all_of_it(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 100);
	assert_ok(buf_append_str(&b, "secret"));
	buf_consume(&b, 2);
	buf_wipe(&b);
	assert_int_equal(b.len, 0);
	for (size_t i = 0; i <= b.cap; i++)
		assert_int_equal(b.data[i], 0);
	buf_fini(&b);
}

static void test_trim_only_when_empty(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 10000);
	for (int i = 0; i < 500; i++)
		assert_ok(buf_append_str(&b, "0123456789"));
	buf_trim(&b, 1024);
	assert_int_equal(b.len, 5000);
	buf_clear(&b);
	buf_trim(&b, 1024);
	assert_null(b.data);
	assert_ok(buf_append_str(&b, "again"));
	buf_clear(&b);
	buf_trim(&b, 1024);
	assert_non_null(b.data);
	buf_fini(&b);
}

static void test_fit_keeps_the_content(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 10000);
	buf_fit(&b);
	assert_null(b.data);
	for (int i = 0; i < 500; i++)
		assert_ok(buf_append_str(&b, "0123456789"));
	buf_clear(&b);
	assert_ok(buf_append_str(&b, "short"));
	buf_fit(&b);
	assert_int_equal(b.cap, 5);
	assert_string_equal(b.data, "short");
	assert_ok(buf_append_str(&b, " and on"));
	assert_string_equal(b.data, "short and on");
	buf_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_append_grows_and_terminates),
	    cmocka_unit_test(test_append_over_cap_changes_nothing),
	    cmocka_unit_test(test_appendf_longer_than_room),
	    cmocka_unit_test(test_reserve_commit),
	    cmocka_unit_test(test_wipe_clears_all_of_it),
	    cmocka_unit_test(test_trim_only_when_empty),
	    cmocka_unit_test(test_fit_keeps_the_content),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
