/* Metrics of agent-bridge; bridge_metrics.def is the table. */
#pragma once

#include "base/metrics.h"

enum bridge_metric {
#define METRIC METRIC_ID
#include "bridge_metrics.def"
#undef METRIC
	M_BRIDGE_METRICS
};

extern const struct metric_family bridge_metric_table[];
