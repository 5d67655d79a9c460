#include "pg/array.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Wire form (src/backend/utils/adt/arrayfuncs.c, array_recv): dimensions, has-null flag, element
 * oid, then per dimension length and lower bound, then length (-1: NULL) and bytes an element.
 * All integers big-endian. */
enum { HEADER_BYTES = 20, DIMS_AT = 0, NULLS_AT = 4, OID_AT = 8, LEN_AT = 12, LBOUND_AT = 16 };

/* Microseconds from 1970 to 2000, where PostgreSQL's timestamps begin. */
#define PG_EPOCH_US INT64_C(946684800000000)

struct pg_array {
	enum pg_elem type;
	char *data; /* message with its header */
	size_t len, cap;
	uint32_t n;
	bool has_null;
};

/* Oids of pg_type.dat; they never change. */
static const struct {
	uint32_t oid;
	uint32_t width; /* of integers; 0: as long as the bytes */
} elem[] = {
    [PG_TEXT] = {25, 0},    [PG_INT4] = {23, 4},	  [PG_INT8] = {20, 8},
    [PG_FLOAT8] = {701, 8}, [PG_TIMESTAMPTZ] = {1184, 8}, [PG_JSONB] = {3802, 0},
    [PG_BYTEA] = {17, 0},   [PG_BOOL] = {16, 1},
};

static void put32(char *at, uint32_t v)
{
	v = htobe32(v);
	memcpy(at, &v, sizeof v);
}

static void array_header(struct pg_array *a)
{
	put32(a->data + DIMS_AT, a->n ? 1 : 0);
	put32(a->data + NULLS_AT, a->has_null);
	put32(a->data + OID_AT, elem[a->type].oid);
	put32(a->data + LEN_AT, a->n);
	put32(a->data + LBOUND_AT, 1);
}

int pg_array_new(enum pg_elem type, struct pg_array **ret)
{
	struct pg_array *a = calloc(1, sizeof *a);

	if (!a)
		return -ENOMEM;
	a->type = type;
	a->cap = 256;
	a->len = HEADER_BYTES;
	a->data = malloc(a->cap);
	if (!a->data) {
		free(a);
		return -ENOMEM;
	}
	array_header(a);
	*ret = a;
	return 0;
}

void pg_array_free(struct pg_array *a)
{
	if (!a)
		return;
	free(a->data);
	free(a);
}

void pg_array_clear(struct pg_array *a)
{
	/* What one huge batch needed is given back. */
	enum { KEEP_BYTES = 1 << 20 };
	if (a->cap > KEEP_BYTES) {
		char *smaller = realloc(a->data, KEEP_BYTES);
		if (smaller) {
			a->data = smaller;
			a->cap = KEEP_BYTES;
		}
	}
	a->len = HEADER_BYTES;
	a->n = 0;
	a->has_null = false;
	array_header(a);
}

/* Room for an element of n bytes; writes its length word and gives where the bytes go. */
static int array_element(struct pg_array *a, size_t n, char **ret_at)
{
	/* libpq carries lengths as int. */
	if (n > INT32_MAX / 2 || a->len + n + 4 > INT32_MAX)
		return -ENOMEM;
	if (a->len + n + 4 > a->cap) {
		size_t cap = a->cap * 2 > a->len + n + 4 ? a->cap * 2 : a->len + n + 4;
		char *larger = realloc(a->data, cap);
		if (!larger)
			return -ENOMEM;
		a->data = larger;
		a->cap = cap;
	}
	put32(a->data + a->len, (uint32_t)n);
	*ret_at = a->data + a->len + 4;
	a->len += n + 4;
	a->n++;
	return 0;
}

int pg_array_text(struct pg_array *a, struct span s)
{
	char *at;
	size_t version = a->type == PG_JSONB; /* jsonb_recv: a byte 1 before the text */

	assert(elem[a->type].width == 0);
	if (!s.p)
		return pg_array_null(a);
	int r = array_element(a, s.n + version, &at);
	if (r < 0)
		return r;
	if (version)
		*at++ = 1;
	if (s.n)
		memcpy(at, s.p, s.n);
	return 0;
}

static int array_put64(struct pg_array *a, uint64_t v)
{
	char *at;
	int r = array_element(a, sizeof v, &at);

	if (r < 0)
		return r;
	v = htobe64(v);
	memcpy(at, &v, sizeof v);
	return 0;
}

int pg_array_int(struct pg_array *a, int64_t v)
{
	char *at;
	int r;

	switch (a->type) {
	case PG_INT8:
		return array_put64(a, (uint64_t)v);
	case PG_TIMESTAMPTZ:
		if (v > INT64_MAX / 1000 || v < (INT64_MIN + PG_EPOCH_US) / 1000)
			return -ERANGE;
		return array_put64(a, (uint64_t)(v * 1000 - PG_EPOCH_US));
	case PG_INT4:
		if (v > INT32_MAX || v < INT32_MIN)
			return -ERANGE;
		r = array_element(a, 4, &at);
		if (r == 0)
			put32(at, (uint32_t)(int32_t)v);
		return r;
	case PG_BOOL:
		r = array_element(a, 1, &at);
		if (r == 0)
			*at = v != 0;
		return r;
	default:
		assert(false && "pg_array_int on another type");
		return -EINVAL;
	}
}

int pg_array_num(struct pg_array *a, double v)
{
	uint64_t bits;

	assert(a->type == PG_FLOAT8);
	memcpy(&bits, &v, sizeof bits);
	return array_put64(a, bits);
}

int pg_array_null(struct pg_array *a)
{
	char *at;
	int r = array_element(a, 0, &at);

	if (r < 0)
		return r;
	put32(at - 4, UINT32_MAX);
	a->has_null = true;
	return 0;
}

size_t pg_array_len(const struct pg_array *a)
{
	return a->n;
}

struct span pg_array_bytes(const struct pg_array *a)
{
	/* The header is a cache of the counters beside it. */
	array_header((struct pg_array *)a);
	/* An empty array has no dimension, hence no length and bound. */
	return (struct span){a->data, a->n ? a->len : LEN_AT};
}
