#pragma once

#include <stdbool.h>

extern struct fake_transport {
	unsigned wakes, pauses, closes;
	bool paused;
	int close_code;
} fake_transport;
