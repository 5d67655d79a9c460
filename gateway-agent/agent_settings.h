/* gateway-agent's settings, made from agent_settings.def. */
#pragma once

#include "base/settings.h"

struct agent_settings {
#define SETTING SETTING_FIELD
#include "agent_settings.def"
#undef SETTING
};
extern const struct settings_spec agent_settings_spec;
