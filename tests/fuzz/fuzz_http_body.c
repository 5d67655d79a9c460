/* Bodies of HTTP requests: what lib/http lets through to a handler, and what the bridge reads in
 * it. Whatever is taken keeps its form; whatever is refused says why. */
#include <string.h>

#include "fuzz.h"
#include "order.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	char *body = malloc(n + 1);
	struct json_fault fault;
	struct order o;
	const char *refusal;

	if (!body || n > 65536) {
		free(body);
		return 0;
	}
	memcpy(body, data, n);
	body[n] = '\0';
	if (json_validate(body, n, 16, &fault) < 0 || body[strspn(body, " \t\r\n")] != '{') {
		free(body);
		return 0;
	}
	refusal = order_read("gw-1", (struct span){body, n}, &o);
	if (refusal) {
		FUZZ_CHECK(*refusal);
	} else {
		FUZZ_CHECK(ident_is_correlation_id(o.correlation_id, strlen(o.correlation_id)));
		FUZZ_CHECK(*o.command && strlen(o.command) <= ORDER_VERB_MAX);
		FUZZ_CHECK(o.ttl_s >= 1 && o.ttl_s <= 86400);
		FUZZ_CHECK(json_validate(o.params, strlen(o.params), 16, &fault) == 0);
		FUZZ_CHECK(*o.params == '{');
	}
	order_fini(&o);
	free(body);
	return 0;
}
