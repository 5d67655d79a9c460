/* A command as POSTed over HTTP: {correlation_id, type|command, payload|params, ttl_s}. Pure. */
#pragma once

#include <stdint.h>

#include "base/ident.h"
#include "base/macros.h"
#include "wire/json_scan.h"

#define ORDER_VERB_MAX	 128
#define ORDER_ISSUER_MAX 128

struct order {
	char agent_id[AGENT_ID_MAX + 1], correlation_id[CORRELATION_ID_MAX + 1];
	char command[ORDER_VERB_MAX + 1], issued_by[ORDER_ISSUER_MAX + 1];
	char *params; /* a JSON object */
	int64_t ttl_s;
};

/* body must be a validated JSON object. NULL, or what is wrong; order_fini in both cases. */
const char *order_read(const char *agent_id, struct span body, struct order *o) MUST_CHECK;
void order_fini(struct order *o);
