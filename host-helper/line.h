/* The framing of the socket: "<hex HMAC-SHA256 of the JSON's bytes> <JSON>\n", both ways. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "wire/json_scan.h"
#include "wire/wire.h"

#define LINE_MAX_BYTES (WIRE_HELPER_REQUEST_MAX + 65) /* MAC, blank, JSON */

/* Gives every whole line in `in` to on_line, without its newline, until that says false (the
 * connection is at its end); then drops them from `in`. Wipes what it can: requests carry secrets.
 */
void line_take_all(struct buf *in, bool (*on_line)(void *arg, const char *line, size_t n),
		   void *arg);
/* True when the MAC is right, compared in constant time; *ret is then the JSON, not yet parsed. */
bool line_open(const struct buf *key, const char *line, size_t n, struct span *ret);
/* Appends one framed line. */
int line_append(const struct buf *key, const struct buf *json, struct buf *out) MUST_CHECK;
