/* The metric families of worker_metrics.def. */
#pragma once

#include "base/metrics.h"

enum worker_metric {
#define METRIC METRIC_ID
#include "worker_metrics.def"
#undef METRIC
	WORKER_METRICS
};
extern const struct metric_family worker_metrics[WORKER_METRICS];
