/* A batch of rows as binary array parameters, one array a column, for INSERT … FROM unnest. */
#pragma once

#include "pg/pg.h"

enum { COLUMNS_MAX = 32 };

struct columns {
	struct pg_array *col[COLUMNS_MAX];
	size_t n;    /* columns */
	size_t rows; /* of the first column */
	int err;     /* the first failed append, sticky until clear */
};

/* One letter a column: t text, i int4, l int8, f float8, z timestamptz (Unix ms), j jsonb, y bytea,
 * b bool. */
int columns_init(struct columns *c, const char *types) MUST_CHECK;
void columns_fini(struct columns *c);
void columns_clear(struct columns *c);
/* Each appends one value to column i. */
void columns_text(struct columns *c, size_t i, struct span s); /* t, j, y; absent: NULL */
void columns_int(struct columns *c, size_t i, int64_t v);      /* i, l, z, b */
void columns_int_if(struct columns *c, size_t i, bool set, int64_t v);
void columns_num(struct columns *c, size_t i, double v); /* f; NaN: NULL */
/* PG_OK without asking the server when there is no row. No memory: see
 * pg_no_memory. */
enum pg_verdict columns_exec(struct columns *c, struct pg *p, const struct pg_stmt *s,
			     struct pg_rows **ret_rows) MUST_CHECK;
