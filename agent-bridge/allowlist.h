/* AGENT_BRIDGE_ALLOWED_AGENT_IDS: which agents may connect and be sent commands. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/macros.h"

struct allowlist { /* zero, or an empty text: everyone */
	char **id; /* sorted */
	size_t n;
};

/* csv: comma-separated ids, or NULL. -ENOMEM: *ret is untouched. */
int allowlist_parse(const char *csv, struct allowlist *ret) MUST_CHECK;
void allowlist_fini(struct allowlist *l);
bool allowlist_has(const struct allowlist *l, const char *agent_id);
