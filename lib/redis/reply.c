/*
 * Replies: hiredis' protocol reader building our own reply tree in an arena, so that a reply costs
 * no malloc and no third-party type leaves this file. The arena lives for one reply.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <hiredis/hiredis.h>
#include <hiredis/read.h>
enum { READER_OK = REDIS_OK };
#undef REDIS_ERR /* a reply type of ours */

#include "redis_internal.h"

#define ARENA_CHUNK_BYTES 16384

#if HIREDIS_MAJOR >= 1
typedef size_t array_len; /* hiredis changed this type in 1.0 */
#else
typedef int array_len;
#endif

struct redis_reply {
	enum redis_type type;
	int64_t integer;
	struct span str;
	size_t n;
	struct redis_reply **item;
};

struct chunk {
	struct chunk *next;
	size_t used, cap;
	max_align_t bytes[];
};

struct redis_reader {
	redisReader *rd;
	struct chunk *chunks; /* the newest first; the last one is kept between replies */
	size_t held;	      /* bytes of them */
};

static void *arena_alloc(struct redis_reader *d, size_t n)
{
	struct chunk *c = d->chunks;
	void *p;

	n = (n + _Alignof(max_align_t) - 1) & ~(_Alignof(max_align_t) - 1);
	if (!c || c->cap - c->used < n) {
		size_t cap = n > ARENA_CHUNK_BYTES ? n : ARENA_CHUNK_BYTES;

		c = malloc(sizeof(*c) + cap);
		if (!c)
			return NULL;
		c->next = d->chunks;
		c->used = 0;
		c->cap = cap;
		d->chunks = c;
		d->held += cap;
	}
	p = (char *)c->bytes + c->used;
	c->used += n;
	return p;
}

static void arena_reset(struct redis_reader *d)
{
	while (d->chunks && (d->chunks->next || d->chunks->cap > ARENA_CHUNK_BYTES)) {
		struct chunk *c = d->chunks;

		d->chunks = c->next;
		d->held -= c->cap;
		free(c);
	}
	if (d->chunks)
		d->chunks->used = 0;
}

/* Makes a reply and hangs it into its parent's slot. */
static struct redis_reply *make(const redisReadTask *t, enum redis_type type)
{
	struct redis_reply *r = arena_alloc(t->privdata, sizeof(*r));

	if (!r)
		return NULL;
	*r = (struct redis_reply){.type = type};
	if (t->parent)
		((struct redis_reply *)t->parent->obj)->item[t->idx] = r;
	return r;
}

static void *create_string(const redisReadTask *t, char *bytes, size_t n)
{
	enum redis_type type = t->type == REDIS_REPLY_ERROR    ? REDIS_ERR
			       : t->type == REDIS_REPLY_STATUS ? REDIS_STATUS
							       : REDIS_STR;
	struct redis_reply *r = make(t, type);
	char *copy;

	if (!r)
		return NULL;
	copy = arena_alloc(t->privdata, n + 1);
	if (!copy)
		return NULL;
	memcpy(copy, bytes, n);
	copy[n] = '\0';
	r->str = (struct span){copy, n};
	return r;
}

static void *create_array(const redisReadTask *t, array_len n)
{
	struct redis_reply *r = make(t, REDIS_ARR);

	if (!r)
		return NULL;
	r->n = (size_t)n;
	r->item = arena_alloc(t->privdata, r->n * sizeof(struct redis_reply *));
	if (!r->item)
		return NULL;
	memset((void *)r->item, 0, r->n * sizeof(struct redis_reply *));
	return r;
}

static void *create_integer(const redisReadTask *t, long long v)
{
	struct redis_reply *r = make(t, REDIS_INT);

	if (r)
		r->integer = v;
	return r;
}

static void *create_nil(const redisReadTask *t)
{
	return make(t, REDIS_NIL);
}

#if HIREDIS_MAJOR >= 1
/* RESP3 only, which is never asked for. */
static void *create_double(const redisReadTask *t, double v, char *bytes, size_t n)
{
	(void)v;
	return create_string(t, bytes, n);
}

static void *create_bool(const redisReadTask *t, int v)
{
	return create_integer(t, v);
}
#endif

static void free_object(void *r)
{
	(void)r; /* the arena's */
}

static redisReplyObjectFunctions functions = {
    .createString = create_string,
    .createArray = create_array,
    .createInteger = create_integer,
    .createNil = create_nil,
#if HIREDIS_MAJOR >= 1
    .createDouble = create_double,
    .createBool = create_bool,
#endif
    .freeObject = free_object,
};

