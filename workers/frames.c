#include "frames.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/grow.h"

enum {
	MINUTE_MS = 60000,
	DAY_MS = 86400000,
	AHEAD_MS = 300000, /* a frame this far ahead of its receipt has a wrong clock */
	BEHIND_DAYS = 31,  /* so has one this far behind; and no agent keeps one as long */
};

struct frame_row {
	struct origin o;
	int64_t seq, ts_ms;
	int64_t bucket_ms; /* start of its minute; -1: too old to count */
	int64_t sample;	   /* its number in that minute */
	double figure[FIGURES];
	int64_t containers; /* -1: none */
	struct span services, metrics;
};
struct frame_group { /* rows [from, to) share agent and minute, sorted by sample */
	size_t from, to;
	bool applied;
};

/* ---- statements ---- */

static const struct pg_stmt upsert_status = {
    "status",
    "INSERT INTO os_gateway_status AS s (agent_id, epoch, seq, ts, cpu_pct, mem_pct, disk_pct, "
    "load1, "
    "load5, load15, containers_running, services, metrics) "
    "SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::float8[], "
    "$6::float8[], $7::float8[], $8::float8[], $9::float8[], $10::float8[], $11::integer[], "
    "$12::jsonb[], $13::jsonb[]) "
    "ON CONFLICT (agent_id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, "
    "ts = excluded.ts, cpu_pct = excluded.cpu_pct, mem_pct = excluded.mem_pct, "
    "disk_pct = excluded.disk_pct, load1 = excluded.load1, load5 = excluded.load5, "
    "load15 = excluded.load15, containers_running = excluded.containers_running, "
    "services = excluded.services, metrics = excluded.metrics, updated_at = now() "
    "WHERE (s.epoch, s.seq, s.ts) < (excluded.epoch, excluded.seq, excluded.ts)"};
enum {
	T_AGENT,
	T_EPOCH,
	T_SEQ,
	T_TS,
	T_FIGURE,
	T_CONTAINERS = T_FIGURE + FIGURES,
	T_SERVICES,
	T_METRICS
};
#define STATUS_TYPES "tllzffffffijj"

/* At most 3,000 samples a minute count (50 a second): a flood ends there, and costs little from
 * there on: the cheap condition is first. */
static const struct pg_stmt upsert_metrics = {
    "metrics",
    "INSERT INTO os_gateway_metrics AS m (agent_id, bucket, samples, cpu_sum, cpu_n, cpu_max, "
    "mem_sum, "
    "mem_n, mem_max, disk_sum, disk_n, disk_max, load1_sum, load1_n, load1_max, seen) "
    "SELECT u.a, u.b, u.n, u.s1, u.n1, u.m1, u.s2, u.n2, u.m2, u.s3, u.n3, u.m3, u.s4, u.n4, u.m4, "
    "u.seen::bigint[] FROM unnest($1::text[], $2::timestamptz[], $3::integer[], $4::float8[], "
    "$5::integer[], $6::float8[], $7::float8[], $8::integer[], $9::float8[], $10::float8[], "
    "$11::integer[], $12::float8[], $13::float8[], $14::integer[], $15::float8[], $16::text[]) "
    "AS u (a, b, n, s1, n1, m1, s2, n2, m2, s3, n3, m3, s4, n4, m4, seen) "
    "ON CONFLICT (agent_id, bucket) DO UPDATE SET samples = m.samples + excluded.samples, "
    "cpu_sum = m.cpu_sum + excluded.cpu_sum, cpu_n = m.cpu_n + excluded.cpu_n, "
    "cpu_max = GREATEST(m.cpu_max, excluded.cpu_max), "
    "mem_sum = m.mem_sum + excluded.mem_sum, mem_n = m.mem_n + excluded.mem_n, "
    "mem_max = GREATEST(m.mem_max, excluded.mem_max), "
    "disk_sum = m.disk_sum + excluded.disk_sum, disk_n = m.disk_n + excluded.disk_n, "
    "disk_max = GREATEST(m.disk_max, excluded.disk_max), "
    "load1_sum = m.load1_sum + excluded.load1_sum, load1_n = m.load1_n + excluded.load1_n, "
    "load1_max = GREATEST(m.load1_max, excluded.load1_max), seen = m.seen || excluded.seen "
    "WHERE cardinality(m.seen) < 3000 AND NOT (m.seen && excluded.seen) "
    "RETURNING agent_id, (extract(epoch FROM bucket) * 1000)::bigint"};
