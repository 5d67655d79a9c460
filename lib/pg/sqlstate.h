/* What an SQLSTATE asks of the caller. One table. */
#pragma once

#include "pg/pg.h"

/* state: five characters; "" (no SQLSTATE: the connection broke) is PG_RECONNECT. */
enum pg_verdict sqlstate_verdict(const char *state);
