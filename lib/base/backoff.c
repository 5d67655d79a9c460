#include "base/backoff.h"

#include "base/ident.h"

void backoff_init(struct backoff *b, int64_t base_ms, int64_t cap_ms)
{
	*b = (struct backoff){.base_ms = base_ms < 1 ? 1 : base_ms, .cap_ms = cap_ms};
	if (b->cap_ms < b->base_ms)
		b->cap_ms = b->base_ms;
}

int64_t backoff_next_ms(struct backoff *b)
{
	int64_t last = b->last_ms ? b->last_ms : b->base_ms;
	int64_t high = last > b->cap_ms / 3 ? b->cap_ms : last * 3;
	if (high < b->base_ms)
		high = b->base_ms;
	b->last_ms = b->base_ms + (int64_t)ident_random_below((uint64_t)(high - b->base_ms) + 1);
	return b->last_ms;
}

void backoff_reset(struct backoff *b)
{
	b->last_ms = 0;
}
