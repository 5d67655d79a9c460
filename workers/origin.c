#include "origin.h"

#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "base/utf8.h"

enum { DAY_MS = 86400000, WORD_MAX = 256 };

bool origin_time(struct span s, int64_t *ret_ms)
{
	return s.p && clock_parse_rfc3339(s.p, s.n, ret_ms) == 0;
}

bool origin_int(struct span s, int64_t *ret)
{
	return s.p && json_int(s, ret) == 0;
}

bool origin_is_word(struct span s)
{
	return s.n <= WORD_MAX && (!s.n || (!memchr(s.p, '\0', s.n) && utf8_is_valid(s.p, s.n)));
}

int span_order(struct span a, struct span b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int r = n ? memcmp(a.p, b.p, n) : 0;

	return r ? r : (a.n > b.n) - (a.n < b.n);
}

const char *origin_parse(const struct stream_entry *e, struct origin *ret)
{
	struct origin o = {
	    .agent_id = stream_field(e, "agent_id"),
	    .frame = stream_field(e, "frame"),
	    .bridge_id = stream_field(e, "bridge_id"),
	    .conn_id = stream_field(e, "conn_id"),
	    .ip = stream_field(e, "ip"),
	};

	if (!o.agent_id.p || !ident_is_agent_id(o.agent_id.p, o.agent_id.n))
		return "bad_agent_id";
	if (!origin_is_word(o.bridge_id) || !origin_is_word(o.conn_id) || !origin_is_word(o.ip))
		return "bad_field";
	if (!origin_int(stream_field(e, "epoch"), &o.epoch) || o.epoch < 0)
		return "bad_epoch";
	if (stream_entry_ms(e->id, &o.entry_ms) < 0)
		return "bad_entry_id";
	if (!origin_time(stream_field(e, "received_at"), &o.received_ms) ||
	    o.received_ms > o.entry_ms + DAY_MS || o.received_ms < o.entry_ms - DAY_MS)
		o.received_ms = o.entry_ms;
	*ret = o;
	return NULL;
}
