/* The settings table of results-writer. */
#include "results_settings.h"

#include "common_settings.h"
#include "worker_metrics.h"

#define SETTINGS_STRUCT results_settings

static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "results_settings.def"
#undef SETTING
};

static void validate(const void *cfg, struct settings_faults *f)
{
	const struct results_settings *c = cfg;

	common_settings_check("RESULTS_WRITER", c->redis_url, c->database_url, c->stream_prefix,
			      c->consumer, f);
	if (c->retention_days && c->retention_days < 9)
		settings_fault_add(
		    f, "RESULTS_WRITER_RETENTION_DAYS",
		    "is less than 9: ids are remembered 8 days; use 0 or 9 and more");
}

const struct settings_spec results_settings_spec = {
    .program = "results-writer",
    .summary = "turns commands, their events and their results from Redis into rows",
    .prefix = "RESULTS_WRITER",
    .file_env = "RESULTS_WRITER_CONFIG",
    .default_file = "config/results-writer.toml",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct results_settings),
    .validate = validate,
    .metric = worker_metrics,
    .metrics = WORKER_METRICS,
    .metrics_markdown = metrics_markdown,
};
