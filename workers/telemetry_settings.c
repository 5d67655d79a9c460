/* The settings table of telemetry-writer. */
#include "telemetry_settings.h"

#include "common_settings.h"
#include "worker_metrics.h"

#define SETTINGS_STRUCT telemetry_settings

static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "telemetry_settings.def"
#undef SETTING
};

static void validate(const void *cfg, struct settings_faults *f)
{
	const struct telemetry_settings *c = cfg;

	common_settings_check("TELEMETRY_WRITER", c->redis_url, c->database_url, c->stream_prefix,
			      c->consumer, f);
}

const struct settings_spec telemetry_settings_spec = {
    .program = "telemetry-writer",
    .summary = "turns hellos, telemetry and agent events from Redis into rows",
    .prefix = "TELEMETRY_WRITER",
    .file_env = "TELEMETRY_WRITER_CONFIG",
    .default_file = "config/telemetry-writer.toml",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct telemetry_settings),
    .validate = validate,
    .metric = worker_metrics,
    .metrics = WORKER_METRICS,
    .metrics_markdown = metrics_markdown,
};
