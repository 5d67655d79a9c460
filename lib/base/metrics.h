/*
 * Metrics: one .def table per program gives the families, /metrics and docs/metrics.md.
 *
 *   METRIC(COUNTER,   frames,  "viw_frames_total", "type,direction", NULL, "Frames …")
 *   METRIC(GAUGE,     redis_up,"viw_redis_up",     NULL,             NULL, "1 while …")
 *   METRIC(HISTOGRAM, dispatch,"viw_command_dispatch_seconds", NULL, "0.001,0.005,…", "…")
 *
 * With `#define METRIC METRIC_ID` the rows become enum constants M_<id>; with METRIC_ROW the
 * table. A series is made at the first use of its label values and never dies; at most 256 a
 * family, further ones share the label value "other". Updates are atomic (relaxed), so the thread
 * that serves /metrics may differ from the one that counts.
 */
#pragma once

#include <stdint.h>

#include "base/buf.h"

enum metric_kind { METRIC_KIND_COUNTER, METRIC_KIND_GAUGE, METRIC_KIND_HISTOGRAM };

struct metric_family {
	enum metric_kind kind;
	const char *name, *labels /* CSV or NULL */, *buckets /* CSV of upper bounds */, *help;
};

#define METRIC_ID(kind, id, name, labels, buckets, help) M_##id,
#define METRIC_ROW(kind_, id_, name_, labels_, buckets_, help_) \
	{.kind = METRIC_KIND_##kind_,                           \
	 .name = (name_),                                       \
	 .labels = (labels_),                                   \
	 .buckets = (buckets_),                                 \
	 .help = (help_)},

struct metric; /* one series */
struct metrics;

/* The table must outlive it. Families without labels get their series at once (shown as 0). */
int metrics_new(const struct metric_family *table, size_t n, struct metrics **ret) MUST_CHECK;
void metrics_free(struct metrics *m);
/* The series of family `id` (M_…) with these label values, in the order of the table; keep the
 * pointer on hot paths. Never NULL. Unused values are NULL. */
struct metric *metrics_get(struct metrics *m, int id, const char *v1, const char *v2);
void metric_add(struct metric *s, uint64_t n);
/* The same for a counter to which this thread alone adds, for hot paths: a locked addition waits
 * until all that was written before has left for the cache. */
void metric_add_alone(struct metric *s, uint64_t n);
void metric_set(struct metric *s, double v);
void metric_observe(struct metric *s, double v);
double metric_value(const struct metric *s);
/* Text exposition format 0.0.4, with process_* (rss, open fds, cpu seconds, start time). */
int metrics_render(const struct metrics *m, struct buf *out) MUST_CHECK;
/* Rows for docs/metrics.md. */
int metrics_markdown(const struct metric_family *table, size_t n, struct buf *out) MUST_CHECK;
