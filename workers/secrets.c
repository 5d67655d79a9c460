#include "secrets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/ident.h"

enum { SLOTS = 4096, BUCKETS = 8192, NONE = UINT16_MAX, BYTES_MAX = 4 << 20 };

struct slot {
	char id[CORRELATION_ID_MAX + 1];
	struct secret_set set;
	int64_t at_ms;
	uint16_t next; /* in its bucket */
	bool used;
};
struct secrets {
	struct slot slot[SLOTS]; /* a ring: oldest at head */
	uint16_t bucket[BUCKETS];
	size_t head, n, bytes;
};

int secrets_new(struct secrets **ret)
{
	struct secrets *s = calloc(1, sizeof *s);

	if (!s)
		return -ENOMEM;
	memset(s->bucket, 0xff, sizeof s->bucket);
	*ret = s;
	return 0;
}

/* FNV-1a; ids are no secret and the table is small. */
static size_t bucket_of(struct span id)
{
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < id.n; i++)
		h = (h ^ (unsigned char)id.p[i]) * 16777619u;
	return h % BUCKETS;
}

static size_t set_bytes(const struct secret_set *set)
{
	size_t bytes = set->n * sizeof *set->value;

	for (size_t i = 0; i < set->n; i++)
		bytes += strlen(set->value[i]) + 1;
	return bytes;
}

static void secrets_pop(struct secrets *s)
{
	struct slot *x = &s->slot[s->head];
	uint16_t *at = &s->bucket[bucket_of(span_of(x->id))];

	while (*at != s->head)
		at = &s->slot[*at].next;
	*at = x->next;
	s->bytes -= set_bytes(&x->set);
	secret_set_fini(&x->set);
	*x = (struct slot){0};
	s->head = (s->head + 1) % SLOTS;
	s->n--;
}

void secrets_free(struct secrets *s)
{
	if (!s)
		return;
	while (s->n)
		secrets_pop(s);
	free(s);
}

const struct secret_set *secrets_get(const struct secrets *s, struct span id)
{
	for (uint16_t i = s->bucket[bucket_of(id)]; i != NONE; i = s->slot[i].next)
		if (span_eq(id, s->slot[i].id))
			return &s->slot[i].set;
	return NULL;
}

void secrets_put(struct secrets *s, struct span id, struct secret_set *set, int64_t now_ms)
{
	if (!set->n || id.n > CORRELATION_ID_MAX || secrets_get(s, id)) {
		secret_set_fini(set);
		return;
	}
	size_t bytes = set_bytes(set);
	while (s->n && (s->n == SLOTS || s->bytes + bytes > BYTES_MAX))
		secrets_pop(s);
	s->bytes += bytes;
	size_t i = (s->head + s->n) % SLOTS, b = bucket_of(id);
	struct slot *x = &s->slot[i];
	memcpy(x->id, id.p, id.n);
	x->id[id.n] = '\0';
	x->set = *set;
	*set = (struct secret_set){0};
	x->at_ms = now_ms;
	x->next = s->bucket[b];
	s->bucket[b] = (uint16_t)i;
	s->n++;
}

void secrets_drop_old(struct secrets *s, int64_t now_ms, int64_t max_age_ms)
{
	while (s->n && now_ms - s->slot[s->head].at_ms > max_age_ms)
		secrets_pop(s);
}
