/* The table of embedded scripts. */
#include "scripts.h"

#include <stdlib.h>
#include <string.h>

#include "base/crash.h"

#define X(name) extern const char script_##name[];
SCRIPTS(X)
#undef X

#ifdef VIW_CRASH_POINTS
/* Negative controls of tests/chaos: a script that keeps one promise less. */
static const struct {
	const char *off, *find, *put;
} patches[] = {
    {"fencing", "return 'FENCED'", "local _ = 0    "},
    {"dedupe", "elseif m.state and not", "elseif nil     and not"},
};

static void patch(struct redis_script *s)
{
	for (size_t i = 0; i < ARRAY_LEN(patches); i++) {
		char *at;

		if (!crash_off(patches[i].off) || !strstr(s->body, patches[i].find))
			continue;
		s->body = strdup(s->body); /* for the rest of the program's life */
		while (s->body && (at = strstr(s->body, patches[i].find)))
			memcpy(at, patches[i].put, strlen(patches[i].find));
	}
}
#endif

struct redis_script *script_get(enum script s)
{
	static struct redis_script table[] = {
#define X(name_) [SCRIPT_##name_] = {.name = #name_, .body = script_##name_},
	    SCRIPTS(X)
#undef X
	};

#ifdef VIW_CRASH_POINTS
	if (!table[s].sha1[0])
		patch(&table[s]);
#endif
	return &table[s];
}
