/* The streams of the contract, their consumer groups, and how far behind each group is. */
#pragma once

#include "viwctl.h"

struct stream_group {
	const char *stream, *group; /* names without prefix */
};
/* Every pair that must exist in a running system; NULL-terminated. */
extern const struct stream_group stream_groups[];

struct group_state {
	bool exists;
	uint64_t pending, waiting; /* delivered but not acknowledged; not delivered yet */
	int64_t oldest_ms;	   /* age of the oldest entry neither acknowledged, 0: none */
	uint64_t consumers;
	uint64_t added; /* entries ever written to the stream */
};
/* Counted from the entries themselves, so that it is right after trims. */
int group_look(struct ctl *c, const struct stream_group *g, struct group_state *ret) MUST_CHECK;
