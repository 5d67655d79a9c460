/* Settings files: any bytes give pairs or faults, never more. */
#include <string.h>

#include "base/settings_file.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct settings_pairs pairs = {0};
	struct settings_faults faults = {0};

	FUZZ_CHECK(settings_file_parse("fuzz.toml", (const char *)data, n, &pairs, &faults) == 0);
	for (size_t i = 0; i < pairs.n; i++) {
		FUZZ_CHECK(pairs.item[i].key && pairs.item[i].text);
		FUZZ_CHECK(settings_pairs_find(&pairs, pairs.item[i].key) == &pairs.item[i]);
	}
	settings_pairs_fini(&pairs);
	settings_faults_fini(&faults);
	return 0;
}
