/*
 * TELEMETRY frames: the last one of each agent to os_gateway_status (order: epoch, seq, ts), all
 * of them to the minute's averages and maxima in os_gateway_metrics.
 *
 * The downsample is exact also when entries are applied twice: a minute's row remembers its
 * samples (seq and offset in the minute). A batch that shares none with the row is merged by the
 * upsert itself; where one is shared, the row is locked, its samples are read and only new ones
 * are added.
 */
#pragma once

#include "arena.h"
#include "columns.h"
#include "origin.h"
#include "wire/wire.h"

enum frame_figure {
	FIGURE_CPU,
	FIGURE_MEM,
	FIGURE_DISK,
	FIGURE_LOAD1,
	FIGURE_LOAD5,
	FIGURE_LOAD15,
	FIGURES
};
enum { FIGURES_KEPT = 4 }; /* the first four have minutes */

struct frame_row;
struct frame_group;
struct frames {
	struct frame_row *row;
	size_t n, cap;
	struct frame_group *group;
	size_t groups, group_cap;
	bool folded;
	bool put; /* metrics has all groups, as they were folded */
	int64_t late_ms;
	struct arena arena;
	struct wire_decoder *decoder;
	struct columns status, metrics, keys;
	uint64_t wrote_status, wrote_metrics, old_status, old_metrics;
	/* Days of the staged minutes (days since 1970), for the partitions. min > max: none. */
	int64_t day_min, day_max;
};

int frames_init(struct frames *f, int64_t retention_days) MUST_CHECK;
void frames_fini(struct frames *f);
void frames_clear(struct frames *f);
/* NULL, or the reason of a dead letter. *ret_origin: who sent it. */
const char *frames_stage(struct frames *f, const struct stream_entry *e, struct origin *ret_origin);
/* Makes the rows of what was staged. True: did so; flush does it otherwise. */
bool frames_fold(struct frames *f);
enum pg_verdict frames_flush(struct frames *f, struct pg *p) MUST_CHECK;
