/* What main.c needs of the dispatcher. */
#pragma once

#include "base/buf.h"
#include "host_helper_settings.h"
#include "verbs/verbs.h"

/* Serves until SIGTERM. -errno; the reason is logged. */
int helper_run(struct host_helper_settings *cfg) MUST_CHECK;
/* Manifests with their executables checked; *ret holds the good ones. -errno on machine failure. */
int helper_load_verbs(const char *dir, struct verbs **ret, struct verbs_faults *faults) MUST_CHECK;
/* Refuses what is not root's own with mode 0400; logs why. */
int helper_load_secret(const char *path, struct buf *ret) MUST_CHECK;
