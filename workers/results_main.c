/* results-writer: see results_writer.h. */
#include <stdlib.h>

#include "base/program.h"
#include "results_settings.h"
#include "results_writer.h"
#include "verbs/verbs.h"

static void check_files(const void *cfg, struct settings_faults *faults)
{
	const struct results_settings *c = cfg;
	struct verbs_faults found = {0};
	struct verbs *verbs = NULL;

	if (verbs_load(c->verbs_dir, VERBS_TRUST_ANY, false, &verbs, &found) < 0)
		for (size_t i = 0; i < found.n; i++)
			settings_fault_add(faults, "RESULTS_WRITER_VERBS_DIR", "%s: %s: %s",
					   found.item[i].file, found.item[i].key,
					   found.item[i].text);
	verbs_faults_fini(&found);
	verbs_free(verbs);
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
	code = results_writer_run(&cfg);
	settings_free(&results_settings_spec, &cfg);
	return code;
}
