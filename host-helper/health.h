/* Figures of the host from /proc and statvfs. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/jsonw.h"

struct cpu_sample {
	uint64_t busy, total; /* clock ticks since boot */
};
int health_cpu_sample(struct cpu_sample *ret) MUST_CHECK;
/* Percent between two samples; waits for a second one when `before` is empty or too fresh. */
double health_cpu_pct(const struct cpu_sample *before);
/* The keys of TELEMETRY metrics: cpu_pct, mem_*, disk_*, load*, uptime_s. */
struct health {
	double cpu_pct, mem_pct, disk_pct, load1, load5, load15;
	uint64_t mem_total, mem_available, disk_total, disk_free;
	int64_t uptime_s;
	long cpus;
};
int health_read(const struct cpu_sample *before, struct health *ret) MUST_CHECK;
void health_write(const struct health *h, struct jsonw *w);
/* All of get_system_health, with a verdict. */
int health_answer(const struct cpu_sample *before, struct jsonw *w) MUST_CHECK;
