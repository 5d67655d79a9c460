/* A binary array parameter as libpq sends it; built in place, one allocation reused. */
#pragma once

#include "pg/pg.h"

/* The finished message; valid until the next append or clear. */
struct span pg_array_bytes(const struct pg_array *a);
