/* /_healthz, /_readyz and /metrics of a writer, in a thread of their own. */
#pragma once

#include <stdbool.h>

#include "base/macros.h"

struct endpoints;
struct metrics;
int endpoints_open(const char *bind, struct metrics *m, struct endpoints **ret) MUST_CHECK;
void endpoints_close(struct endpoints *e);
/* Both are away until told otherwise. */
void endpoints_set_redis(struct endpoints *e, bool up);
void endpoints_set_pg(struct endpoints *e, bool up);
