/* agent-bridge/map.c: thousands of elements, found by key, removed in any order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* after the four above */
#include <cmocka.h>
#include <stdlib.h>

#include "map.h"

struct item {
	struct map_link link;
	uint64_t key;
};

static struct item *find(const struct map *m, uint64_t key)
{
	for (struct map_link *l = map_first(m, map_hash_u64(key)); l; l = map_next(l))
		if (CONTAINER_OF(l, struct item, link)->key == key)
			return CONTAINER_OF(l, struct item, link);
	return NULL;
}

static void test_map_keeps_what_was_put(void **state)
{
	enum { N = 5000 };
	struct item *items = calloc(N, sizeof(*items));
	struct map m = {0};

	(void)state;
	assert_null(find(&m, 1));
	for (size_t i = 0; i < N; i++) {
		items[i].key = i * 3;
		assert_int_equal(map_grow(&m), 0);
		map_put(&m, &items[i].link, map_hash_u64(items[i].key));
	}
	assert_int_equal(m.count, N);
	for (size_t i = 0; i < N; i++) {
		assert_ptr_equal(find(&m, i * 3), &items[i]);
		assert_null(find(&m, i * 3 + 1));
	}
	for (size_t i = 0; i < N; i += 2)
		map_remove(&m, &items[i].link);
	map_remove(&m, &items[0].link); /* once more is nothing */
	for (size_t i = 0; i < N; i++)
		assert_ptr_equal(find(&m, i * 3), i % 2 ? &items[i] : NULL);
	assert_int_equal(m.count, N / 2);
	map_fini(&m);
	free(items);
}

static void test_map_holds_equal_hashes(void **state)
{
	struct item a = {.key = 1}, b = {.key = 2};
	struct map m = {0};

	(void)state;
	assert_int_equal(map_grow(&m), 0);
	map_put(&m, &a.link, 7);
	map_put(&m, &b.link, 7);
	assert_non_null(map_first(&m, 7));
	assert_non_null(map_next(map_first(&m, 7)));
	map_remove(&m, &a.link);
	assert_ptr_equal(map_first(&m, 7), &b.link);
	assert_null(map_next(&b.link));
	map_fini(&m);
}

static void test_map_hashes_text(void **state)
{
	(void)state;
	assert_true(map_hash_str("a1") == map_hash_str("a1"));
	assert_true(map_hash_str("a1") != map_hash_str("a2"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_map_keeps_what_was_put),
	    cmocka_unit_test(test_map_holds_equal_hashes),
	    cmocka_unit_test(test_map_hashes_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
