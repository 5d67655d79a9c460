/*
 * Day partitions of os_gateway_metrics and agent_events: made ahead, dropped whole when they are
 * older than their retention. Detaching is concurrent, so nobody who reads or writes waits for it.
 */
#pragma once

#include "worker.h"

struct partitions_config {
	int64_t metrics_days, events_days, sessions_days, ahead_days, watermark_mb;
};
struct partitions;
int partitions_new(const struct partitions_config *c, struct partitions **ret) MUST_CHECK;
void partitions_free(struct partitions *x);

enum partitions_table { PARTITIONS_METRICS, PARTITIONS_EVENTS, PARTITIONS_TABLES };
/* Makes sure that the days (since 1970) first to last have partitions; asks the server only for
 * days it has not asked for yet. first > last: none. */
enum pg_verdict partitions_ensure(struct partitions *x, struct pg *p, enum partitions_table t,
				  int64_t first, int64_t last) MUST_CHECK;
/* All days are asked for anew. */
void partitions_forget(struct partitions *x);
/* Ahead, retention, watermark: hourly, and at once after the start. */
void partitions_chore(struct partitions *x, struct worker *w, int64_t now_ms);
