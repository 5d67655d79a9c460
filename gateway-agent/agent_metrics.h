/* gateway-agent's metrics, made from agent_metrics.def. */
#pragma once

#include "base/metrics.h"

enum agent_metric {
#define METRIC METRIC_ID
#include "agent_metrics.def"
#undef METRIC
};
extern const struct metric_family agent_metric_table[];
extern const size_t agent_metric_count;
