#pragma once

#include <stdbool.h>
#include <stdint.h>

extern struct fake_dispatch {
	int answer; /* what dispatch_result returns */
	unsigned ready, accepted, results;
	uint64_t sid;
	bool had_journal;
} fake_dispatch;