enum { M_AGENT, M_BUCKET, M_SAMPLES, M_FIGURE, M_SEEN = M_FIGURE + 3 * FIGURES_KEPT };
#define METRICS_TYPES \
	"tzi"         \
	"fif"         \
	"fif"         \
	"fif"         \
	"fif"         \
	"t"

/* The upsert above has locked these rows already. NULL: the minute is full. */
static const struct pg_stmt read_seen = {
    "seen", "SELECT m.agent_id, (extract(epoch FROM m.bucket) * 1000)::bigint, "
	    "CASE WHEN cardinality(m.seen) < 3000 THEN m.seen END "
	    "FROM unnest($1::text[], $2::timestamptz[]) AS u (a, b) "
	    "JOIN os_gateway_metrics m ON m.agent_id = u.a AND m.bucket = u.b"};

/* ---- making ---- */

int frames_init(struct frames *f, int64_t retention_days)
{
	*f = (struct frames){
	    .late_ms = (retention_days < BEHIND_DAYS ? retention_days : BEHIND_DAYS) * DAY_MS};
	arena_init(&f->arena);
	int r = wire_decoder_new(WIRE_MAX_FRAME_BYTES_MOST, &f->decoder);
	if (r == 0)
		r = columns_init(&f->status, STATUS_TYPES);
	if (r == 0)
		r = columns_init(&f->metrics, METRICS_TYPES);
	if (r == 0)
		r = columns_init(&f->keys, "tz");
	if (r < 0)
		frames_fini(f);
	else
		frames_clear(f);
	return r;
}

void frames_fini(struct frames *f)
{
	wire_decoder_free(f->decoder);
	columns_fini(&f->status);
	columns_fini(&f->metrics);
	columns_fini(&f->keys);
	arena_fini(&f->arena);
	free(f->row);
	free(f->group);
	*f = (struct frames){0};
}

void frames_clear(struct frames *f)
{
	f->n = f->groups = 0;
	f->folded = f->put = false;
	f->day_min = INT64_MAX;
	f->day_max = INT64_MIN;
	f->wrote_status = f->wrote_metrics = f->old_status = f->old_metrics = 0;
	arena_clear(&f->arena);
	columns_clear(&f->status);
	columns_clear(&f->metrics);
}

/* ---- staging ---- */

static const char *const figure_name[FIGURES] = {"cpu_pct", "mem_pct", "disk_pct",
						 "load1",   "load5",   "load15"};

static void row_take_metric(struct frame_row *x, const struct json_member *m)
{
	for (size_t i = 0; i < FIGURES; i++) {
		if (!span_eq(m->key, figure_name[i]))
			continue;
		if (m->type == JSON_T_INT || m->type == JSON_T_REAL)
			x->figure[i] = json_num(m->raw);
		return;
	}
	if (m->type == JSON_T_OBJ && span_eq(m->key, "services"))
		x->services = m->raw;
	if (m->type == JSON_T_INT && span_eq(m->key, "containers_running") &&
	    (json_int(m->raw, &x->containers) < 0 || x->containers < 0 ||
	     x->containers > INT32_MAX))
		x->containers = -1;
}

static void row_take_metrics(struct frame_row *x)
{
	struct json_iter it;
	struct json_member m;

	for (size_t i = 0; i < FIGURES; i++)
		x->figure[i] = NAN;
	x->containers = -1;
	json_iter_init(&it, x->metrics);
	while (json_iter_next(&it, &m))
		row_take_metric(x, &m);
}

static int64_t floor_to(int64_t v, int64_t step)
{
	int64_t r = v % step;

	return v - (r < 0 ? r + step : r);
}

/* The minute it counts for: its own clock's, unless that is impossible. */
static void row_place(struct frames *f, struct frame_row *x)
{
	int64_t at_ms = x->ts_ms > x->o.received_ms + AHEAD_MS ? x->o.received_ms : x->ts_ms;

	x->bucket_ms = floor_to(at_ms, MINUTE_MS);
	x->sample =
	    (int64_t)(((uint64_t)x->seq << 16 | (uint64_t)(at_ms - x->bucket_ms)) & INT64_MAX);
	if (at_ms < x->o.received_ms - f->late_ms || at_ms < clock_wall_ms() - f->late_ms) {
		x->bucket_ms = -1;
		f->old_metrics++;
		return;
	}
	int64_t day = floor_to(at_ms, DAY_MS) / DAY_MS;
	if (day < f->day_min)
		f->day_min = day;
	if (day > f->day_max)
		f->day_max = day;
}

