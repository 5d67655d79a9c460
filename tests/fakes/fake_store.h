#pragma once

#include <stddef.h>

extern struct fake_store {
	int answer; /* what the next calls return */
	unsigned telemetry, hellos, events;
	char agent_id[65], frame[4096];
	size_t frame_n;
	void (*during)(void *arg); /* called by the next call */
	void *during_arg;
} fake_store;
