/* Stands in for store.c at link time: notes what it was given, answers as told. */
#include "fake_store.h"

#include <string.h>

#include "store.h"

struct fake_store fake_store;

static int note(const struct store_conn *c, struct span frame, unsigned *count)
{
	void (*during)(void *) = fake_store.during;

	fake_store.during = NULL;
	if (during)
		during(fake_store.during_arg);
	if (fake_store.answer < 0)
		return fake_store.answer;
	(*count)++;
	memcpy(fake_store.agent_id, c->agent_id, strlen(c->agent_id) + 1);
	fake_store.frame_n = frame.n < sizeof(fake_store.frame) ? frame.n : 0;
	if (fake_store.frame_n)
		memcpy(fake_store.frame, frame.p, fake_store.frame_n);
	return 0;
}

int store_telemetry(struct store *s UNUSED, const struct store_conn *c, struct span frame)
{
	return note(c, frame, &fake_store.telemetry);
}

int store_hello(struct store *s UNUSED, const struct store_conn *c, struct span frame)
{
	return note(c, frame, &fake_store.hellos);
}

int store_event(struct store *s UNUSED, const struct store_conn *c, const char *event UNUSED,
		const char *reason UNUSED, struct span frame)
{
	return note(c, frame, &fake_store.events);
}
