/* What telemetry-writer can be told; telemetry_settings.def is the table. */
#pragma once

#include "base/settings.h"

struct telemetry_settings {
#define SETTING SETTING_FIELD
#include "telemetry_settings.def"
#undef SETTING
};

extern const struct settings_spec telemetry_settings_spec;
