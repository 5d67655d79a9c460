/* The flat TOML that settings files are written in. Used by settings.c and its tests and fuzzers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/macros.h"
#include "base/settings.h"

struct settings_pair {
	char *key, *text; /* text: unescaped; arrays as CSV */
	bool array, used;
	unsigned line;
};
struct settings_pairs {
	struct settings_pair *item;
	size_t n;
};

/* Reads text (n bytes, named `path` in faults) into pairs. Lines at fault are left out and told in
 * faults, at most 20 of them. Returns -ENOMEM or 0. */
int settings_file_parse(const char *path, const char *text, size_t n, struct settings_pairs *ret,
			struct settings_faults *faults) MUST_CHECK;
struct settings_pair *settings_pairs_find(const struct settings_pairs *p, const char *key);
/* Wipes values. */
void settings_pairs_fini(struct settings_pairs *p);
