/* What agent-bridge can be told; bridge_settings.def is the table. */
#pragma once

#include "base/settings.h"

struct bridge_settings {
#define SETTING SETTING_FIELD
#include "bridge_settings.def"
#undef SETTING
};

extern const struct settings_spec bridge_settings_spec;
