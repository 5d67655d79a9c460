/* Records of host-helper's journal and reports of its supervisors. */
#include <string.h>

#include "fuzz.h"
#include "outcome.h"

static void round_trip(const struct outcome *o)
{
	struct buf payload, text;
	struct outcome again;
	struct record rec;

	buf_init(&payload, 1 << 20);
	buf_init(&text, 1 << 20);
	outcome_init(&again, 1 << 20);
	FUZZ_CHECK(outcome_encode(o, &payload) == 0);
	FUZZ_CHECK(record_append(&text, "done", payload.data, payload.len) == 0);
	struct span rest = {text.data, text.len};
	FUZZ_CHECK(record_next(&rest, &rec) == 1 && rest.n == 0);
	FUZZ_CHECK(outcome_decode(rec.payload, &again) == 0);
	FUZZ_CHECK(again.rc == o->rc && again.out.len == o->out.len && again.err.len == o->err.len);
	FUZZ_CHECK(again.started_ms == o->started_ms && strcmp(again.code, o->code) == 0);
	outcome_fini(&again);
	buf_fini(&payload);
	buf_fini(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct span rest = {(const char *)data, n};
	struct outcome o;
	struct record rec;

	while (record_next(&rest, &rec) == 1)
		FUZZ_CHECK((const uint8_t *)rec.payload.p + rec.payload.n < data + n);
	outcome_init(&o, 1 << 20);
	if (outcome_decode((struct span){(const char *)data, n}, &o) == 0)
		round_trip(&o);
	outcome_fini(&o);
	return 0;
}
