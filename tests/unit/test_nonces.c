#include "unit.h"

#include <errno.h>
#include <stdio.h>

#include "crypto/nonces.h"

static int add(struct nonces *s, const char *owner, const char *nonce, int64_t until, int64_t now)
{
	return nonces_add(s, owner, nonce, strlen(nonce), until, now);
}

static void test_seen_until_its_time(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, "a", "n", 1000, 0));
	assert_int_equal(add(s, "a", "n", 1000, 999), -EEXIST);
	assert_int_equal(add(s, "a", "n", 5000, 500), -EEXIST);
	assert_ok(add(s, "a", "n", 2000, 1000));
	assert_int_equal(add(s, "a", "n", 2000, 1500), -EEXIST);
	nonces_free(s);
}

static void test_owners_are_apart(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, "a", "bc", 1000, 0));
	assert_ok(add(s, "ab", "c", 1000, 0));
	assert_ok(add(s, "b", "bc", 1000, 0));
	assert_int_equal(add(s, "ab", "c", 1000, 0), -EEXIST);
	assert_int_equal(nonces_count(s), 3);
	nonces_free(s);
}

static void test_long_texts(void **state)
{
	struct nonces *s;
	char a[400], b[400];
	(void)state;
	memset(a, 'a', sizeof a - 1);
	memset(b, 'a', sizeof b - 1);
	a[399] = b[399] = '\0';
	b[398] = 'b';
	assert_ok(nonces_new(10, &s));
	assert_ok(add(s, a, a, 1000, 0));
	assert_ok(add(s, a, b, 1000, 0));
	assert_ok(add(s, b, a, 1000, 0));
	assert_int_equal(add(s, a, a, 1000, 0), -EEXIST);
	assert_int_equal(add(s, b, a, 1000, 0), -EEXIST);
	nonces_free(s);
}

static void test_full_refuses_and_forgets_nothing(void **state)
{
	struct nonces *s;
	char n[16];
	(void)state;
	assert_ok(nonces_new(1000, &s));
	for (int i = 0; i < 1000; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_ok(add(s, "a", n, 1000 + i, 0));
	}
	assert_int_equal(add(s, "a", "one more", 9000, 0), -ENOSPC);
	assert_int_equal(add(s, "a", "one more", 9000, 999), -ENOSPC);
	for (int i = 0; i < 1000; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_int_equal(add(s, "a", n, 9000, 500), -EEXIST);
	}
	/* the first ten have run out */
	for (int i = 0; i < 10; i++) {
		snprintf(n, sizeof n, "m%d", i);
		assert_ok(add(s, "a", n, 9000, 1009));
	}
	assert_int_equal(add(s, "a", "m10", 9000, 1009), -ENOSPC);
	for (int i = 10; i < 1000; i++) {
		snprintf(n, sizeof n, "n%d", i);
		assert_int_equal(add(s, "a", n, 9000, 1009), -EEXIST);
	}
	nonces_free(s);
}

static void test_steady_flow_stays_small(void **state)
{
	struct nonces *s;
	char n[16];
	(void)state;
	assert_ok(nonces_new(1000000, &s));
	for (int i = 0; i < 50000; i++) { /* each lives 100 ms, one a millisecond */
		snprintf(n, sizeof n, "n%d", i);
		assert_ok(add(s, "a", n, i + 100, i));
		assert_int_equal(add(s, "a", n, i + 100, i), -EEXIST);
		assert_true(nonces_count(s) <= 400);
	}
	nonces_free(s);
}

static void test_capacity_zero_refuses(void **state)
{
	struct nonces *s;
	(void)state;
	assert_ok(nonces_new(0, &s));
	assert_int_equal(add(s, "a", "n", 10, 0), -ENOSPC);
	nonces_free(s);
	nonces_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_seen_until_its_time),
	    cmocka_unit_test(test_owners_are_apart),
	    cmocka_unit_test(test_long_texts),
	    cmocka_unit_test(test_full_refuses_and_forgets_nothing),
	    cmocka_unit_test(test_steady_flow_stays_small),
	    cmocka_unit_test(test_capacity_zero_refuses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
