/*
 * The outcome of one run, and the records of the journal. A record is text one can read with less:
 *
 *   VIWJ1 <kind> <sha256 of payload, hex> <payload bytes>\n<payload>\n
 *
 * kinds: intent, start, done, void. A file's records end at its end or at the first NUL (reserved
 * space). A record whose hash does not match is corrupt: the whole file is refused.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "wire/json_scan.h"

struct outcome {
	bool started; /* the program or built-in verb was started */
	bool data;    /* out is a JSON object (built-in verbs), not text */
	bool has_rc;
	int rc;
	char code[32]; /* error code of the contract; empty: none */
	char msg[256];
	int64_t started_ms, finished_ms, duration_ms;
	bool out_cut, err_cut;
	struct buf out, err; /* masked, valid UTF-8 without NUL */
};

void outcome_init(struct outcome *o, size_t max_output_bytes);
void outcome_fini(struct outcome *o);
/* Not started, or ended by us. */
void outcome_fail(struct outcome *o, const char *code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* The payload of a done record. */
int outcome_encode(const struct outcome *o, struct buf *out) MUST_CHECK;
/* -EBADMSG. ret must be initialised with a cap that holds the output. */
int outcome_decode(struct span payload, struct outcome *ret) MUST_CHECK;

struct record {
	struct span kind, payload;
};
int record_append(struct buf *out, const char *kind, const void *payload, size_t n) MUST_CHECK;
/* Takes the record at the front of *rest. 1: ret is filled; 0: no more; -EBADMSG: corrupt. */
int record_next(struct span *rest, struct record *ret) MUST_CHECK;
