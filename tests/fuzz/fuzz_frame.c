/* Frames of agents and bridges, as the other side decodes them. What is accepted is encoded and
 * decoded again: nothing may change. First byte: who sends. */
#include <string.h>

#include "../unit/json_oracle.h"
#include "fuzz.h"
#include "wire/wire.h"

static struct wire_decoder *decoder, *again;

static void round_trip(enum wire_direction from, const struct wire_frame *f)
{
	struct buf first, second;
	struct wire_frame g;
	struct wire_refusal_info info;

	buf_init(&first, 8 << 20);
	buf_init(&second, 8 << 20);
	FUZZ_CHECK(wire_encode(f, &first) == 0);
	FUZZ_CHECK(wire_decode(again, from, first.data, first.len, &g, &info) == WIRE_OK);
	FUZZ_CHECK(g.type == f->type);
	FUZZ_CHECK(wire_encode(&g, &second) == 0);
	FUZZ_CHECK(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
	buf_fini(&first);
	buf_fini(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct wire_frame f;
	struct wire_refusal_info info;
	enum wire_direction from;
	enum wire_refusal r;
	json_t *oracle;

	if (!decoder && (wire_decoder_new(WIRE_MAX_FRAME_BYTES_DEFAULT, &decoder) < 0 ||
			 wire_decoder_new(8 << 20, &again) < 0))
		abort();
	if (n == 0 || n > WIRE_MAX_FRAME_BYTES_DEFAULT)
		return 0;
	from = data[0] & 1 ? WIRE_FROM_AGENT : WIRE_FROM_BRIDGE;
	r = wire_decode(decoder, from, (const char *)data + 1, n - 1, &f, &info);
	oracle = oracle_load((const char *)data + 1, n - 1, WIRE_MAX_DEPTH);
	FUZZ_CHECK((r != WIRE_BAD_JSON) == (oracle && json_is_object(oracle)));
	json_decref(oracle);
	FUZZ_CHECK(info.code == r);
	if (r == WIRE_OK)
		round_trip(from, &f);
	else
		FUZZ_CHECK(info.msg[0] && memchr(info.msg, 0, sizeof info.msg));
	return 0;
}
