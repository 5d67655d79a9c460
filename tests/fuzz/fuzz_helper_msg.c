/* Messages of the helper's socket, behind their MAC. First byte: request or reply. */
#include <string.h>

#include "fuzz.h"
#include "wire/wire.h"

static struct wire_decoder *decoder, *again;

static void round_trip(enum wire_type t, const struct wire_frame *f)
{
	struct buf first, second;
	struct wire_frame g;
	struct wire_refusal_info info;

	buf_init(&first, 8 << 20);
	buf_init(&second, 8 << 20);
	FUZZ_CHECK(wire_encode(f, &first) == 0);
	FUZZ_CHECK(!memchr(first.data, '\n', first.len)); /* a message is one line */
	FUZZ_CHECK(wire_decode_as(again, t, first.data, first.len, &g, &info) == WIRE_OK);
	FUZZ_CHECK(wire_encode(&g, &second) == 0);
	FUZZ_CHECK(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
	buf_fini(&first);
	buf_fini(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct wire_frame f;
	struct wire_refusal_info info;
	enum wire_type t;

	if (!decoder && (wire_decoder_new(WIRE_HELPER_REPLY_MAX, &decoder) < 0 ||
			 wire_decoder_new(8 << 20, &again) < 0))
		abort();
	/* A line: no message holds a newline. */
	if (n == 0 || memchr(data, '\n', n))
		return 0;
	t = data[0] & 1 ? WIRE_HELPER_REQUEST : WIRE_HELPER_REPLY;
	if (wire_decode_as(decoder, t, (const char *)data + 1, n - 1, &f, &info) == WIRE_OK)
		round_trip(t, &f);
	return 0;
}
