/* Verb manifests; and, when one is good, arguments for it: the manifest and the arguments are
 * separated by a newline that stands alone. */
#include <string.h>

#include "fuzz.h"
#include "verbs/verbs.h"
#include "wire/wire.h"

static void check_args(const struct verb *v, const char *json, size_t n)
{
	struct verb_args args;
	char msg[256] = "";
	struct json_member m;
	struct span span = {json, n};
	char digest[65];

	(void)m;
	if (json_validate(json, n, WIRE_MAX_DEPTH, NULL) < 0 || n == 0 || json[0] != '{')
		return;
	if (verb_args_check(v, span, &args, msg, sizeof msg) < 0) {
		FUZZ_CHECK(msg[0]);
		return;
	}
	FUZZ_CHECK(args.n == v->params);
	for (size_t i = 0; i < args.n; i++) {
		const char *value = args.value[i];

		FUZZ_CHECK(value || v->param[i].optional);
		for (; value && *value; value++)
			FUZZ_CHECK((unsigned char)*value >= 0x20 && *value != 0x7f);
		FUZZ_CHECK(!args.value[i] || args.value[i][0] != '-');
	}
	verb_digest(v, &args, digest);
	FUZZ_CHECK(strlen(digest) == 64);
	verb_args_fini(&args, v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *json = (const char *)data, *gap = n ? memmem(json, n, "\n\n", 2) : NULL;
	size_t json_n = gap ? (size_t)(gap - json) : n;
	struct verb *v = NULL;
	struct verbs_faults faults = {0};
	int r = verb_parse(json, json_n, "fuzz.json", &v, &faults);

	if (r == 0) {
		FUZZ_CHECK(v && v->name && v->exec && v->exec[0] == '/');
		if (gap)
			check_args(v, gap + 2, n - json_n - 2);
		verb_free(v);
	} else {
		FUZZ_CHECK(faults.n > 0);
	}
	verbs_faults_fini(&faults);
	return 0;
}
