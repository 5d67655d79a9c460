#include "worker_metrics.h"

const struct metric_family worker_metrics[WORKER_METRICS] = {
#define METRIC METRIC_ROW
#include "worker_metrics.def"
#undef METRIC
};
