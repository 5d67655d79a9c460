/* What follows the reading of entries: acknowledging them, keeping them, tidying the group. */
#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "intake_private.h"

enum { KEEP_EVERY_MS = 1000 };

extern const char script_forget[];

static int intake_answers(struct intake *in, size_t n)
{
	int r = 0, error;

	while (n--) {
		const struct redis_reply *reply = redis_sync_receive(in->control, &error);
		if (!reply)
			return intake_fail(in, in->control, error);
		if (redis_type(reply) == REDIS_ERR)
			r = intake_refused(in, reply);
	}
	return r;
}

/* Runs `words… id id id` for the entries of each stream, 500 ids a command, all sent before the
 * first answer is awaited. */
static int intake_for_ids(struct intake *in, const struct intake_batch *b, bool ack)
{
	enum { IDS = 500, WORDS = 6 };
	struct span argv[WORDS + IDS + 1];
	size_t sent = 0;

	for (unsigned s = 0; s < in->streams; s++) {
		size_t i = 0;
		while (i < b->n) {
			size_t n = 0, first;
			argv[n++] = ack ? SPAN("XACK") : SPAN("XCLAIM");
			argv[n++] = span_of(in->name[s]);
			argv[n++] = span_of(in->group);
			if (!ack) {
				argv[n++] = span_of(in->consumer);
				argv[n++] = SPAN("0");
			}
			first = n;
			for (; i < b->n && n < first + IDS; i++)
				if (b->item[i].stream == s)
					argv[n++] = b->item[i].e.id;
			if (n == first)
				break;
			if (!ack)
				argv[n++] = SPAN("JUSTID");
			int r = redis_sync_send(in->control, n, argv);
			if (r < 0)
				return intake_fail(in, in->control, r);
			sent++;
		}
	}
	return intake_answers(in, sent);
}

int intake_ack(struct intake *in, const struct intake_batch *b)
{
	return intake_for_ids(in, b, true);
}

int intake_keep_alive(struct intake *in, const struct intake_batch *b)
{
	int64_t now_ms = clock_boot_ms();

	if (now_ms - in->kept_at_ms < KEEP_EVERY_MS)
		return 0;
	in->kept_at_ms = now_ms;
	int r = intake_for_ids(in, b, false);
	if (r == 0 && in->next.serial)
		r = intake_for_ids(
		    in, &(struct intake_batch){.item = in->next.item, .n = in->next.n}, false);
	return r < 0 ? r : 1;
}

void intake_forget_idle_consumers(struct intake *in, int64_t idle_ms)
{
	char idle[24];
	int error;

	snprintf(idle, sizeof idle, "%lld", (long long)idle_ms);
	for (unsigned i = 0; i < in->streams; i++) {
		const struct span argv[] = {
		    SPAN("EVAL"),	span_of(script_forget), SPAN("1"),    span_of(in->name[i]),
		    span_of(in->group), span_of(in->consumer),	span_of(idle)};
		if (!redis_sync_cmd(in->control, &error, ARRAY_LEN(argv), argv))
			return;
	}
}