static struct frame_row *frames_row(struct frames *f)
{
	return grow(&f->row, f->n, &f->cap, 256, sizeof *f->row) < 0 ? NULL : &f->row[f->n];
}

const char *frames_stage(struct frames *f, const struct stream_entry *e, struct origin *ret_origin)
{
	struct wire_frame frame;
	struct wire_refusal_info info = {0};
	struct frame_row *x = frames_row(f);

	if (!x)
		return no_memory;
	*x = (struct frame_row){0};
	const char *bad = origin_parse(e, &x->o);
	if (bad)
		return bad;
	if (!x->o.frame.p ||
	    wire_decode(f->decoder, WIRE_FROM_AGENT, x->o.frame.p, x->o.frame.n, &frame, &info) !=
		WIRE_OK ||
	    frame.type != WIRE_TELEMETRY)
		return info.no_memory ? no_memory : "bad_frame";
	if (span_order(frame.telemetry.agent_id, x->o.agent_id) != 0)
		return "agent_mismatch";
	x->seq = !frame.telemetry.seq.set	     ? -1
		 : frame.telemetry.seq.v > INT64_MAX ? INT64_MAX
						     : (int64_t)frame.telemetry.seq.v;
	x->ts_ms = frame.telemetry.ts.ms;
	x->metrics = frame.telemetry.metrics;
	row_take_metrics(x);
	row_place(f, x);
	*ret_origin = x->o;
	f->n++;
	return NULL;
}

/* ---- folding ---- */

static int by_order(const void *a, const void *b)
{
	const struct frame_row *x = a, *y = b;
	int r = span_order(x->o.agent_id, y->o.agent_id);

	if (r)
		return r;
	if (x->bucket_ms != y->bucket_ms)
		return x->bucket_ms < y->bucket_ms ? -1 : 1;
	return (x->sample > y->sample) - (x->sample < y->sample);
}

static bool row_is_newer(const struct frame_row *x, const struct frame_row *than)
{
	if (x->o.epoch != than->o.epoch)
		return x->o.epoch > than->o.epoch;
	if (x->seq != than->seq)
		return x->seq > than->seq;
	return x->ts_ms > than->ts_ms;
}

static void frames_put_status(struct frames *f, const struct frame_row *x)
{
	struct columns *c = &f->status;

	columns_text(c, T_AGENT, x->o.agent_id);
	columns_int(c, T_EPOCH, x->o.epoch);
	columns_int(c, T_SEQ, x->seq);
	columns_int(c, T_TS, x->ts_ms);
	for (size_t i = 0; i < FIGURES; i++)
		columns_num(c, T_FIGURE + i, x->figure[i]);
	columns_int_if(c, T_CONTAINERS, x->containers >= 0, x->containers);
	columns_text(c, T_SERVICES, x->services);
	columns_text(c, T_METRICS, x->metrics);
}

/* What a figure adds to the sum of its minute. Agents may send any double; the server refuses a sum
 * or mean that overflows or underflows one, and a refused row costs a search of the whole batch. */
static double figure_part(double v)
{
	const double most = 1e300, least = 1e-300;

	if (v > most || v < -most)
		return v < 0 ? -most : most;
	return v < least && v > -least ? 0 : v;
}

/* Text "{1,2}" of the group's sample numbers, for a cast: unnest cannot carry arrays of arrays. */
static struct span group_samples(struct frames *f, const struct frame_group *g)
{
	char *at = arena_alloc(&f->arena, (g->to - g->from) * 21 + 3);
	size_t n = 0;

	if (!at)
		return (struct span){0};
	at[n++] = '{';
	for (size_t i = g->from; i < g->to; i++)
		n += (size_t)snprintf(at + n, 22, "%s%lld", i > g->from ? "," : "",
				      (long long)f->row[i].sample);
	at[n++] = '}';
	return (struct span){at, n};
}

