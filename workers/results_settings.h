/* What results-writer can be told; results_settings.def is the table. */
#pragma once

#include "base/settings.h"

struct results_settings {
#define SETTING SETTING_FIELD
#include "results_settings.def"
#undef SETTING
};

extern const struct settings_spec results_settings_spec;
