/*
 * Commands that wait: where Redis may have forgotten that one is over, OFFER asks results-writer
 * before the first offer (agent-bridge/redis/lib/ledger.lua). Its answer shows at the next OFFER,
 * so that is repeated, soon at first.
 */
#include "dispatch_internal.h"

#define LEDGER_MAX_MS 1000

void dispatch_ledger_ask_again(void *arg)
{
	struct dispatch *d = arg;
	int64_t next_ms = d->ledger_ms * 2 < LEDGER_MAX_MS ? d->ledger_ms * 2 : LEDGER_MAX_MS;
	bool waits = false;

	for (struct holding *s = d->first, *next; s; s = next) {
		next = s->next;
		if (s->ledger_waits) {
			waits = true;
			dispatch_want_offer(d, s, false);
		}
	}
	if (!waits) /* they have all gone meanwhile */
		next_ms = DISPATCH_LEDGER_FIRST_MS;
	if (next_ms == LEDGER_MAX_MS && d->ledger_ms < LEDGER_MAX_MS)
		LOG_WARN(FIELDS(.event = "ledger_waits"),
			 "Redis has lost data; commands wait until results-writer has looked them "
			 "up");
	d->ledger_ms = next_ms;
}

void dispatch_ledger_waits(struct dispatch *d, uint64_t sid, bool waits)
{
	struct holding *s = dispatch_find(d, sid);

	if (s && s->ledger_waits && !waits)
		d->ledger_ms = DISPATCH_LEDGER_FIRST_MS;
	if (s)
		s->ledger_waits = waits;
	if (s && waits && !loop_timer_active(d->ledger))
		loop_timer_start(d->ledger, d->ledger_ms, 0);
}

uint64_t dispatch_waiting_for_ledger(const struct dispatch *d)
{
	uint64_t n = 0;

	for (const struct holding *s = d->first; s; s = s->next)
		if (s->ledger_waits)
			n += s->left > s->slots ? s->left - s->slots : 1;
	return n;
}
