/* The inbound feature (contract section 4): health, status, metrics and POST /execute on a
 * loopback address. Off unless VIW_AGENT_FEATURE_INBOUND_HTTP. */
#pragma once

#include "agent_settings.h"
#include "base/buf.h"
#include "base/macros.h"
#include "commands.h"

struct agent;
struct loop;
struct local_http;

int local_http_open(struct loop *l, struct agent *a, const struct agent_settings *cfg,
		    struct local_http **ret) MUST_CHECK;
void local_http_close(struct local_http *h);
/* POST /execute is guarded by this; NULL: off. Kept by the caller. */
void local_http_set_token(struct local_http *h, const char *token);

/* What agent.c answers with. */
int agent_status_json(struct agent *a, struct buf *out) MUST_CHECK;
int agent_metrics_text(struct agent *a, struct buf *out) MUST_CHECK;
bool agent_is_connected(struct agent *a);
int agent_execute(struct agent *a, const char *correlation_id, const char *verb, struct span args,
		  int64_t ttl_ms, commands_local_cb cb, void *arg) MUST_CHECK;
