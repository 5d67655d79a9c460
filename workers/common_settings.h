/* Checks of the settings both writers have. */
#pragma once

#include "base/settings.h"

/* prefix: "TELEMETRY_WRITER". Any of them may be NULL. */
void common_settings_check(const char *prefix, const char *redis_url, const char *database_url,
			   const char *stream_prefix, const char *consumer,
			   struct settings_faults *f);
/* "<prefix>.<suffix>" on the heap; NULL without memory. */
char *common_stream_name(const char *prefix, const char *suffix);
/* consumer, or the host's name; on the heap. */
char *common_consumer(const char *consumer_or_null);
