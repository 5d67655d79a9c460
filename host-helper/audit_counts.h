/*
 * How many requests were answered, by verb and outcome, since the helper started: what `hello`
 * tells beside the audit log's head, so that a summary can leave the host with each checkpoint.
 * Counts only rise; who wants those of a span subtracts.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/jsonw.h"

#define AUDIT_COUNTS_MAX 256 /* pairs; more are counted as "*" "*" */

struct audit_counts {
	uint64_t from_seq; /* records after this one are counted */
	struct audit_count {
		char name[65], outcome[24];
		uint64_t n;
	} item[AUDIT_COUNTS_MAX];
	size_t items;
};

/* name: a verb of the manifests, an op, or "*" for what is neither. */
void audit_counts_add(struct audit_counts *c, const char *name, const char *outcome);
/* from_seq and counts {name: {outcome: n}}, as members of the object that is open. */
void audit_counts_write(const struct audit_counts *c, struct jsonw *w);
