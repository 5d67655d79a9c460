#include "outage.h"

#include "base/clock.h"

enum { TELL_EVERY_MS = 300000 };

bool outage_tells(struct outage *o, int kind)
{
	int64_t now_ms = clock_boot_ms();

	if (!o->on)
		*o = (struct outage){.on = true, .since_ms = now_ms};
	else if (o->kind == kind && now_ms - o->told_ms < TELL_EVERY_MS)
		return false;
	o->kind = kind;
	o->told_ms = now_ms;
	return true;
}

int64_t outage_ms(const struct outage *o)
{
	return o->on ? clock_boot_ms() - o->since_ms : 0;
}

void outage_end(struct outage *o)
{
	o->on = false;
}
