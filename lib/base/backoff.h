/* Decorrelated jitter: next = min(cap, random(base, previous * 3)).
 * Source: AWS Architecture Blog, "Exponential Backoff And Jitter". */
#pragma once

#include <stdint.h>

struct backoff {
	int64_t base_ms, cap_ms;
	int64_t last_ms; /* 0: fresh */
};

void backoff_init(struct backoff *b, int64_t base_ms, int64_t cap_ms);
int64_t backoff_next_ms(struct backoff *b);
void backoff_reset(struct backoff *b);
