#include "columns.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

static enum pg_elem elem_of(char letter)
{
	static const char letters[] = "tilfzjyb";
	static const enum pg_elem elem[] = {PG_TEXT,	    PG_INT4,  PG_INT8,	PG_FLOAT8,
					    PG_TIMESTAMPTZ, PG_JSONB, PG_BYTEA, PG_BOOL};
	const char *at = strchr(letters, letter);

	assert(at && *at);
	return elem[at - letters];
}

int columns_init(struct columns *c, const char *types)
{
	*c = (struct columns){0};
	assert(strlen(types) <= COLUMNS_MAX);
	for (; *types; types++) {
		int r = pg_array_new(elem_of(*types), &c->col[c->n]);
		if (r < 0) {
			columns_fini(c);
			return r;
		}
		c->n++;
	}
	return 0;
}

void columns_fini(struct columns *c)
{
	for (size_t i = 0; i < c->n; i++)
		pg_array_free(c->col[i]);
	*c = (struct columns){0};
}

void columns_clear(struct columns *c)
{
	for (size_t i = 0; i < c->n; i++)
		pg_array_clear(c->col[i]);
	c->rows = 0;
	c->err = 0;
}

static void columns_took(struct columns *c, size_t i, int r)
{
	if (r < 0 && c->err == 0)
		c->err = r;
	if (i == 0)
		c->rows++;
}

void columns_text(struct columns *c, size_t i, struct span s)
{
	columns_took(c, i, pg_array_text(c->col[i], s));
}

void columns_int(struct columns *c, size_t i, int64_t v)
{
	columns_took(c, i, pg_array_int(c->col[i], v));
}

void columns_int_if(struct columns *c, size_t i, bool set, int64_t v)
{
	columns_took(c, i, set ? pg_array_int(c->col[i], v) : pg_array_null(c->col[i]));
}

void columns_num(struct columns *c, size_t i, double v)
{
	columns_took(c, i, isnan(v) ? pg_array_null(c->col[i]) : pg_array_num(c->col[i], v));
}

enum pg_verdict columns_exec(struct columns *c, struct pg *p, const struct pg_stmt *s,
			     struct pg_rows **ret_rows)
{
	struct pg_param param[COLUMNS_MAX];

	/* A value that does not fit its column is one row's fault; no memory is nobody's. */
	if (c->err)
		return c->err == -ERANGE ? PG_BAD_DATA : pg_no_memory(p);
	if (c->rows == 0)
		return PG_OK;
	for (size_t i = 0; i < c->n; i++)
		param[i] = (struct pg_param){.kind = PG_PARAM_ARRAY, .array = c->col[i]};
	return pg_exec(p, s, c->n, param, ret_rows);
}
