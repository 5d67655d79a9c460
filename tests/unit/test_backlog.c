/* What waits while Redis is away: in order, bounded, the oldest forgotten first and counted. */
#include "backlog.h"
#include "unit.h"

#include <stdio.h>

static uint64_t add(struct backlog *b, const char *text, size_t room)
{
	struct backlog_entry *e = backlog_entry_new(room);

	assert_non_null(e);
	e->n = strlen(text);
	memcpy(e->bytes, text, e->n);
	return backlog_add(b, e);
}

static void expect_first(struct backlog *b, const char *text)
{
	assert_non_null(b->first);
	assert_int_equal(b->first->n, strlen(text));
	assert_memory_equal(b->first->bytes, text, b->first->n);
	backlog_drop_oldest(b);
}

static void test_order_is_kept(void **state)
{
	struct backlog b = {.max_bytes = 1000};

	(void)state;
	assert_int_equal(add(&b, "one", 400), 0); /* what it did not need is given back */
	assert_int_equal(add(&b, "two", 400), 0);
	assert_int_equal(add(&b, "", 0), 0);
	assert_int_equal(b.bytes, 3 * sizeof(struct backlog_entry) + 6);
	expect_first(&b, "one");
	assert_int_equal(add(&b, "four", 4), 0);
	expect_first(&b, "two");
	expect_first(&b, "");
	expect_first(&b, "four");
	assert_null(b.first);
	assert_null(b.last);
	assert_int_equal(b.bytes, 0);
}

static void test_the_oldest_goes_first_and_is_counted(void **state)
{
	const size_t each = sizeof(struct backlog_entry) + 4;
	struct backlog b = {.max_bytes = 10 * each};
	uint64_t dropped = 0;
	char text[8];

	(void)state;
	for (int i = 0; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "%04d", i);
		dropped += add(&b, text, 100);
		assert_true(b.bytes <= b.max_bytes);
	}
	assert_int_equal(dropped, 990);
	for (int i = 990; i < 1000; i++) {
		(void)snprintf(text, sizeof(text), "%04d", i);
		expect_first(&b, text);
	}
	assert_null(b.first);
}

static void test_the_newest_stays_however_large(void **state)
{
	struct backlog b = {.max_bytes = 100};
	char large[501];

	(void)state;
	memset(large, 'x', 500);
	large[500] = '\0';
	assert_int_equal(add(&b, "small", 5), 0);
	assert_int_equal(add(&b, large, 500), 1);
	assert_int_equal(add(&b, "next", 4), 1);
	expect_first(&b, "next");
	assert_null(b.first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_order_is_kept),
	    cmocka_unit_test(test_the_oldest_goes_first_and_is_counted),
	    cmocka_unit_test(test_the_newest_stays_however_large),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
