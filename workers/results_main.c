/* results-writer: see results_writer.h. */
#include <stdlib.h>

#include "base/program.h"
#include "results_settings.h"
#include "results_writer.h"

int main(int argc, char **argv)
{
	struct results_settings cfg;
	int code = program_start(&results_settings_spec, argc, argv, &cfg, NULL);

	if (code >= 0)
		return code;
	program_harden();
	code = results_writer_run(&cfg);
	settings_free(&results_settings_spec, &cfg);
	return code;
}
