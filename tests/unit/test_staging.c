/* Staging ahead, and what missing memory does to it. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* clang-format off */
#include <cmocka.h>
/* clang-format on */

#include "arena.h"
#include "staging.h"
#include "worker.h"

enum { N = 5 };

struct program {	 /* what it was asked to do */
	char staged[64]; /* entry ids, each of one letter */
	size_t n;
	unsigned cleared, folds;
	char fails; /* this entry finds no memory; '\0': none */
};

static const char *on_stage(void *arg, unsigned stream, const struct stream_entry *e)
{
	struct program *p = arg;

	assert_int_equal(stream, 0);
	if (e->id.p[0] == p->fails)
		return no_memory;
	p->staged[p->n++] = e->id.p[0];
	p->staged[p->n] = '\0';
	return NULL;
}

static void on_clear(void *arg)
{
	struct program *p = arg;

	p->n = 0;
	p->staged[0] = '\0';
	p->folds = 0;
	p->cleared++;
}

static bool on_fold(void *arg)
{
	struct program *p = arg;

	return p->folds++ < 2;
}

static const struct worker_ops ops = {.stage = on_stage, .clear = on_clear, .fold = on_fold};

struct world {
	struct program p;
	struct intake *intake;
	struct staging s;
	struct intake_entry item[N];
	struct intake_batch b;
};

static void world_init(struct world *w)
{
	static const struct intake_config c = {.redis_url = "redis://127.0.0.1:1",
					       .group = "g",
					       .consumer = "c",
					       .stream = {"stream"},
					       .batch_max = N};
	static const char ids[] = "abcde";

	*w = (struct world){0};
	assert_int_equal(intake_new(&c, &w->intake), 0);
	assert_int_equal(staging_init(&w->s, &ops, &w->p, w->intake), 0);
	for (size_t i = 0; i < N; i++) /* any fields will do: none is read here */
		w->item[i] = (struct intake_entry){
		    .e = {.id = {ids + i, 1}, .fields = (const struct redis_reply *)w}};
	w->b = (struct intake_batch){.item = w->item, .n = N, .serial = 7};
}

static void world_fini(struct world *w)
{
	staging_fini(&w->s);
	intake_free(w->intake);
}

static void test_what_was_staged_ahead_is_not_staged_again(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	assert_true(staging_ahead(&w.s, &w.b, 2));
	assert_string_equal(w.p.staged, "ab");
	assert_int_equal(staging_range(&w.s, &w.b, 0, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "abcde");
	assert_int_equal(w.p.cleared, 1);
	/* The same batch in halves begins anew. */
	assert_int_equal(staging_range(&w.s, &w.b, 3, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "de");
	world_fini(&w);
}

static void test_all_staged_ahead_is_folded_ahead(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	assert_true(staging_ahead(&w.s, &w.b, 100));
	assert_int_equal(w.p.folds, 0);
	assert_true(staging_ahead(&w.s, &w.b, 100));
	assert_true(staging_ahead(&w.s, &w.b, 100));
	assert_false(staging_ahead(&w.s, &w.b, 100));
	assert_int_equal(w.p.folds, 3);
	assert_int_equal(staging_range(&w.s, &w.b, 0, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "abcde");
	world_fini(&w);
}

/* Redis was away: the same entries come again, or others in their place. */
static void test_another_batch_begins_anew(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	assert_true(staging_ahead(&w.s, &w.b, 3));
	w.b.serial++;
	assert_true(staging_ahead(&w.s, &w.b, 1));
	assert_string_equal(w.p.staged, "a");
	w.b.serial++;
	assert_int_equal(staging_range(&w.s, &w.b, 0, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "abcde");
	world_fini(&w);
}

static void test_missing_memory_makes_no_dead_letter(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	w.p.fails = 'c';
	assert_false(staging_ahead(&w.s, &w.b, N));
	assert_false(staging_ahead(&w.s, &w.b, N)); /* and is not tried again and again */
	assert_int_equal(w.p.cleared, 1);
	assert_int_equal(staging_range(&w.s, &w.b, 0, N, NULL, NULL), -ENOMEM);
	assert_int_equal(staging_range(&w.s, &w.b, 0, 2, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "ab");
	w.p.fails = '\0';
	assert_int_equal(staging_range(&w.s, &w.b, 2, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "cde");
	assert_int_equal(w.s.dead.c.rows, 0);
	world_fini(&w);
}

static void test_gone_and_too_large_ones(void **state)
{
	struct world w;

	(void)state;
	world_init(&w);
	w.item[1].e.fields = NULL; /* trimmed while pending */
	w.item[2] = (struct intake_entry){.e.id = w.item[2].e.id, .large = true};
	assert_int_equal(staging_range(&w.s, &w.b, 0, N, NULL, NULL), 0);
	assert_string_equal(w.p.staged, "ade");
	assert_int_equal(w.s.dead.c.rows, 1);
	assert_int_equal(w.s.dead_notes.n, 1);
	assert_string_equal(w.s.dead_notes.item[0].reason, "too_large");
	world_fini(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_what_was_staged_ahead_is_not_staged_again),
	    cmocka_unit_test(test_all_staged_ahead_is_folded_ahead),
	    cmocka_unit_test(test_another_batch_begins_anew),
	    cmocka_unit_test(test_missing_memory_makes_no_dead_letter),
	    cmocka_unit_test(test_gone_and_too_large_ones),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
