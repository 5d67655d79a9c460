/* Time. Wall times are Unix milliseconds UTC; durations are counted on CLOCK_BOOTTIME. */
#pragma once

#include <stdint.h>

#include "base/macros.h"

#define CLOCK_RFC3339_LEN 24 /* "2026-11-20T11:09:00.123Z" */

int64_t clock_wall_ms(void);
/* Goes on while the machine sleeps; never jumps. */
int64_t clock_boot_ms(void);
uint64_t clock_boot_us(void);

/* out holds CLOCK_RFC3339_LEN + 1 bytes. Years 0001 to 9999. */
void clock_format_rfc3339(int64_t wall_ms, char *out);
/* Strict RFC 3339: 'T' or 't', seconds with 0-9 decimals, 'Z' or a numeric offset. -EINVAL.
 * A leap second (60) counts as the next second's start. */
int clock_parse_rfc3339(const char *s, size_t n, int64_t *ret_wall_ms) MUST_CHECK;

/* Tests only: moves what both clocks report by these amounts. */
void clock_test_shift(int64_t wall_shift_ms, int64_t boot_shift_ms);
