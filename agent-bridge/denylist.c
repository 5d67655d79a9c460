#include "denylist.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "loop/loop.h"
#include "redis/redis.h"

#define REFRESH_MS 5000

struct set {
	struct denylist *owner;
	char key[64];
	char **item; /* sorted */
	size_t n;
	bool asked, refused;
};

struct denylist {
	struct redis *redis;
	struct loop_timer *timer;
	void (*on_change)(void *arg);
	void *arg;
	struct set agents, fingerprints;
};

static int compare_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void items_free(char **item, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(item[i]);
	free(item);
}

static bool has(const struct set *s, const char *word)
{
	return s->n && bsearch(&word, s->item, s->n, sizeof(*s->item), compare_text);
}

/* Somebody wrote a key of another kind, or took a right away. Redis being away or unwilling for now
 * is told elsewhere. */
static void note_refusal(struct set *s, const struct redis_reply *r)
{
	bool refused = redis_error_is_lasting(redis_error_class(r));

	if (refused && !s->refused)
		LOG_ERROR(
		    FIELDS(.event = "denylist_refused", .detail = s->key, .error = redis_str(r).p),
		    "%s cannot be read: what was read before stays in force", s->key);
	s->refused = refused;
}

/* The old copy stays when the answer is no array or memory is short. */
static void on_members(void *arg, const struct redis_reply *r)
{
	struct set *s = arg;
	size_t n = r && redis_type(r) == REDIS_ARR ? redis_len(r) : 0, kept = 0;
	char **item;

	s->asked = false;
	if (r)
		note_refusal(s, r);
	if (!r || redis_type(r) != REDIS_ARR || (n == 0 && s->n == 0))
		return;
	item = calloc(n + 1, sizeof(*item));
	for (size_t i = 0; item && i < n; i++) {
		item[kept] = span_dup(redis_str(redis_at(r, i)));
		kept += item[kept] != NULL;
	}
	if (!item || kept != n) {
		items_free(item, kept);
		return;
	}
	qsort(item, n, sizeof(*item), compare_text);
	items_free(s->item, s->n);
	s->item = item;
	s->n = n;
	s->owner->on_change(s->owner->arg);
}

static void ask(struct set *s)
{
	if (!s->asked && redis_cmdf(s->owner->redis, on_members, s, "SMEMBERS %s", s->key) == 0)
		s->asked = true;
}

void denylist_refresh(struct denylist *d)
{
	ask(&d->agents);
	ask(&d->fingerprints);
}

static void on_timer(void *arg)
{
	denylist_refresh(arg);
}

int denylist_open(struct loop *l, struct redis *r, const char *prefix, void (*on_change)(void *arg),
		  void *arg, struct denylist **ret)
{
	struct denylist *d = calloc(1, sizeof(*d));
	int rc;

	if (!d)
		return -ENOMEM;
	d->redis = r;
	d->on_change = on_change;
	d->arg = arg;
	d->agents.owner = d->fingerprints.owner = d;
	snprintf(d->agents.key, sizeof(d->agents.key), "%s.decommissioned", prefix);
	snprintf(d->fingerprints.key, sizeof(d->fingerprints.key), "%s.revoked", prefix);
	rc = loop_timer_new(l, on_timer, d, &d->timer);
	if (rc < 0) {
		free(d);
		return rc;
	}
	loop_timer_start(d->timer, REFRESH_MS, REFRESH_MS);
	*ret = d;
	return 0;
}

/* The redis connection must be closed before: its callbacks point here. */
void denylist_close(struct denylist *d)
{
	if (!d)
		return;
	loop_timer_close(d->timer);
	items_free(d->agents.item, d->agents.n);
	items_free(d->fingerprints.item, d->fingerprints.n);
	free(d);
}

bool denylist_has_agent(const struct denylist *d, const char *agent_id)
{
	return has(&d->agents, agent_id);
}

bool denylist_has_fingerprint(const struct denylist *d, const char *hex)
{
	return has(&d->fingerprints, hex);
}
