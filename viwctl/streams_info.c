#include "streams_info.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "redis/streams.h"

#define COUNT_CAP 10000 /* entries counted one by one at most */

const struct stream_group stream_groups[] = {
    {"commands", "agent-bridge"},	   {"commands", "results-writer"},
    {"agent_hello", "telemetry-writer"},   {"telemetry", "telemetry-writer"},
    {"agent_events", "telemetry-writer"},  {"command_events", "results-writer"},
    {"command_results", "results-writer"}, {NULL, NULL},
};

static struct span member(const struct redis_reply *map, const char *name,
			  const struct redis_reply **ret)
{
	for (size_t i = 0; i + 1 < redis_len(map); i += 2) {
		if (span_eq(redis_str(redis_at(map, i)), name)) {
			*ret = redis_at(map, i + 1);
			return redis_str(*ret);
		}
	}
	*ret = NULL;
	return (struct span){NULL, 0};
}

/* Fills last-delivered-id and what XINFO GROUPS knows. */
static int find_group(struct ctl *c, const char *key, const struct stream_group *g,
		      struct group_state *s, char *ret_last, size_t cap)
{
	int error = 0;
	const struct redis_reply *r = redis_sync_cmdf(ctl_redis(c), &error, "XINFO GROUPS %s", key);
	if (!r)
		return -EIO;
	for (size_t i = 0; i < redis_len(r); i++) {
		const struct redis_reply *group = redis_at(r, i), *v = NULL;
		if (!span_eq(member(group, "name", &v), g->group))
			continue;
		s->exists = true;
		member(group, "pending", &v);
		s->pending = v ? (uint64_t)redis_int(v) : 0;
		member(group, "consumers", &v);
		s->consumers = v ? (uint64_t)redis_int(v) : 0;
		return span_copy(member(group, "last-delivered-id", &v), ret_last, cap);
	}
	return 0;
}

/* Entries ever added to the stream; 0 when it does not exist. */
static uint64_t entries_added(struct ctl *c, const char *key)
{
	int error = 0;
	const struct redis_reply *r = redis_sync_cmdf(ctl_redis(c), &error, "XINFO STREAM %s", key),
				 *v = NULL;
	if (r)
		member(r, "entries-added", &v);
	return v ? (uint64_t)redis_int(v) : 0;
}

static int age_of(struct span id, int64_t *oldest_ms)
{
	int64_t at = 0;
	int r = stream_id_ms(id, &at);
	if (r < 0)
		return r;
	int64_t age = clock_wall_ms() - at;
	if (age > *oldest_ms)
		*oldest_ms = age;
	return 0;
}

int group_look(struct ctl *c, const struct stream_group *g, struct group_state *ret)
{
	struct group_state s = {0};
	char key[160], last[64] = "", from[72];
	int error = 0, r = 0;
	if (!ctl_redis(c))
		return -EIO;
	ctl_key(c, g->stream, key, sizeof key);
	s.added = entries_added(c, key);
	if (find_group(c, key, g, &s, last, sizeof last) < 0)
		return -EIO;
	if (s.exists && s.pending > 0) {
		const struct redis_reply *p =
		    redis_sync_cmdf(ctl_redis(c), &error, "XPENDING %s %s - + 1", key, g->group);
		if (!p)
			return -EIO;
		if (redis_len(p) > 0)
			r = age_of(redis_str(redis_at(redis_at(p, 0), 0)), &s.oldest_ms);
	}
	if (r == 0 && s.exists) {
		snprintf(from, sizeof from, "(%s", last);
		const struct redis_reply *w = redis_sync_cmdf(
		    ctl_redis(c), &error, "XRANGE %s %s + COUNT %d", key, from, COUNT_CAP);
		if (!w)
			return -EIO;
		struct stream_entry e;
		s.waiting = redis_len(w);
		if (s.waiting > 0 && stream_entry_parse(redis_at(w, 0), &e) == 0)
			r = age_of(e.id, &s.oldest_ms);
	}
	*ret = s;
	return r;
}
