/* The table of frames.def as data, and the words of the protocol. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "wire/json_core.h"
#include "wire/wire_table.h"

static struct wire_table table;

static void fill_frames(void)
{
#define FRAME(TAG, tag_, dir, doc_)                                             \
	{                                                                       \
		typedef struct wire_##tag_ frame_struct;                        \
		struct wire_frame_spec *spec = &table.frame[WIRE_##TAG];        \
		*spec = (struct wire_frame_spec){.word = #TAG,                  \
						 .tag = #tag_,                  \
						 .direction = WIRE_##dir,       \
						 .doc = (doc_),                 \
						 .size = sizeof(frame_struct)}; \
		static const struct wire_field field[] = {
#define FIELD(kind_, name_, need_, max_, doc_)    \
	{.name = #name_,                          \
	 .kind = WIRE_KIND_##kind_,               \
	 .need = WIRE_NEED_##need_,               \
	 .max = (max_),                           \
	 .offset = offsetof(frame_struct, name_), \
	 .doc = (doc_)},
#define FRAME_END(TAG, tag_)                                                    \
	}                                                                       \
	;                                                                       \
	spec->field = field;                                                    \
	spec->fields = ARRAY_LEN(field);                                        \
	_Static_assert(ARRAY_LEN(field) <= WIRE_FIELDS_MAX, "WIRE_FIELDS_MAX"); \
	}
#include "wire/frames.def"
#undef FRAME
#undef FIELD
#undef FRAME_END
}

static uint8_t intern(const char *name)
{
	unsigned i = 0;
	uint32_t h;

	while (i < table.names && strcmp(table.name[i], name) != 0)
		i++;
	if (i < table.names)
		return (uint8_t)i;
	if (i == WIRE_NAMES_MAX)
		abort(); /* more names than the table holds: raise WIRE_NAMES_MAX */
	table.name[i] = name;
	table.name_n[i] = strlen(name);
	table.names++;
	h = json_key_hash(name, table.name_n[i], false) & 255;
	while (table.by_hash[h])
		h = (h + 1) & 255;
	table.by_hash[h] = (uint8_t)(i + 1);
	return (uint8_t)i;
}

static void fill(void)
{
	fill_frames();
	(void)intern("type");
	for (int t = 0; t < WIRE_TYPES; t++) {
		const struct wire_frame_spec *f = &table.frame[t];

		for (size_t i = 0; i < f->fields; i++)
			table.name_of[t][i] = intern(f->field[i].name);
	}
}

const struct wire_table *wire_table_get(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	(void)pthread_once(&once, fill);
	return &table;
}

bool wire_has_type_member(const struct wire_frame_spec *f)
{
	return f->direction != WIRE_TO_HELPER && f->direction != WIRE_FROM_HELPER;
}

bool wire_may_send(const struct wire_frame_spec *f, enum wire_direction from)
{
	return f->direction == from ||
	       (f->direction == WIRE_BOTH && from != WIRE_TO_HELPER && from != WIRE_FROM_HELPER);
}

bool wire_field_required(const struct wire_field *f, enum wire_direction from)
{
	return f->need == WIRE_NEED_REQUIRED ||
	       (f->need == WIRE_NEED_AGENT_MUST && from == WIRE_FROM_AGENT);
}

const char *wire_type_word(enum wire_type t)
{
	return (unsigned)t < WIRE_TYPES ? wire_table_get()->frame[t].word : "unknown";
}

const char *wire_status_word(enum wire_status s)
{
	static const char *const word[] = {
	    [WIRE_STATUS_SUCCESS] = "success", [WIRE_STATUS_ERROR] = "error",
	    [WIRE_STATUS_EXPIRED] = "expired", [WIRE_STATUS_CANCELLED] = "cancelled",
	    [WIRE_STATUS_UNKNOWN] = "unknown",
	};

	return (unsigned)s < ARRAY_LEN(word) ? word[s] : NULL;
}

const char *wire_refusal_code(enum wire_refusal r)
{
	static const char *const code[] = {
	    [WIRE_OK] = "ok",
	    [WIRE_BAD_JSON] = "bad_json",
	    [WIRE_BAD_TYPE] = "unknown_type",
	    [WIRE_WRONG_WAY] = "wrong_direction",
	    [WIRE_MISSING_FIELD] = "missing_field",
	    [WIRE_BAD_FIELD] = "bad_field",
	};

	return (unsigned)r < ARRAY_LEN(code) ? code[r] : "bad_field";
}
