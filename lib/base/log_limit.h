/* A bound on log lines that somebody outside can cause. */
#pragma once

#include <stdint.h>

struct log_limit {
	int64_t since_ms;
	unsigned lines;
	long left_out;
};

/* -1: this line is one too many. Else it may be written, and so many were left out since the last
 * that was. */
long log_limit_pass(struct log_limit *l, unsigned lines_a_minute);
