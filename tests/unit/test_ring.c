/* The ring of TELEMETRY frames: caps, order, the declared gap. */
#include "unit.h"

#include <string.h>

#include "ring.h"

static void push(struct ring *r, uint64_t seq, int dropped)
{
	assert_int_equal(ring_push(r, "0123456789", 10, seq, NULL), dropped);
}

static void test_ring_keeps_order(void **state)
{
	struct ring r;

	(void)state;
	assert_int_equal(ring_init(&r, 3, 1000), 0);
	push(&r, 1, 0);
	push(&r, 2, 0);
	assert_int_equal(ring_oldest(&r)->seq, 1);
	ring_pop(&r);
	push(&r, 3, 0);
	push(&r, 4, 0);
	assert_int_equal(ring_oldest(&r)->seq, 2);
	assert_int_equal(ring_take_gap(&r).frames, 0);
	ring_fini(&r);
}

static void test_ring_drops_oldest_and_says_so(void **state)
{
	struct ring_gap g;
	struct ring r;
	uint64_t i;

	(void)state;
	assert_int_equal(ring_init(&r, 3, 1000), 0);
	for (i = 1; i <= 3; i++)
		push(&r, i, 0);
	push(&r, 4, 1);
	push(&r, 5, 1);
	assert_int_equal(ring_oldest(&r)->seq, 3);
	g = ring_take_gap(&r);
	assert_int_equal(g.frames, 2);
	assert_int_equal(g.first_seq, 1);
	assert_int_equal(g.last_seq, 2);
	assert_int_equal(ring_take_gap(&r).frames, 0);
	ring_fini(&r);
}

/* The frame that declared a gap was dropped itself: the gap is declared again with it. */
static void test_ring_gap_of_a_dropped_frame(void **state)
{
	struct ring_gap g = {.frames = 3, .first_seq = 1, .last_seq = 3};
	struct ring r;

	(void)state;
	assert_int_equal(ring_init(&r, 1, 1000), 0);
	assert_int_equal(ring_push(&r, "x", 1, 4, &g), 0);
	push(&r, 5, 1);
	g = ring_take_gap(&r);
	assert_int_equal(g.frames, 4);
	assert_int_equal(g.first_seq, 1);
	assert_int_equal(g.last_seq, 4);
	ring_fini(&r);
}

static void test_ring_byte_cap(void **state)
{
	struct ring r;

	(void)state;
	assert_int_equal(ring_init(&r, 100, 25), 0);
	push(&r, 1, 0);
	push(&r, 2, 0);
	push(&r, 3, 1);
	assert_int_equal(r.count, 2);
	assert_int_equal(r.bytes, 20);
	assert_int_equal(ring_push(&r, "01234567890123456789012345", 26, 4, NULL), 1);
	assert_int_equal(r.count, 2); /* the big one was dropped, not the others */
	ring_fini(&r);
	assert_null(ring_oldest(&r));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_ring_keeps_order),
	    cmocka_unit_test(test_ring_drops_oldest_and_says_so),
	    cmocka_unit_test(test_ring_gap_of_a_dropped_frame),
	    cmocka_unit_test(test_ring_byte_cap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
