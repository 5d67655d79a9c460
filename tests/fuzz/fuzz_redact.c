/* Redaction: params (a JSON object), then output in which no secret value of 4 bytes or longer may
 * survive. Separated by a NUL. */
#include <string.h>

#include "fuzz.h"
#include "verbs/verbs.h"
#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *params = (const char *)data, *gap = n ? memchr(params, 0, n) : NULL;
	size_t params_n = gap ? (size_t)(gap - params) : n;
	struct span object = {params, params_n};
	struct secret_set set = {0};
	struct buf out;
	bool masked;

	if (params_n == 0 || params[0] != '{' ||
	    json_validate(params, params_n, WIRE_MAX_DEPTH, NULL) < 0)
		return 0;
	buf_init(&out, 1 << 20);
	FUZZ_CHECK(redact_params(NULL, object, &out, &masked) == 0);
	FUZZ_CHECK(json_validate(out.data, out.len, WIRE_MAX_DEPTH, NULL) == 0);
	buf_clear(&out);
	FUZZ_CHECK(secret_set_from_params(NULL, object, &set) == 0);
	if (gap) {
		FUZZ_CHECK(redact_text(&set, gap + 1, n - params_n - 1, &out) == 0);
		for (size_t i = 0; i < set.n; i++) {
			size_t len = strlen(set.value[i]);

			/* A value of stars alone is what masks it. */
			if (len >= 4 && out.len && set.value[i][strspn(set.value[i], "*")])
				FUZZ_CHECK(!memmem(out.data, out.len, set.value[i], len));
		}
	}
	secret_set_fini(&set);
	buf_fini(&out);
	return 0;
}