int redis_reader_reset(struct redis_reader *d)
{
	redisReader *rd = redisReaderCreateWithFunctions(&functions);

	if (!rd)
		return -ENOMEM;
	if (d->rd)
		redisReaderFree(d->rd);
	rd->privdata = d;
	d->rd = rd;
	arena_reset(d);
	return 0;
}

int redis_reader_new(struct redis_reader **ret)
{
	struct redis_reader *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	if (redis_reader_reset(d) < 0) {
		free(d);
		return -ENOMEM;
	}
	*ret = d;
	return 0;
}

void redis_reader_free(struct redis_reader *d)
{
	if (!d)
		return;
	redisReaderFree(d->rd);
	arena_reset(d);
	free(d->chunks);
	free(d);
}

int redis_reader_feed(struct redis_reader *d, const char *bytes, size_t n)
{
	return redisReaderFeed(d->rd, bytes, n) == READER_OK ? 0 : -EPROTO;
}

size_t redis_reader_held(const struct redis_reader *d)
{
	return d->held;
}

int redis_reader_next(struct redis_reader *d, const struct redis_reply **ret)
{
	void *reply = NULL;

	/* Between two replies nothing half read can be in the arena. */
	if (!d->rd->reply)
		arena_reset(d);
	if (redisReaderGetReply(d->rd, &reply) != READER_OK)
		return -EPROTO;
	*ret = reply;
	return reply ? 1 : 0;
}

/* ---- what callers see ---- */

enum redis_type redis_type(const struct redis_reply *r)
{
	return r ? r->type : REDIS_NIL;
}

struct span redis_str(const struct redis_reply *r)
{
	return r ? r->str : (struct span){0};
}

int64_t redis_int(const struct redis_reply *r)
{
	if (!r)
		return 0;
	if (r->type == REDIS_STR) /* NUL-terminated by create_string */
		return strtoll(r->str.p, NULL, 10);
	return r->integer;
}

size_t redis_len(const struct redis_reply *r)
{
	return r ? r->n : 0;
}

const struct redis_reply *redis_at(const struct redis_reply *r, size_t i)
{
	return r && i < r->n ? r->item[i] : NULL;
}

static const struct error_word {
	const char *word;
	enum redis_error_class class;
} error_words[] = {
    {"NOGROUP", REDIS_E_NOGROUP},     {"BUSYGROUP", REDIS_E_BUSYGROUP},
    {"NOSCRIPT", REDIS_E_NOSCRIPT},   {"OOM", REDIS_E_OOM},
    {"READONLY", REDIS_E_READONLY},   {"MASTERDOWN", REDIS_E_READONLY},
    {"NOREPLICAS", REDIS_E_READONLY}, {"LOADING", REDIS_E_LOADING},
    {"MISCONF", REDIS_E_MISCONF},     {"NOAUTH", REDIS_E_AUTH},
    {"WRONGPASS", REDIS_E_AUTH},      {"NOPERM", REDIS_E_AUTH},
    {"BUSY", REDIS_E_BUSY},	      {"TRYAGAIN", REDIS_E_BUSY},
};

enum redis_error_class redis_error_class(const struct redis_reply *r)
{
	const char *space;
	size_t n;

	if (!r || r->type != REDIS_ERR)
		return REDIS_E_NONE;
	space = memchr(r->str.p, ' ', r->str.n);
	n = space ? (size_t)(space - r->str.p) : r->str.n;
	for (size_t i = 0; i < ARRAY_LEN(error_words); i++)
		if (strlen(error_words[i].word) == n && !memcmp(error_words[i].word, r->str.p, n))
			return error_words[i].class;
	/* Redis 7 reports a refused password as a plain ERR. */
	if (memmem(r->str.p, r->str.n, " password", 9) || memmem(r->str.p, r->str.n, "AUTH", 4))
		return REDIS_E_AUTH;
	return REDIS_E_OTHER;
}

bool redis_error_is_passing(enum redis_error_class c)
{
	return c == REDIS_E_OOM || c == REDIS_E_READONLY || c == REDIS_E_LOADING ||
	       c == REDIS_E_MISCONF || c == REDIS_E_BUSY;
}

bool redis_error_is_lasting(enum redis_error_class c)
{
	return c == REDIS_E_OTHER || c == REDIS_E_AUTH;
}
