/* results-writer: see results_writer.h. */
#include <stdlib.h>

#include "base/program.h"
#include "results_settings.h"
#include "results_writer.h"
#include "verbs/verbs.h"
#include "worker.h"

static void check_files(const void *cfg, struct settings_faults *faults)
{
	const struct results_settings *c = cfg;

	verbs_check(c->verbs_dir, "RESULTS_WRITER_VERBS_DIR", false, faults);
}

int main(int argc, char **argv)
{
	struct results_settings cfg;
	struct settings_spec spec = results_settings_spec;

	spec.check_files = check_files;
	int code = program_start(&spec, argc, argv, &cfg, NULL);

	if (code >= 0)
		return code;
	program_harden();
	code = worker_check_descriptors();
	if (code == 0)
		code = results_writer_run(&cfg);
	settings_free(&results_settings_spec, &cfg);
	return code;
}
