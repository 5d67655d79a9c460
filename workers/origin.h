/* What every entry of an agent's streams tells about where it came from (contract section 2). */
#pragma once

#include <stdint.h>

#include "redis/streams.h"

struct origin {
	struct span agent_id, frame, bridge_id, conn_id, ip; /* absent ones: p NULL */
	int64_t epoch;
	int64_t received_ms; /* the bridge's clock; without it, or off by over a day, the entry's
				time */
	int64_t entry_ms;
};
/* NULL, or the reason it is a dead letter. */
const char *origin_parse(const struct stream_entry *e, struct origin *ret);
/* RFC 3339 field; false when absent or malformed. */
bool origin_time(struct span s, int64_t *ret_ms);
/* Decimal, all of it. */
bool origin_int(struct span s, int64_t *ret);
/* Text that a row can hold and that is short; nothing is, too. */
bool origin_is_word(struct span s);
/* memcmp order, shorter first: that of COLLATE "C". */
int span_order(struct span a, struct span b);
