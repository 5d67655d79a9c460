/* The running agent: session, helper, commands, telemetry and status on one loop. main.c starts
 * it; everything it owns ends with agent_close. */
#pragma once

#include "agent_settings.h"
#include "base/macros.h"

struct loop;
struct agent;

/* cfg is kept and changed by reloads; it must outlive the agent. */
int agent_open(struct loop *l, struct agent_settings *cfg, struct agent **ret) MUST_CHECK;
void agent_close(struct agent *a);
