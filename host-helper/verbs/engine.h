/* One request to the Docker-compatible engine on its Unix socket (Engine API 1.41). Blocking. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/macros.h"

struct engine_reply {
	long status;  /* HTTP; 0: no answer */
	bool sent;    /* the request may have reached the engine */
	json_t *body; /* NULL: none or not JSON */
	char error[320];
};

/* path begins after the version: "/containers/json". body is sent as JSON and its reference is
 * taken. The reply's body belongs to the caller: engine_reply_fini. */
void engine_request(const char *socket, const char *method, const char *path, json_t *body,
		    long timeout_s, struct engine_reply *ret);
void engine_reply_fini(struct engine_reply *r);
/* The engine's own words for a refusal, or the transport's. */
const char *engine_reply_error(const struct engine_reply *r);
