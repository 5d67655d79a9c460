/* The fleet in numbers, for alarms: agents sit behind NAT, where no Prometheus reaches them. */
#pragma once

#include "worker.h"

struct fleet {
	int64_t next_ms;
};
/* Once a minute, less often where it takes long: gateways by status, helpers that are down,
 * certificates that end, uptime. */
void fleet_chore(struct fleet *f, struct worker *w, int64_t now_ms);
