/* Settings of host-helper, from host_helper_settings.def. */
#pragma once

#include "base/settings.h"

struct host_helper_settings {
#define SETTING SETTING_FIELD
#include "host_helper_settings.def"
#undef SETTING
};
extern const struct settings_spec host_helper_settings_spec;

/* Set by main.c for --check-config: then the manifests are part of what is valid. At a normal start
 * a faulty manifest only takes its own verb away. */
extern bool host_helper_check_manifests;
