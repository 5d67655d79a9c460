/* The scanner against jansson: the same verdict on every input, and the same values when good. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/json_oracle.h"
#include "fuzz.h"
#include "wire/json_scan.h"

static void same_text(struct span raw, const char *text, size_t n)
{
	struct buf out;

	buf_init(&out, raw.n);
	FUZZ_CHECK(json_unescape(raw, &out) == 0);
	FUZZ_CHECK(out.len == n && (n == 0 || memcmp(out.data, text, n) == 0));
	buf_fini(&out);
}

static void same_container(struct span raw, const json_t *v);

/* Bounded: the document is at most 16 deep. */
static void same_value(const struct json_member *m, const json_t *v)
{
	int64_t i;

	FUZZ_CHECK(v != NULL);
	switch (m->type) {
	case JSON_T_NULL:
		FUZZ_CHECK(json_is_null(v));
		break;
	case JSON_T_BOOL:
		FUZZ_CHECK(json_is_boolean(v) && json_is_true(v) == (m->raw.p[0] == 't'));
		break;
	case JSON_T_INT:
		FUZZ_CHECK(json_is_integer(v) && json_int(m->raw, &i) == 0 &&
			   i == json_integer_value(v));
		break;
	case JSON_T_REAL: {
		double a = json_num(m->raw), b = json_real_value(v);

		FUZZ_CHECK(json_is_real(v) && memcmp(&a, &b, sizeof a) == 0);
		break;
	}
	case JSON_T_STR:
		FUZZ_CHECK(json_is_string(v));
		same_text(m->raw, json_string_value(v), json_string_length(v));
		break;
	case JSON_T_OBJ:
	case JSON_T_ARR:
		same_container(m->raw, v);
		break;
	}
}

static void same_container(struct span raw, const json_t *v)
{
	struct json_iter it;
	struct json_member m, found;
	size_t n = 0;

	json_iter_init(&it, raw);
	for (; json_iter_next(&it, &m); n++) {
		if (it.object) {
			struct buf key;

			buf_init(&key, m.key.n + 1);
			FUZZ_CHECK(json_unescape(m.key, &key) == 0 &&
				   buf_append_char(&key, '\0') == 0);
			FUZZ_CHECK(json_find(raw, key.data, &found) && found.raw.p == m.raw.p);
			same_value(&m, json_object_get(v, key.data));
			buf_fini(&key);
		} else {
			same_value(&m, json_array_get(v, n));
		}
	}
	FUZZ_CHECK(it.object ? json_is_object(v) && json_object_size(v) == n
			     : json_is_array(v) && json_array_size(v) == n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const char *json = (const char *)data;
	struct json_fault fault = {0};
	int r = json_validate(json, n, 16, &fault);
	json_t *oracle = oracle_load(json, n, 16);

	FUZZ_CHECK((r == 0) == (oracle != NULL));
	if (r < 0)
		FUZZ_CHECK(fault.what && fault.offset <= n);
	else if (json_is_object(oracle) || json_is_array(oracle))
		same_container((struct span){json, n}, oracle);
	json_decref(oracle);
	return 0;
}
