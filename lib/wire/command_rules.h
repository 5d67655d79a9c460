/*
 * What the fields of an entry of viw.commands may hold (contract section 2), for the bridge, which
 * rejects what breaks it, and for results-writer, which keeps the row.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "wire/json_scan.h" /* struct span */

enum {
	COMMAND_TTL_DEFAULT_S = 60,
	COMMAND_TTL_MAX_S = 86400,
	COMMAND_AHEAD_MAX_MS = 86400000, /* expires_at beyond the entry's own time */
	COMMAND_ISSUER_MAX_BYTES = 128,
	COMMAND_SIGNATURE_MAX_BYTES = 4096,
	COMMAND_PARAMS_MAX_BYTES = 65536,
};

/* 1 to 128 printable ASCII characters but quote and backslash. */
bool command_is_verb(struct span s);
/* UTF-8 without control characters, at most max bytes. */
bool command_is_text(struct span s, size_t max);
/* A JSON object that fits a COMMAND frame and a jsonb. fault (may be NULL): what is wrong, and
 * where. */
bool command_is_params(struct span s, struct json_fault *fault);
