#include "lag.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "intake.h"
#include "origin.h"
#include "worker_metrics.h"

enum {
	EVERY_MS = 2000,
	AHEAD_MS = 60000, /* more than clocks differ */
};

extern const char script_lag[];

struct anchor {
	int64_t offset; /* entries XINFO counts as waiting that are gone */
	bool set;
};
struct oldest { /* entry of a stream that is not stored */
	char id[48];
	int64_t since_ms; /* seen as such */
};
struct lag {
	const struct intake *intake;
	struct anchor anchor[INTAKE_STREAMS_MAX];
	struct oldest oldest[INTAKE_STREAMS_MAX];
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
	int64_t age_ms;	    /* of the oldest not stored; 0: none */
};

/* Who adds entries may choose their ids, and Redis counts on from the highest: an id that lies
 * ahead does not tell when the entry came; then what it says itself must do. 0: unknown. */
static int64_t came_ms(struct span id, struct span said, int64_t now_ms)
{
	int64_t ms, said_ms;

	if (stream_id_ms(id, &ms) < 0)
		return 0;
	if (ms <= now_ms + AHEAD_MS)
		return ms;
	return origin_time(said, &said_ms) && said_ms <= now_ms + AHEAD_MS ? said_ms : 0;
}

/* Milliseconds the oldest entry waits; where nothing tells, since it was first seen as the oldest.
 */
static int64_t lag_age(struct oldest *o, struct span id, struct span said)
{
	int64_t now_ms = clock_wall_ms(), boot_ms = clock_boot_ms(), came;

	if (id.n == 0 || !span_eq(id, o->id)) {
		o->since_ms = boot_ms;
		if (span_copy(id, o->id, sizeof o->id) < 0)
			o->id[0] = '\0';
	}
	came = id.n ? came_ms(id, said, now_ms) : now_ms;
	if (came == 0)
		return boot_ms - o->since_ms;
	return now_ms > came ? now_ms - came : 0;
}

static int lag_look(struct redis_sync *r, const char *stream, const char *group, struct oldest *o,
		    struct look *ret)
{
	const struct span argv[] = {SPAN("EVAL"), span_of(script_lag), SPAN("1"), span_of(stream),
				    span_of(group)};
	int error;
	const struct redis_reply *reply = redis_sync_cmd(r, &error, ARRAY_LEN(argv), argv);

	if (!reply || redis_type(reply) != REDIS_ARR || redis_len(reply) != 7)
		return -EAGAIN;
	*ret = (struct look){
	    .length = redis_int(redis_at(reply, 0)),
	    .raw = redis_int(redis_at(reply, 1)),
	    .pending = redis_int(redis_at(reply, 2)),
	    .any_waiting = redis_int(redis_at(reply, 3)) != 0,
	    .any_delivered = redis_int(redis_at(reply, 4)) != 0,
	    .age_ms = lag_age(o, redis_str(redis_at(reply, 5)), redis_str(redis_at(reply, 6))),
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
	if (lag_look(r, stream, intake_group(l->intake), &l->oldest[i], &k) < 0)
		return;
	int64_t waiting = lag_waiting(&l->anchor[i], &k, &lost);
	metric_set(metrics_get(m, M_lag_entries, stream, NULL), (double)(waiting + k.pending));
	l->age_ms[i] = k.age_ms;
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
