#include "bridge_metrics.h"

#include <stddef.h>

const struct metric_family bridge_metric_table[] = {
#define METRIC METRIC_ROW
#include "bridge_metrics.def"
#undef METRIC
};
