/* Takes secrets out of a RESULT before it is stored, with the parameters of its command. */
#pragma once

#include "verbs/verbs.h"
#include "wire/wire.h"

/* Logs what is wrong. 0; < 0: *ret then holds the manifests that were good when `partial`, else
 * NULL. */
int masking_load(const char *dir, bool partial, struct verbs **ret) MUST_CHECK;
/* Appends the RESULT with stdout, stderr and error.msg masked. known false: the parameters are
 * gone, so all output is withheld. params: the command's JSON object. */
int masking_apply(const struct verbs *verbs, const struct wire_result *r, bool known,
		  struct span verb, struct span params, struct buf *out) MUST_CHECK;
