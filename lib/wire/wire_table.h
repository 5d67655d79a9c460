/* Private to lib/wire: the table of frames.def as data. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "wire/wire.h"

enum wire_need { WIRE_NEED_OPTIONAL, WIRE_NEED_REQUIRED, WIRE_NEED_AGENT_MUST };

enum wire_kind {
	WIRE_KIND_AGENT_ID,
	WIRE_KIND_CORRELATION_ID,
	WIRE_KIND_UUID,
	WIRE_KIND_STR,
	WIRE_KIND_WORD,
	WIRE_KIND_TIME,
	WIRE_KIND_INT,
	WIRE_KIND_UINT,
	WIRE_KIND_BOOL,
	WIRE_KIND_OBJ,
	WIRE_KIND_STRS,
	WIRE_KIND_STRMAP,
	WIRE_KIND_STATUS,
	WIRE_KIND_TRUNCATED,
	WIRE_KIND_FAULT,
	WIRE_KINDS
};

struct wire_field {
	const char *name;
	enum wire_kind kind;
	enum wire_need need;
	uint32_t max;
	size_t offset; /* in the frame's own struct */
	const char *doc;
};

struct wire_frame_spec {
	const char *word, *tag; /* "HELLO", "hello" */
	enum wire_direction direction;
	const char *doc;
	const struct wire_field *field;
	size_t fields;
	size_t size; /* of the frame's own struct */
};

#define WIRE_FAULT_CODE_MAX 64
#define WIRE_FIELDS_MAX	    16
#define WIRE_NAMES_MAX	    64
#define WIRE_NAME_TYPE	    0

struct wire_table {
	struct wire_frame_spec frame[WIRE_TYPES];
	/* Every member name of the table once, with "type" as number 0. */
	const char *name[WIRE_NAMES_MAX];
	size_t name_n[WIRE_NAMES_MAX];
	unsigned names;
	/* The number of each frame's fields, in the table's order. */
	uint8_t name_of[WIRE_TYPES][WIRE_FIELDS_MAX];
	/* By the low bits of json_key_hash: the number plus 1; open addressing, 0 ends a run. */
	uint8_t by_hash[256];
};
/* Built at the first call. */
const struct wire_table *wire_table_get(void);

/* Helper messages have no `type`. */
bool wire_has_type_member(const struct wire_frame_spec *f);
bool wire_may_send(const struct wire_frame_spec *f, enum wire_direction from);
bool wire_field_required(const struct wire_field *f, enum wire_direction from);
