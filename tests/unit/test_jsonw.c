#include "unit.h"

#include <errno.h>
#include <math.h>

#include "base/jsonw.h"

static struct buf out;
static struct jsonw w;

static int setup(void **state)
{
	(void)state;
	buf_init(&out, 4096);
	jsonw_init(&w, &out);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	buf_fini(&out);
	return 0;
}

static void expect(const char *text)
{
	assert_ok(jsonw_finish(&w));
	assert_string_equal(out.data, text);
}

static void test_nested_commas(void **state)
{
	(void)state;
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "a", "x");
	jsonw_str(&w, "absent", NULL);
	jsonw_arr(&w, "l");
	jsonw_int(&w, NULL, -1);
	jsonw_uint(&w, NULL, UINT64_MAX);
	jsonw_obj(&w, NULL);
	jsonw_obj_end(&w);
	jsonw_arr_end(&w);
	jsonw_obj(&w, "o");
	jsonw_bool(&w, "t", true);
	jsonw_raw(&w, "r", "[1,2]", 5);
	jsonw_obj_end(&w);
	jsonw_int(&w, "min", INT64_MIN);
	jsonw_obj_end(&w);
	expect("{\"a\":\"x\",\"l\":[-1,18446744073709551615,{}],\"o\":{\"t\":true,\"r\":[1,2]},"
	       "\"min\":-9223372036854775808}");
}

static void test_strings_are_escaped(void **state)
{
	(void)state;
	jsonw_strn(&w, NULL, "q\" b\\ \b\t\n\f\r \x01\x0b\x7f \0z", 18);
	expect("\"q\\\" b\\\\ \\b\\t\\n\\f\\r \\u0001\\u000b\\u007f \\u0000z\"");
}

static void test_bad_utf8_is_replaced(void **state)
{
	(void)state;
	jsonw_str(&w, NULL, "\xc3\xa4 \xff \xc0\x80 \xed\xa0\x80 \xf0\x9f\x98\x80 \xe2\x82");
	expect(
	    "\"\xc3\xa4 \xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd "
	    "\xf0\x9f\x98\x80 \xef\xbf\xbd\xef\xbf\xbd\"");
}

static void test_numbers(void **state)
{
	(void)state;
	jsonw_arr(&w, NULL);
	jsonw_num(&w, NULL, 0);
	jsonw_num(&w, NULL, 1);
	jsonw_num(&w, NULL, 1.5);
	jsonw_num(&w, NULL, -12.3456);
	jsonw_num(&w, NULL, 0.00012345);
	jsonw_num(&w, NULL, NAN);
	jsonw_num(&w, NULL, INFINITY);
	jsonw_num(&w, NULL, 100);
	jsonw_num(&w, NULL, 1e300);
	jsonw_arr_end(&w);
	expect("[0,1,1.5,-12.346,0.00012345,100,1e+300]");
}

static void test_first_error_sticks(void **state)
{
	struct buf small;
	(void)state;
	buf_init(&small, 10);
	jsonw_init(&w, &small);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "key", "far too long for ten bytes");
	jsonw_int(&w, "a", 1);
	jsonw_obj_end(&w);
	assert_int_equal(jsonw_finish(&w), -ENOBUFS);
	assert_true(small.len <= 10);
	buf_fini(&small);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_nested_commas, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_strings_are_escaped, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_bad_utf8_is_replaced, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_first_error_sticks, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
