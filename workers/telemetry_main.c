/* telemetry-writer: see telemetry_writer.h. */
#include <stdlib.h>

#include "base/program.h"
#include "telemetry_settings.h"
#include "telemetry_writer.h"
#include "worker.h"

int main(int argc, char **argv)
{
	struct telemetry_settings cfg;
	int code = program_start(&telemetry_settings_spec, argc, argv, &cfg, NULL);

	if (code >= 0)
		return code;
	program_harden();
	code = worker_check_descriptors();
	if (code == 0)
		code = telemetry_writer_run(&cfg);
	settings_free(&telemetry_settings_spec, &cfg);
	return code;
}
