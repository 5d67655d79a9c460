/* `gateway-agent check`: settings, files, backend, pin, HMAC and helper, each with what is wrong
 * and what to do. */
#pragma once

#include <stdbool.h>

#include "agent_settings.h"

/* Exit code: 0 all good; 69 something does not work. dial: also while the agent runs, whose place
 * this takes for up to a minute. */
int check_run(struct agent_settings *cfg, bool json, bool dial);
