/*
 * Figures of the host for TELEMETRY. With a helper they are the helper's (host's view, containers,
 * services); without one they come from /proc and statvfs as this process sees them. The agent's
 * own figures are added in both cases. No sockets: the helper's data is given in.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/jsonw.h"
#include "base/macros.h"
#include "wire/json_scan.h"

struct telemetry_paths {
	const char *proc, *cgroup, *disk; /* "/proc", "/sys/fs/cgroup", "/" */
};
extern const struct telemetry_paths telemetry_host;

/* CPU time between two samples. */
struct telemetry_cpu {
	uint64_t busy, total;
};

/* What the agent says of itself. Negative days: not known. */
struct telemetry_self {
	const char *version;
	bool helper_up;
	uint64_t reconnects, held, results_waiting, uptime_s;
	int64_t cert_days, bundle_days, backend_days; /* INT64_MIN: none */
	struct span tls;			      /* trust_told; absent: no TLS */
	uint64_t gap_frames, gap_first_seq, gap_last_seq;
};

/*
 * Appends the metrics object. helper_data: data of get_monitoring_data, or absent. services: the
 * setting (name or name=unit, CSV). cpu is the previous sample and is replaced. What does not fit
 * out goes without its containers, and says so: containers_left_out.
 */
int telemetry_compose(const struct telemetry_paths *p, struct span helper_data,
		      const char *services, const struct telemetry_self *self,
		      struct telemetry_cpu *cpu, struct buf *out) MUST_CHECK;
/* The units of the setting as CSV, for the helper's argument `services`. */
int telemetry_units(const char *services, struct buf *out) MUST_CHECK;
int telemetry_read_cpu(const struct telemetry_paths *p, struct telemetry_cpu *ret) MUST_CHECK;

/* The limits that hold for this process: of its cgroup, or of one above that can be seen, the
 * least. Absent figures are 0. */
struct telemetry_cgroup {
	int version; /* 0: none, 1, 2 */
	uint64_t memory_limit_bytes, memory_used_bytes;
	double cpu_limit_cores;
};
void telemetry_read_cgroup(const struct telemetry_paths *p, struct telemetry_cgroup *ret);
