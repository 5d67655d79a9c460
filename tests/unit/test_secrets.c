#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "secrets.h"

static struct secret_set set_of(const char *value)
{
	struct secret_set s = {0};
	char params[64];

	snprintf(params, sizeof params, "{\"password\":\"%s\"}", value);
	assert_int_equal(secret_set_from_params(NULL, span_of(params), &s), 0);
	assert_int_equal(s.n, 1);
	return s;
}

static void put(struct secrets *s, const char *id, const char *value, int64_t now_ms)
{
	struct secret_set set = set_of(value);

	secrets_put(s, span_of(id), &set, now_ms);
	assert_int_equal(set.n, 0); /* taken over */
}

static void test_put_get_and_first_one_stays(void **state)
{
	struct secrets *s;

	(void)state;
	assert_int_equal(secrets_new(&s), 0);
	assert_null(secrets_get(s, SPAN("c-1")));
	put(s, "c-1", "first-secret", 1);
	put(s, "c-1", "other-secret", 2);
	assert_string_equal(secrets_get(s, SPAN("c-1"))->value[0], "first-secret");
	assert_null(secrets_get(s, SPAN("c-2")));
	secrets_free(s);
}

static void test_oldest_is_forgotten_when_full(void **state)
{
	struct secrets *s;
	char id[32];

	(void)state;
	assert_int_equal(secrets_new(&s), 0);
	for (int i = 0; i < 10000; i++) {
		snprintf(id, sizeof id, "cmd-%05d", i);
		put(s, id, id, i);
	}
	for (int i = 0; i < 10000; i++) {
		snprintf(id, sizeof id, "cmd-%05d", i);
		const struct secret_set *set = secrets_get(s, span_of(id));
		if (i < 10000 - 4096)
			assert_null(set);
		else
			assert_string_equal(set->value[0], id);
	}
	secrets_free(s);
}

static void test_old_ones_are_dropped(void **state)
{
	struct secrets *s;

	(void)state;
	assert_int_equal(secrets_new(&s), 0);
	put(s, "c-old", "value-old", 1000);
	put(s, "c-new", "value-new", 5000);
	secrets_drop_old(s, 6000, 3000);
	assert_null(secrets_get(s, SPAN("c-old")));
	assert_non_null(secrets_get(s, SPAN("c-new")));
	secrets_drop_old(s, 60000, 3000);
	assert_null(secrets_get(s, SPAN("c-new")));
	secrets_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_put_get_and_first_one_stays),
	    cmocka_unit_test(test_oldest_is_forgotten_when_full),
	    cmocka_unit_test(test_old_ones_are_dropped),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
