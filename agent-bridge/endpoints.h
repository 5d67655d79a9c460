/* The bridge's HTTP endpoints (contract section 4): a table of routes. */
#pragma once

#include "http/http.h"

struct bridge;
struct endpoints;

int endpoints_new(struct bridge *b, struct endpoints **ret) MUST_CHECK;
void endpoints_free(struct endpoints *e);
/* outer: only what the agents' listener serves when INTERNAL_BIND has the rest. */
struct http_table endpoints_table(struct endpoints *e, bool outer);
