#include "sessions.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/grow.h"

#define BUCKETS_MIN	  64
#define RESULTS_MAX_BYTES ((size_t)64 << 20)

static size_t agent_bucket(const struct sessions *all, const char *agent_id)
{
	uint64_t h = UINT64_C(14695981039346656037);

	/* Ids are authenticated: nobody can choose many to collide. */
	for (; *agent_id; agent_id++)
		h = (h ^ (unsigned char)*agent_id) * UINT64_C(1099511628211);
	return (size_t)(h ^ (h >> 32)) & (all->buckets - 1);
}

int sessions_init(struct sessions *all, size_t ring_frames, size_t ring_bytes)
{
	*all = (struct sessions){.buckets = BUCKETS_MIN};
	rings_init(&all->rings, ring_frames, ring_bytes);
	rings_init(&all->results, 1, RESULTS_MAX_BYTES);
	all->by_sid = calloc(all->buckets, sizeof(*all->by_sid));
	all->by_agent = calloc(all->buckets, sizeof(*all->by_agent));
	return all->by_sid && all->by_agent ? 0 : -ENOMEM;
}

void sessions_fini(struct sessions *all)
{
	while (all->first)
		sessions_remove(all, all->first);
	free(all->by_sid);
	free(all->by_agent);
	free(all->beats);
}

static void sid_link(struct sessions *all, struct session *s)
{
	struct session **b = &all->by_sid[s->sid & (all->buckets - 1)];

	s->sid_next = *b;
	*b = s;
}

static void agent_link(struct sessions *all, struct session *s)
{
	struct session **b = &all->by_agent[agent_bucket(all, s->agent_id)];

	s->agent_next = *b;
	*b = s;
}

/* Doubles the tables; when there is no memory chains just get longer. */
static void widen(struct sessions *all)
{
	size_t buckets = all->buckets * 2;
	struct session **sids = calloc(buckets, sizeof(*sids)),
		       **agents = calloc(buckets, sizeof(*agents));

	if (!sids || !agents) {
		free(sids);
		free(agents);
		return;
	}
	free(all->by_sid);
	free(all->by_agent);
	all->by_sid = sids;
	all->by_agent = agents;
	all->buckets = buckets;
	for (struct session *s = all->first; s; s = s->next) {
		sid_link(all, s);
		if (s->claimed)
			agent_link(all, s);
	}
}

static void beat_put(struct sessions *all, size_t at, struct session_beat b)
{
	all->beats[at] = b;
	b.s->beat = at;
}

/* Before all->all is less. Nobody misses a turn or gets a second one. */
static void beat_remove(struct sessions *all, size_t at)
{
	if (at < all->at) {
		beat_put(all, at, all->beats[--all->at]);
		at = all->at;
	}
	if (at < all->all - 1)
		beat_put(all, at, all->beats[all->all - 1]);
}

int sessions_add(struct sessions *all, const char *agent_id, const char *ip, struct session **ret)
{
	struct session *s;

	if (grow(&all->beats, all->all, &all->beats_cap, BUCKETS_MIN, sizeof(*all->beats)) < 0)
		return -ENOMEM;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	if (span_copy(span_of(agent_id), s->agent_id, sizeof(s->agent_id)) < 0 ||
	    span_copy(span_of(ip), s->ip, sizeof(s->ip)) < 0) {
		free(s);
		return -EINVAL;
	}
	ident_uuid4(s->conn_id);
	s->held.of_all = &all->held_bytes;
	s->sid = ++all->last_sid;
	s->prev = all->last;
	if (all->last)
		all->last->next = s;
	else
		all->first = s;
	all->last = s;
	sid_link(all, s);
	beat_put(all, all->all, (struct session_beat){.s = s});
	if (++all->all > all->buckets)
		widen(all);
	*ret = s;
	return 0;
}

static void sid_unlink(struct sessions *all, struct session *s)
{
	struct session **at = &all->by_sid[s->sid & (all->buckets - 1)];

	while (*at != s)
		at = &(*at)->sid_next;
	*at = s->sid_next;
}

static void agent_unlink(struct sessions *all, struct session *s)
{
	struct session **at = &all->by_agent[agent_bucket(all, s->agent_id)];

	while (*at != s)
		at = &(*at)->agent_next;
	*at = s->agent_next;
	s->claimed = false;
}

void sessions_remove(struct sessions *all, struct session *s)
{
	sid_unlink(all, s);
	if (s->claimed)
		agent_unlink(all, s);
	if (s->prev)
		s->prev->next = s->next;
	else
		all->first = s->next;
	if (s->next)
		s->next->prev = s->prev;
	else
		all->last = s->prev;
	beat_remove(all, s->beat);
	if (all->at == --all->all)
		all->at = 0;
	ring_clear(&all->rings, &s->ring);
	ring_clear(&all->results, &s->result);
	session_fini(s);
	free(s);
}

struct session *sessions_find(const struct sessions *all, uint64_t sid)
{
	struct session *s = all->by_sid[sid & (all->buckets - 1)];

	while (s && s->sid != sid)
		s = s->sid_next;
	return s;
}

struct session *sessions_by_agent(const struct sessions *all, const char *agent_id)
{
	struct session *s = all->by_agent[agent_bucket(all, agent_id)];

	while (s && strcmp(s->agent_id, agent_id) != 0)
		s = s->agent_next;
	return s;
}

struct session *sessions_claim(struct sessions *all, struct session *s)
{
	struct session *old = sessions_by_agent(all, s->agent_id);

	if (old == s)
		return NULL;
	if (old) {
		agent_unlink(all, old);
		ring_move(&old->ring, &s->ring);
		ring_move(&old->result, &s->result);
	}
	agent_link(all, s);
	s->claimed = true;
	return old;
}

/* Position of the first item that sorts after id. */
static size_t page_position(struct session *const *page, size_t n, const char *id)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (strcmp(page[mid]->agent_id, id) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

size_t sessions_page(const struct sessions *all, const char *after, struct session **out,
		     size_t cap, bool *ret_more)
{
	size_t n = 0;

	*ret_more = false;
	for (struct session *s = all->first; s; s = s->next) {
		size_t at;

		if (!s->claimed || !session_is_open(s) || strcmp(s->agent_id, after) <= 0)
			continue;
		if (n == cap) {
			*ret_more = true;
			if (cap == 0 || strcmp(s->agent_id, out[n - 1]->agent_id) > 0)
				continue;
			n--;
		}
		at = page_position(out, n, s->agent_id);
		memmove(out + at + 1, out + at, (n - at) * sizeof(*out));
		out[at] = s;
		n++;
	}
	return n;
}
