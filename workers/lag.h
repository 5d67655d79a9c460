/*
 * How far behind a group is, also after trims. XINFO's own lag counts entries that a trim removed
 * for ever, so it is anchored: whenever the truth can be seen (nothing undelivered, or nothing
 * delivered is left in the stream) the difference is noted and taken off until the next such
 * moment. A difference that grows is data that was trimmed before it was read.
 */
#pragma once

#include <stdint.h>

#include "base/macros.h"

struct intake;
struct lag;
struct metrics;
struct redis_sync;
int lag_new(const struct intake *in, struct lag **ret) MUST_CHECK;
void lag_free(struct lag *l);
/* Sets viw_stream_lag_entries and _seconds, adds to viw_entries_lost_total; at most every 2 s. */
void lag_measure(struct lag *l, struct redis_sync *r, struct metrics *m, int64_t now_ms);
/* Age of a stream's oldest entry that is not stored, as last measured; -1: could not be seen. */
int64_t lag_age_ms(const struct lag *l, unsigned stream);
