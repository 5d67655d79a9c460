/* agent-bridge/masking.c: nothing secret in a RESULT before it is stored; when in doubt, nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>
#include <string.h>

#include "masking.h"

static struct buf out;

static int set_up(void **state)
{
	(void)state;
	buf_init(&out, 1 << 20);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	buf_fini(&out);
	return 0;
}

static struct wire_result answer(void)
{
	return (struct wire_result){.agent_id = SPAN("a1"),
				    .correlation_id = SPAN("c1"),
				    .stdout = SPAN("pw is hunter2x, token=abcdefgh"),
				    .stderr = SPAN("hunter2x"),
				    .error = {true, SPAN("oops"), SPAN("near hunter2x")}};
}

static void test_values_and_patterns_are_masked(void **state)
{
	struct wire_result r = answer();

	(void)state;
	assert_int_equal(masking_apply(NULL, &r, true, SPAN("some_verb"),
				       SPAN("{\"nested\":{\"userpass\":\"hunter2x\"}}"), &out),
			 0);
	assert_null(strstr(out.data, "hunter2x"));
	assert_null(strstr(out.data, "abcdefgh"));
	assert_non_null(strstr(out.data, "pw is ***"));
	assert_non_null(strstr(out.data, "\"code\":\"oops\""));
}

static void test_without_parameters_output_is_withheld(void **state)
{
	struct wire_result r = answer();

	(void)state;
	assert_int_equal(masking_apply(NULL, &r, false, SPAN(""), SPAN(""), &out), 0);
	assert_non_null(strstr(out.data, "\"stdout\":\"***\""));
	assert_non_null(strstr(out.data, "\"stderr\":\"***\""));
	assert_null(strstr(out.data, "near"));
}

static void test_parameters_that_cannot_be_read_withhold_too(void **state)
{
	struct wire_result r = answer();

	(void)state;
	assert_int_equal(masking_apply(NULL, &r, true, SPAN("v"), SPAN("not json"), &out), 0);
	assert_null(strstr(out.data, "hunter2x"));
}

static void test_absent_output_stays_absent(void **state)
{
	struct wire_result r = {.agent_id = SPAN("a1"), .correlation_id = SPAN("c1")};

	(void)state;
	assert_int_equal(masking_apply(NULL, &r, false, SPAN(""), SPAN(""), &out), 0);
	assert_null(strstr(out.data, "stdout"));
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	    CASE(test_values_and_patterns_are_masked),
	    CASE(test_without_parameters_output_is_withheld),
	    CASE(test_parameters_that_cannot_be_read_withhold_too),
	    CASE(test_absent_output_stays_absent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
