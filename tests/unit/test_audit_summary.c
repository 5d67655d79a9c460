/* Summaries of the helper's audit log: what each says, and from where. */
#include "unit.h"

#include <errno.h>
#include <string.h>

#include "audit_summary.h"

static struct audit_summary s;
static struct buf out;

static int setup(void **state)
{
	(void)state;
	audit_summary_init(&s);
	buf_init(&out, AUDIT_SUMMARY_MAX);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	audit_summary_fini(&s);
	buf_fini(&out);
	return 0;
}

static void learn(const char *json)
{
	assert_int_equal(audit_summary_learn(&s, span_of(json)), 0);
}

static const char *compose(void)
{
	buf_clear(&out);
	assert_int_equal(audit_summary_compose(&s, &out), 0);
	return out.data;
}

#define HELLO(seq, counts) \
	"{\"seq\":" seq ",\"hash\":\"h" seq "\",\"ts\":\"t\",\"from_seq\":1,\"counts\":" counts "}"
#define RECORD(seq, from, counts)                                                \
	"{\"seq\":" seq ",\"hash\":\"h" seq "\",\"ts\":\"t\",\"from_seq\":" from \
	",\"counts\":" counts "}"

static void test_compose_since_the_last_one(void **state)
{
	(void)state;
	assert_int_equal(audit_summary_compose(&s, &out), -ENODATA);
	learn(HELLO("5", "{\"make\":{\"ok\":2}}"));
	assert_string_equal(compose(), RECORD("5", "1", "{\"make\":{\"ok\":2}}"));
	audit_summary_sent(&s);
	learn(HELLO("9", "{\"make\":{\"ok\":3,\"failed\":1},\"*\":{\"bad_mac\":2}}"));
	assert_string_equal(
	    compose(),
	    RECORD("9", "5", "{\"make\":{\"ok\":1,\"failed\":1},\"*\":{\"bad_mac\":2}}"));
	audit_summary_sent(&s);
	assert_string_equal(compose(), RECORD("9", "9", "{}"));
}

static void test_compose_tells_again_what_a_lost_connection_took(void **state)
{
	(void)state;
	learn(HELLO("5", "{\"make\":{\"ok\":2}}"));
	audit_summary_sent(&s);
	learn(HELLO("7", "{\"make\":{\"ok\":3}}"));
	audit_summary_sent(&s); /* on the same connection: 5 has arrived, 7 perhaps not */
	audit_summary_session_end(&s);
	learn(HELLO("8", "{\"make\":{\"ok\":4}}"));
	assert_string_equal(compose(), RECORD("8", "5", "{\"make\":{\"ok\":2}}"));
}

static void test_compose_after_the_helper_started_anew(void **state)
{
	(void)state;
	learn(HELLO("50", "{\"make\":{\"ok\":20}}"));
	audit_summary_sent(&s);
	learn("{\"seq\":60,\"hash\":\"h60\",\"ts\":\"t\",\"from_seq\":55,\"counts\":{\"make\":{"
	      "\"ok\":1}}}");
	assert_string_equal(compose(), RECORD("60", "55", "{\"make\":{\"ok\":1}}"));
	audit_summary_sent(&s);
	/* another journal that began at the same record: a count fell */
	learn("{\"seq\":61,\"hash\":\"h61\",\"ts\":\"t\",\"from_seq\":55,\"counts\":{\"look\":{"
	      "\"ok\":9},"
	      "\"make\":{\"ok\":0}}}");
	assert_string_equal(compose(), RECORD("61", "55", "{\"look\":{\"ok\":9}}"));
}

static void test_compose_of_a_helper_that_does_not_count(void **state)
{
	(void)state;
	learn("{\"seq\":5,\"hash\":\"h\",\"ts\":\"t\"}");
	assert_string_equal(compose(), "{\"seq\":5,\"hash\":\"h\",\"ts\":\"t\"}");
	assert_int_equal(audit_summary_learn(&s, SPAN("{\"seq\":-1}")), -EBADMSG);
	assert_int_equal(audit_summary_learn(&s, SPAN("{\"hash\":\"h\"}")), -EBADMSG);
	/* of nonsense among the counts only what is none is left out */
	learn("{\"seq\":6,\"from_seq\":1,\"counts\":{\"a\":3,\"b\":{\"x\":\"y\",\"z\":1},\"c\\\\\":"
	      "{\"q\":1}}}");
	assert_string_equal(compose(), "{\"seq\":6,\"from_seq\":1,\"counts\":{\"b\":{\"z\":1}}}");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	    T(test_compose_since_the_last_one),
	    T(test_compose_tells_again_what_a_lost_connection_took),
	    T(test_compose_after_the_helper_started_anew),
	    T(test_compose_of_a_helper_that_does_not_count),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
