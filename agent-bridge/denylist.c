#include "denylist.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "loop/loop.h"
#include "map.h"
#include "redis/redis.h"

#define REFRESH_MS 5000
#define PIECE_MIN  500
#define PIECES_MAX 100 /* about; of a very long set the pieces are larger */
#define WORD_MAX   127 /* longer than any id or fingerprint: such a word refuses nobody */

struct entry {
	struct map_link link;
	struct entry *next;
	unsigned seen_in; /* the last scan it came in */
	char word[];
};

struct set {
	struct denylist *owner;
	char key[64];
	struct map by_word;
	struct entry *first;
	unsigned scan;	    /* counts them */
	size_t seen;	    /* entries in this one */
	bool asked, gained; /* the latter: since on_change was called */
	bool refused;
};

struct denylist {
	struct redis *redis;
	struct loop_timer *timer;
	void (*on_change)(void *arg);
	void *arg;
	struct set agents, fingerprints;
};

static struct entry *find(const struct set *s, const char *word)
{
	for (struct map_link *l = map_first(&s->by_word, map_hash_str(word)); l; l = map_next(l)) {
		struct entry *e = CONTAINER_OF(l, struct entry, link);

		if (!strcmp(e->word, word))
			return e;
	}
	return NULL;
}

/* NULL: no memory; the next scan brings it again. */
static struct entry *add(struct set *s, const char *word)
{
	size_t n = strlen(word) + 1;
	struct entry *e = map_grow(&s->by_word) == 0 ? malloc(sizeof(*e) + n) : NULL;

	if (!e)
		return NULL;
	memcpy(e->word, word, n);
	e->seen_in = s->scan - 1;
	e->next = s->first;
	s->first = e;
	map_put(&s->by_word, &e->link, map_hash_str(word));
	s->gained = true;
	return e;
}

static void see(struct set *s, struct span text)
{
	char word[WORD_MAX + 1];
	struct entry *e;

	if (span_copy(text, word, sizeof(word)) < 0)
		return;
	e = find(s, word);
	if (!e)
		e = add(s, word);
	if (!e || e->seen_in == s->scan) /* a scan may bring a word twice */
		return;
	e->seen_in = s->scan;
	s->seen++;
}

/* Those that did not come in this scan, which was whole. */
static void drop_unseen(struct set *s)
{
	for (struct entry **at = &s->first, *e; s->seen < s->by_word.count && (e = *at);) {
		if (e->seen_in == s->scan) {
			at = &e->next;
			continue;
		}
		*at = e->next;
		map_remove(&s->by_word, &e->link);
		free(e);
	}
}

static void set_fini(struct set *s)
{
	for (struct entry *e = s->first, *next; e; e = next) {
		next = e->next;
		free(e);
	}
	map_fini(&s->by_word);
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

static void on_piece(void *arg, const struct redis_reply *r);

static bool ask(struct set *s, const char *cursor)
{
	size_t piece = s->by_word.count / PIECES_MAX;

	return redis_cmdf(s->owner->redis, on_piece, s, "SSCAN %s %s COUNT %lld", s->key, cursor,
			  (int64_t)(piece > PIECE_MIN ? piece : PIECE_MIN)) == 0;
}

/* Cursors mean nothing to another server: whatever comes between two pieces ends the scan, and
 * nothing is dropped. */
static void on_piece(void *arg, const struct redis_reply *r)
{
	struct set *s = arg;
	const struct redis_reply *words = redis_len(r) == 2 ? redis_at(r, 1) : NULL;
	struct span cursor = words ? redis_str(redis_at(r, 0)) : (struct span){0};

	s->asked = false;
	if (!r)
		return;
	note_refusal(s, r);
	for (size_t i = 0; words && i < redis_len(words); i++)
		see(s, redis_str(redis_at(words, i)));
	s->asked = cursor.p && !span_eq(cursor, "0") && ask(s, cursor.p);
	if (s->asked)
		return;
	if (span_eq(cursor, "0"))
		drop_unseen(s);
	if (s->gained)
		s->owner->on_change(s->owner->arg);
	s->gained = false;
}

static void scan(struct set *s)
{
	if (s->asked)
		return;
	s->scan++;
	s->seen = 0;
	s->asked = ask(s, "0");
}

void denylist_refresh(struct denylist *d)
{
	scan(&d->agents);
	scan(&d->fingerprints);
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
	set_fini(&d->agents);
	set_fini(&d->fingerprints);
	free(d);
}

bool denylist_has_agent(const struct denylist *d, const char *agent_id)
{
	return find(&d->agents, agent_id);
}

bool denylist_has_fingerprint(const struct denylist *d, const char *hex)
{
	return find(&d->fingerprints, hex);
}