static void frames_put_group(struct frames *f, const struct frame_group *g)
{
	struct columns *c = &f->metrics;
	const struct frame_row *first = &f->row[g->from];

	columns_text(c, M_AGENT, first->o.agent_id);
	columns_int(c, M_BUCKET, first->bucket_ms);
	columns_int(c, M_SAMPLES, (int64_t)(g->to - g->from));
	for (size_t k = 0; k < FIGURES_KEPT; k++) {
		double sum = 0, max = NAN;
		int64_t n = 0;
		for (size_t i = g->from; i < g->to; i++) {
			double v = f->row[i].figure[k];
			if (isnan(v))
				continue;
			sum += figure_part(v);
			max = n == 0 || v > max ? v : max;
			n++;
		}
		columns_num(c, M_FIGURE + 3 * k, sum);
		columns_int(c, M_FIGURE + 3 * k + 1, n);
		columns_num(c, M_FIGURE + 3 * k + 2, max);
	}
	columns_text(c, M_SEEN, group_samples(f, g));
}

static void frames_add_group(struct frames *f, size_t from, size_t to)
{
	if (grow(&f->group, f->groups, &f->group_cap, 256, sizeof *f->group) < 0) {
		f->arena.err = -ENOMEM;
		return;
	}
	f->group[f->groups++] = (struct frame_group){.from = from, .to = to};
}

/* Drops equal samples of one minute: the same frame twice in one batch. */
static void frames_drop_repeats(struct frames *f)
{
	size_t kept = 0;

	for (size_t i = 0; i < f->n; i++)
		if (!kept || f->row[i].bucket_ms < 0 ||
		    by_order(&f->row[kept - 1], &f->row[i]) != 0)
			f->row[kept++] = f->row[i];
	f->n = kept;
}

static void frames_put_pending_groups(struct frames *f)
{
	columns_clear(&f->metrics);
	for (size_t i = 0; i < f->groups; i++)
		if (!f->group[i].applied)
			frames_put_group(f, &f->group[i]);
}

bool frames_fold(struct frames *f)
{
	struct frame_row *row = f->row;

	if (f->folded || !f->n || !row)
		return false;
	qsort(row, f->n, sizeof *row, by_order);
	frames_drop_repeats(f);
	const struct frame_row *newest = NULL;
	size_t from = 0;
	for (size_t i = 0; i < f->n; i++) {
		const struct frame_row *x = &row[i], *next = i + 1 < f->n ? x + 1 : NULL;
		bool agent_ends = !next || span_order(next->o.agent_id, x->o.agent_id) != 0;
		if (!newest || row_is_newer(x, newest))
			newest = x;
		if (agent_ends || next->bucket_ms != x->bucket_ms) {
			if (x->bucket_ms >= 0)
				frames_add_group(f, from, i + 1);
			from = i + 1;
		}
		if (agent_ends) {
			frames_put_status(f, newest);
			newest = NULL;
		}
	}
	frames_put_pending_groups(f);
	f->folded = f->put = true;
	return true;
}

/* ---- writing ---- */

static bool group_is(const struct frames *f, const struct frame_group *g,
		     const struct pg_rows *rows, size_t i)
{
	const struct frame_row *x = &f->row[g->from];

	return x->bucket_ms == pg_rows_int(rows, i, 1) &&
	       span_order(x->o.agent_id, pg_rows_text(rows, i, 0)) == 0;
}

/* The server answers in the order it was asked, but for those it left out. */
static void frames_mark_applied(struct frames *f, const struct pg_rows *rows)
{
	size_t i = 0, n = pg_rows_len(rows);

	for (size_t g = 0; g < f->groups && i < n; g++)
		if (!f->group[g].applied && group_is(f, &f->group[g], rows, i)) {
			f->group[g].applied = true;
			i++;
		}
	f->wrote_metrics += i;
}

