#include "lag.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "intake.h"
#include "worker_metrics.h"

enum { EVERY_MS = 2000 };

struct anchor {
	int64_t offset; /* entries XINFO counts as waiting that are gone */
	bool set;
};
struct lag {
	const struct intake *intake;
	struct anchor anchor[INTAKE_STREAMS_MAX];
	int64_t age_ms[INTAKE_STREAMS_MAX];
	int64_t next_ms;
};

int lag_new(const struct intake *in, struct lag **ret)
{
	struct lag *l = calloc(1, sizeof *l);

	if (!l)
		return -ENOMEM;
	l->intake = in;
	for (size_t i = 0; i < INTAKE_STREAMS_MAX; i++)
		l->age_ms[i] = -1;
	*ret = l;
	return 0;
}

void lag_free(struct lag *l)
{
	free(l);
}

/* What one look at stream and group gives. */
struct look {
	int64_t length;	    /* XLEN */
	int64_t raw;	    /* entries ever added less entries read by the group; -1 unknown */
	int64_t pending;    /* delivered, not acknowledged */
	bool any_waiting;   /* an undelivered entry exists */
	bool any_delivered; /* a delivered entry still exists */
	int64_t oldest_ms;  /* of all not stored; 0: none */
};

/* One script, so that the numbers belong together. Bodies stay in Redis: only ids come out. */
static const char script[] =
    "local function fields(a) local f = {} for i = 1, #a, 2 do f[a[i]] = a[i + 1] end return f "
    "end\n"
    "local function id(key, from, to)\n"
    "  local e = redis.call('XRANGE', key, from, to, 'COUNT', 1)[1]\n"
    "  return e and e[1] or ''\n"
    "end\n"
    "local added = 0\n"
    "local info = redis.call('XINFO', 'STREAM', KEYS[1])\n"
    "added = fields(info)['entries-added']\n"
    "for _, raw in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do\n"
    "  local g = fields(raw)\n"
    "  if g['name'] == ARGV[1] then\n"
    "    local last = g['last-delivered-id']\n"
    "    local read = g['entries-read']\n"
    "    local oldest = ''\n"
    "    if g['pending'] > 0 then\n"
    "      oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or ''\n"
    "    end\n"
    "    return {redis.call('XLEN', KEYS[1]), read and added - read or -1, g['pending'],\n"
    "      id(KEYS[1], '(' .. last, '+'), id(KEYS[1], '-', last), oldest}\n"
    "  end\n"
    "end\n"
    "return false";

static int64_t oldest_of(struct span a, struct span b)
{
	int64_t x = 0, y = 0;

	if (a.n == 0 || stream_id_ms(a, &x) < 0)
		x = 0;
	if (b.n == 0 || stream_id_ms(b, &y) < 0)
		y = 0;
	return x == 0 ? y : y == 0 ? x : x < y ? x : y;
}

static int lag_look(struct redis_sync *r, const char *stream, const char *group, struct look *ret)
{
	const struct span argv[] = {SPAN("EVAL"), span_of(script), SPAN("1"), span_of(stream),
				    span_of(group)};
	int error;
	const struct redis_reply *reply = redis_sync_cmd(r, &error, ARRAY_LEN(argv), argv);

	if (!reply || redis_type(reply) != REDIS_ARR || redis_len(reply) != 6)
		return -EAGAIN;
	struct span waiting = redis_str(redis_at(reply, 3));
	*ret = (struct look){
	    .length = redis_int(redis_at(reply, 0)),
	    .raw = redis_int(redis_at(reply, 1)),
	    .pending = redis_int(redis_at(reply, 2)),
	    .any_waiting = waiting.n > 0,
	    .any_delivered = redis_str(redis_at(reply, 4)).n > 0,
	    .oldest_ms = oldest_of(waiting, redis_str(redis_at(reply, 5))),
	};
	return 0;
}

/* Entries not delivered yet; *ret_lost grows by what was trimmed unread since the last anchor. */
static int64_t lag_waiting(struct anchor *a, const struct look *k, uint64_t *ret_lost)
{
	bool certain = !k->any_waiting || !k->any_delivered;
	int64_t waiting = !k->any_waiting ? 0 : k->length;

	if (certain && k->raw >= 0) {
		int64_t offset = k->raw - waiting;
		if (a->set && offset > a->offset)
			*ret_lost = (uint64_t)(offset - a->offset);
		a->offset = offset;
		a->set = true;
	}
	if (certain)
		return waiting;
	waiting = k->raw >= 0 ? k->raw - a->offset : k->length;
	return waiting < 1 ? 1 : waiting > k->length ? k->length : waiting;
}

static void lag_measure_one(struct lag *l, struct redis_sync *r, struct metrics *m, unsigned i)
{
	const char *stream = intake_stream_name(l->intake, i);
	struct look k;
	uint64_t lost = 0;

	l->age_ms[i] = -1;
	if (lag_look(r, stream, intake_group(l->intake), &k) < 0)
		return;
	int64_t waiting = lag_waiting(&l->anchor[i], &k, &lost);
	int64_t age_ms = k.oldest_ms ? clock_wall_ms() - k.oldest_ms : 0;
	metric_set(metrics_get(m, M_lag_entries, stream, NULL), (double)(waiting + k.pending));
	l->age_ms[i] = age_ms > 0 ? age_ms : 0;
	metric_set(metrics_get(m, M_lag_seconds, stream, NULL), (double)l->age_ms[i] / 1000);
	if (lost)
		metric_add(metrics_get(m, M_lost, stream, NULL), lost);
}

int64_t lag_age_ms(const struct lag *l, unsigned stream)
{
	return l->age_ms[stream];
}

void lag_measure(struct lag *l, struct redis_sync *r, struct metrics *m, int64_t now_ms)
{
	if (now_ms < l->next_ms)
		return;
	l->next_ms = now_ms + EVERY_MS;
	for (unsigned i = 0; i < intake_streams(l->intake); i++)
		lag_measure_one(l, r, m, i);
}
