/*
 * Gateways whose bridge died without a word. A bridge holds the key <prefix>.bridge.<id>; when it
 * is gone for 10 s, that bridge's open connections are over and its gateways offline. The key's
 * value begins with the time the bridge took it ("<started_ms>|…"): connections older than that
 * belong to a former life of a bridge of that name.
 */
#pragma once

#include "worker.h"

struct lease;
int lease_new(const char *prefix, struct lease **ret) MUST_CHECK;
void lease_free(struct lease *l);
/* Every 2 s. */
void lease_chore(struct lease *l, struct worker *w, int64_t now_ms);
