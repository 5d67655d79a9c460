/* See log_limit.h. */
#include "base/log_limit.h"

#include "base/clock.h"

long log_limit_pass(struct log_limit *l, unsigned lines_a_minute)
{
	int64_t now = clock_boot_ms();
	long left_out = l->left_out;

	if (!l->since_ms || now - l->since_ms >= 60000) {
		l->since_ms = now;
		l->lines = 0;
	}
	if (l->lines >= lines_a_minute) {
		l->left_out++;
		return -1;
	}
	l->lines++;
	l->left_out = 0;
	return left_out;
}
