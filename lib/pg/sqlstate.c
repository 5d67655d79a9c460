#include "pg/sqlstate.h"

#include <string.h>

/* PostgreSQL manual, appendix A. The first prefix that fits decides, so longer ones come first. */
static const struct {
	const char *prefix;
	enum pg_verdict verdict;
} table[] = {
    {"0A000", PG_RECONNECT},			  /* cached plan must not change result type */
    {"08", PG_RECONNECT},    {"21", PG_BAD_DATA}, /* two rows with one key */
    {"22", PG_BAD_DATA},     {"23", PG_BAD_DATA},
    {"25006", PG_RECONNECT}, /* read-only: it is a standby now */
    {"25P03", PG_RECONNECT}, /* idle in transaction too long: the session is gone */
    {"26", PG_RECONNECT},    /* prepared statement unknown: a pooler swapped the session */
    {"40", PG_RETRY},	     {"42P05", PG_RECONNECT}, /* prepared statement exists: same */
    {"53300", PG_RECONNECT}, {"54", PG_BAD_DATA},     /* a row over some limit of the server */
    {"55P03", PG_RETRY},     {"57014", PG_RETRY},     /* statement timeout */
    {"57P", PG_RECONNECT},   {"P0", PG_BAD_DATA},
    {"VW", PG_BAD_DATA}, /* our own triggers: append-only, terminal */
};

enum pg_verdict sqlstate_verdict(const char *state)
{
	if (!state[0])
		return PG_RECONNECT;
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strncmp(state, table[i].prefix, strlen(table[i].prefix)) == 0)
			return table[i].verdict;
	return PG_PAUSE;
}

const char *pg_verdict_word(enum pg_verdict v)
{
	static const char *const word[] = {
	    [PG_OK] = "ok",
	    [PG_RETRY] = "retry",
	    [PG_RECONNECT] = "reconnect",
	    [PG_BAD_DATA] = "bad_data",
	    [PG_PAUSE] = "pause",
	};
	return word[v];
}
