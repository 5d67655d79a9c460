/* The verbs this agent can name: those its helper told in hello (name, effects, parameters as in
 * the manifests it loaded), or, until it did, the built-in ones. */
#pragma once

#include <stdbool.h>

#include "base/jsonw.h"
#include "base/macros.h"
#include "verbs/verbs.h"
#include "wire/json_scan.h"

struct verbset;
int verbset_new(struct verbset **ret) MUST_CHECK;
void verbset_free(struct verbset *v);
/* verbs: hello's array. A verb that cannot be read is left out. -ENOMEM keeps the old set. */
int verbset_learn(struct verbset *v, struct span verbs) MUST_CHECK;
bool verbset_known(const struct verbset *v);
const struct verb *verbset_find(const struct verbset *v, const char *name);
/* Calls fn for each verb by name, the agent's own included. */
void verbset_each(const struct verbset *v, void (*fn)(void *arg, const struct verb *verb),
		  void *arg);
