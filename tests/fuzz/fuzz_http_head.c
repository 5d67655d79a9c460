/* Request heads before libwebsockets sees them: lengths stay inside, a prefix never has a longer
 * head than the whole, what is wrong with a prefix is wrong with the whole, a head without a fault
 * has no NUL, and a header put in twice is always told. */
#include <string.h>

#include "fuzz.h"
#include "http/http_head.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const char *const names[] = {"x-agent-id", "x-nonce", "host", NULL};
	static const char twice[] = "X-Nonce: a\r\nx-nonce:b\r\n";
	char *text = malloc(n + sizeof twice); /* no NUL behind it */
	size_t length, prefix;
	const char *line, *fault, *early;
	int status, early_status;

	if (!text)
		abort();
	if (n)
		memcpy(text, data, n);
	length = http_head_length(text, n);
	FUZZ_CHECK(length <= n);
	fault = http_head_fault(text, length ? length : n, &status);
	FUZZ_CHECK(fault || !length || !memchr(text, 0, length));
	for (size_t cut = 0; cut < n && cut < 16; cut++) {
		prefix = http_head_length(text, n - cut);
		FUZZ_CHECK(prefix == 0 || prefix == length);
		early = prefix ? fault : http_head_fault(text, n - cut, &early_status);
		FUZZ_CHECK(!early || early == fault);
	}
	(void)http_head_repeated(text, n, names);
	line = n ? memmem(text, n, "\r\n", 2) : NULL;
	if (length && line && (size_t)(line - text) + 2 < length) {
		size_t at = (size_t)(line - text) + 2;

		memmove(text + at + sizeof twice - 1, text + at, length - at);
		memcpy(text + at, twice, sizeof twice - 1);
		FUZZ_CHECK(http_head_repeated(text, length + sizeof twice - 1, names) & 2);
	}
	free(text);
	return 0;
}