static int by_value(const void *a, const void *b)
{
	const int64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* seen: "{1,2,3}" as the server prints it; the numbers come out in order. */
static int64_t *seen_numbers(struct frames *f, struct span seen, size_t *ret_n)
{
	int64_t *number = arena_alloc(&f->arena, (seen.n / 2 + 1) * sizeof *number);
	const char *p = seen.p + 1, *end = seen.p + seen.n;
	char *after;
	size_t n = 0;

	while (number && p < end) {
		int64_t v = strtoll(p, &after, 10);
		if (after == p)
			break;
		number[n++] = v;
		p = after + 1;
	}
	if (number)
		qsort(number, n, sizeof *number, by_value);
	*ret_n = n;
	return number;
}

/* Absent seen: no more samples of this minute count. */
static int group_drop_seen(struct frames *f, struct frame_group *g, struct span seen)
{
	size_t kept = g->from, n = 0;
	const int64_t *number = seen.p ? seen_numbers(f, seen, &n) : NULL;

	if (seen.p && !number)
		return -ENOMEM;
	for (size_t i = g->from; seen.p && i < g->to; i++)
		if (!bsearch(&f->row[i].sample, number, n, sizeof *number, by_value)) {
			struct frame_row swap = f->row[kept];
			f->row[kept++] = f->row[i];
			f->row[i] = swap;
		}
	f->old_metrics += g->to - kept;
	g->to = kept;
	g->applied = g->from == g->to;
	return 0;
}

/* The group a row is about. Mostly in the order asked: the search goes on where it last ended. */
static struct frame_group *frames_find_group(struct frames *f, const struct pg_rows *rows, size_t i,
					     size_t *at)
{
	for (size_t tried = 0; tried < f->groups; tried++, *at = (*at + 1) % f->groups)
		if (!f->group[*at].applied && group_is(f, &f->group[*at], rows, i))
			return &f->group[*at];
	return NULL;
}

static enum pg_verdict frames_upsert_metrics(struct frames *f, struct pg *p, struct pg_rows **ret)
{
	return f->arena.err ? pg_no_memory(p) : columns_exec(&f->metrics, p, &upsert_metrics, ret);
}

/* Some minutes share samples with their rows: read what those have, add the rest. */
static enum pg_verdict frames_add_unseen(struct frames *f, struct pg *p)
{
	struct pg_rows *rows = NULL;

	columns_clear(&f->keys);
	for (size_t i = 0; i < f->groups; i++)
		if (!f->group[i].applied) {
			columns_text(&f->keys, 0, f->row[f->group[i].from].o.agent_id);
			columns_int(&f->keys, 1, f->row[f->group[i].from].bucket_ms);
		}
	enum pg_verdict v = columns_exec(&f->keys, p, &read_seen, &rows);
	for (size_t i = 0, at = 0; v == PG_OK && rows && i < pg_rows_len(rows); i++) {
		struct frame_group *g = frames_find_group(f, rows, i, &at);
		if (g && group_drop_seen(f, g, pg_rows_text(rows, i, 2)) < 0)
			v = pg_no_memory(p);
	}
	pg_rows_free(rows);
	if (v != PG_OK)
		return v;
	rows = NULL;
	frames_put_pending_groups(f);
	v = frames_upsert_metrics(f, p, &rows);
	if (v == PG_OK && rows)
		frames_mark_applied(f, rows);
	pg_rows_free(rows);
	return v;
}

static enum pg_verdict frames_write_metrics(struct frames *f, struct pg *p)
{
	struct pg_rows *rows = NULL;

	if (!f->put)
		frames_put_pending_groups(f);
	f->put = false;
	enum pg_verdict v = frames_upsert_metrics(f, p, &rows);
	if (v == PG_OK && rows) {
		bool all = pg_rows_len(rows) == f->metrics.rows;
		frames_mark_applied(f, rows);
		pg_rows_free(rows);
		return all ? PG_OK : frames_add_unseen(f, p);
	}
	pg_rows_free(rows);
	return v;
}

static enum pg_verdict frames_write_status(struct frames *f, struct pg *p)
{
	struct pg_rows *rows = NULL;
	enum pg_verdict v = columns_exec(&f->status, p, &upsert_status, &rows);

	if (v == PG_OK && rows) {
		f->wrote_status = pg_rows_affected(rows);
		f->old_status = f->status.rows - f->wrote_status;
	}
	pg_rows_free(rows);
	return v;
}

enum pg_verdict frames_flush(struct frames *f, struct pg *p)
{
	(void)frames_fold(f);
	if (f->arena.err)
		return pg_no_memory(p);
	/* A transaction that is tried again starts from what was staged: groups that an earlier try
	 * had shortened were shortened by rows it saw committed, which still hold. */
	for (size_t i = 0; i < f->groups; i++)
		f->group[i].applied = f->group[i].from == f->group[i].to;
	f->wrote_metrics = 0;
	enum pg_verdict v = frames_write_status(f, p);
	return v == PG_OK ? frames_write_metrics(f, p) : v;
}
