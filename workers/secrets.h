/*
 * Secret values of commands seen lately, so that their results can be masked here as well. The
 * bridge masked them before; this is the second net. Bounded: the oldest is forgotten, wiped.
 */
#pragma once

#include "verbs/verbs.h"

struct secrets;
int secrets_new(struct secrets **ret) MUST_CHECK;
void secrets_free(struct secrets *s);
/* Takes over what set holds, also on failure. */
void secrets_put(struct secrets *s, struct span correlation_id, struct secret_set *set,
		 int64_t now_ms);
/* NULL when unknown. Valid until the next put or drop. */
const struct secret_set *secrets_get(const struct secrets *s, struct span correlation_id);
/* Forgets what is older than max_age_ms. */
void secrets_drop_old(struct secrets *s, int64_t now_ms, int64_t max_age_ms);
