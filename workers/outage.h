/*
 * When a server that is away is told of: at its beginning, when it becomes another kind (away, then
 * refusing), every five minutes, for somebody looks at the last hour of a log, and at its end.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct outage {
	bool on;
	int kind;
	int64_t since_ms, told_ms;
};

/* It is away, in this way. True: now a line is due. */
bool outage_tells(struct outage *o, int kind);
/* How long it has been away; 0 when it is not. */
int64_t outage_ms(const struct outage *o);
void outage_end(struct outage *o);
