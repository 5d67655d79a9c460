/* What the files of lib/verbs share among themselves. */
#pragma once

#include "verbs/verbs.h"

/* One row a parameter type. */
struct param_kind {
	const char *word;
	int64_t min, max; /* bounds when the manifest gives none; limits of what it may give */
	int64_t max_default;
	bool numeric; /* min and max bound the value, else the length in bytes */
	/* Writes the canonical text (malloc) or says what would be right. -EINVAL, -ENOMEM. */
	int (*check)(const struct verb_param *p, const char *s, size_t n, char **ret);
	const char *want;
};
extern const struct param_kind param_kinds[PARAM_TYPES];

/* Appends copies of the built-in verbs. */
int verbs_add_builtins(struct verbs *v) MUST_CHECK;
/* Takes v over on success. -EEXIST: the name is taken. */
int verbs_add(struct verbs *vs, struct verb *v) MUST_CHECK;
