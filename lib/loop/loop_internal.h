/* What the files of lib/loop share. */
#pragma once

#include <poll.h>
#include <uv.h>

#include "loop/loop.h"

#define LOOP_URGENT_MAX 4

struct loop_signal {
	uv_signal_t handle;
	struct loop_signal *next;
	void (*cb)(void *arg, int signum);
	void *arg;
};

struct loop {
	uv_loop_t uv;
	uint64_t now_uv_ms; /* uv_now when now_boot_ms was read */
	int64_t now_boot_ms;
	struct loop_signal *signals;
	uv_prepare_t pace; /* runs before each poll while pace_until_ms is ahead */
	uint64_t turn_ns, pace_until_ms;
	unsigned pace_us, hurried_us;
	struct pollfd urgent[LOOP_URGENT_MAX]; /* fd -1: free */
	int hurry;			       /* how many wait */
	bool hurry_once;
	uint64_t hurry_until_ms;
	int opens_held;
};

/* Closes a handle whose first member of the owning struct is that handle; frees the struct. */
void loop_close_and_free(uv_handle_t *h);
