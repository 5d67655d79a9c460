/* status.json: what the running agent says of itself. Written by it into STATE_DIR, shown by
 * `gateway-agent status`. No secrets. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "agent_settings.h"
#include "base/buf.h"
#include "base/macros.h"
#include "commands.h"
#include "session.h"

struct status_input {
	const struct agent_settings *cfg;
	struct session_view session;
	bool helper_up;
	const char *helper_why;
	struct commands_counts commands;
	int64_t cert_days, bundle_days, backend_days; /* INT64_MIN: none */
	int64_t started_ms;			      /* wall clock */
};
/* Appends the JSON object. */
int status_compose(const struct status_input *in, struct buf *out) MUST_CHECK;
/* The subcommand: reads status.json. Exit code. */
int status_show(const struct agent_settings *cfg, bool json);
/* True when the agent of these settings runs and is connected; url then names the bridge. */
bool status_is_connected(const struct agent_settings *cfg, char *url, size_t cap);
