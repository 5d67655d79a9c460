/* Stands in for dispatch.c at link time. */
#include "fake_dispatch.h"

#include "dispatch.h"

struct fake_dispatch fake_dispatch;

void dispatch_ready(struct dispatch *d UNUSED, uint64_t sid, const char *journal_id)
{
	fake_dispatch.ready++;
	fake_dispatch.sid = sid;
	fake_dispatch.had_journal = journal_id != NULL;
}

void dispatch_accepted(struct dispatch *d UNUSED, uint64_t sid, const char *correlation_id UNUSED)
{
	fake_dispatch.accepted++;
	fake_dispatch.sid = sid;
}

int dispatch_result(struct dispatch *d UNUSED, uint64_t sid, const struct wire_result *r UNUSED)
{
	if (fake_dispatch.answer < 0)
		return fake_dispatch.answer;
	fake_dispatch.results++;
	fake_dispatch.sid = sid;
	return 0;
}
