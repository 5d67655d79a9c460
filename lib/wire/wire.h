/*
 * Frames and helper messages as C structs. Decoded values are spans into the input or into the
 * decoder's scratch arena: valid until the next wire_decode on the same decoder or until the input
 * goes away, already unescaped (OBJ, STRS and STRMAP stay raw JSON; walk them with json_iter).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ident.h"
#include "wire/json_scan.h"

#define WIRE_MAX_DEPTH		     16
#define WIRE_MAX_FRAME_BYTES_DEFAULT 262144
#define WIRE_MAX_FRAME_BYTES_MOST    (16 << 20) /* a bridge can be set up to take as much */

enum wire_direction {
	WIRE_FROM_AGENT,
	WIRE_FROM_BRIDGE,
	WIRE_BOTH,
	WIRE_TO_HELPER,
	WIRE_FROM_HELPER
};

enum wire_status {
	WIRE_STATUS_SUCCESS,
	WIRE_STATUS_ERROR,
	WIRE_STATUS_EXPIRED,
	WIRE_STATUS_CANCELLED,
	WIRE_STATUS_UNKNOWN
};
const char *wire_status_word(enum wire_status s);

struct wire_time {
	int64_t ms;
	bool set;
};
struct wire_int {
	int64_t v;
	bool set;
};
struct wire_uint {
	uint64_t v;
	bool set;
};
struct wire_bool {
	bool v, set;
};
struct wire_truncated {
	bool set, out, err;
};
struct wire_fault {
	bool set;
	struct span code, msg;
};

#define WIRE_CTYPE_AGENT_ID	  struct span
#define WIRE_CTYPE_CORRELATION_ID struct span
#define WIRE_CTYPE_UUID		  struct span
#define WIRE_CTYPE_STR		  struct span
#define WIRE_CTYPE_WORD		  struct span
#define WIRE_CTYPE_TIME		  struct wire_time
#define WIRE_CTYPE_INT		  struct wire_int
#define WIRE_CTYPE_UINT		  struct wire_uint
#define WIRE_CTYPE_BOOL		  struct wire_bool
#define WIRE_CTYPE_OBJ		  struct span
#define WIRE_CTYPE_STRS		  struct span
#define WIRE_CTYPE_STRMAP	  struct span
#define WIRE_CTYPE_STATUS	  enum wire_status
#define WIRE_CTYPE_TRUNCATED	  struct wire_truncated
#define WIRE_CTYPE_FAULT	  struct wire_fault

#define FRAME(TAG, tag, dir, doc)	 struct wire_##tag {
#define FIELD(kind, name, req, max, doc) WIRE_CTYPE_##kind name;
#define FRAME_END(TAG, tag) \
	}                   \
	;
#include "wire/frames.def"
#undef FRAME
#undef FIELD
#undef FRAME_END

enum wire_type {
#define FRAME(TAG, tag, dir, doc) WIRE_##TAG,
#define FIELD(kind, name, req, max, doc)
#define FRAME_END(TAG, tag)
#include "wire/frames.def"
#undef FRAME
#undef FIELD
#undef FRAME_END
	WIRE_TYPES
};
const char *wire_type_word(enum wire_type t);

struct wire_frame {
	enum wire_type type;
	union {
#define FRAME(TAG, tag, dir, doc) struct wire_##tag tag;
#define FIELD(kind, name, req, max, doc)
#define FRAME_END(TAG, tag)
#include "wire/frames.def"
#undef FRAME
#undef FIELD
#undef FRAME_END
	};
};

/* What a peer did wrong. Mapped to ERROR codes and closes in one place by each program. */
enum wire_refusal {
	WIRE_OK,
	WIRE_BAD_JSON,	    /* "bad_json": not JSON, or over a limit of it */
	WIRE_BAD_TYPE,	    /* "unknown_type" */
	WIRE_WRONG_WAY,	    /* "wrong_direction" */
	WIRE_MISSING_FIELD, /* "missing_field" */
	WIRE_BAD_FIELD,	    /* "bad_field": wrong type, range, length, pattern */
};
const char *wire_refusal_code(enum wire_refusal r);

struct wire_refusal_info {
	enum wire_refusal code;
	const char *field;	    /* static; NULL when it is not one field */
	char msg[160];		    /* for the peer: names field, fault and remedy */
	struct span correlation_id; /* when it could still be read, so that ERROR can carry it */
	enum wire_type type;	    /* WIRE_TYPES when unknown */
	bool no_memory;		    /* nothing is said of the frame: it may be well-formed */
};

struct wire_decoder;
/* max_frame_bytes sizes the scratch arena's cap; the arena grows on need and shrinks again. */
int wire_decoder_new(size_t max_frame_bytes, struct wire_decoder **ret) MUST_CHECK;
void wire_decoder_free(struct wire_decoder *d);

/* One text frame sent by `from` (WIRE_FROM_AGENT or WIRE_FROM_BRIDGE). Unknown members are
 * ignored. Returns WIRE_OK and fills ret, or the refusal with info. */
enum wire_refusal wire_decode(struct wire_decoder *d, enum wire_direction from, const char *json,
			      size_t n, struct wire_frame *ret,
			      struct wire_refusal_info *info) MUST_CHECK;
/* The same for messages without `type`: t is WIRE_HELPER_REQUEST or WIRE_HELPER_REPLY. */
enum wire_refusal wire_decode_as(struct wire_decoder *d, enum wire_type t, const char *json,
				 size_t n, struct wire_frame *ret,
				 struct wire_refusal_info *info) MUST_CHECK;

/* Appends the JSON; absent fields are left out. Times are written with milliseconds. asserts
 * that required fields are there. -ENOBUFS, -ENOMEM. */
int wire_encode(const struct wire_frame *f, struct buf *out) MUST_CHECK;

/* Documents from the table. */
int wire_markdown(struct buf *out) MUST_CHECK;
int wire_json_schema(struct buf *out) MUST_CHECK; /* one schema document, a definition a frame */
int wire_fuzz_dictionary(struct buf *out) MUST_CHECK;

/* Helper line framing (contract section 5): "<64 hex> <json>\n". */
#define WIRE_HELPER_REQUEST_MAX 65536
#define WIRE_HELPER_REPLY_MAX	1048576
