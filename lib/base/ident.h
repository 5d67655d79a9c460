/* Identifiers of the contract: agent_id, correlation_id, UUIDs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_ID_MAX	   64  /* ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ */
#define CORRELATION_ID_MAX 128 /* ^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$ */
#define UUID_LEN	   36

bool ident_is_agent_id(const char *s, size_t n);
bool ident_is_correlation_id(const char *s, size_t n);
/* Lower- or upper-case hex with version 4 and variant bits. */
bool ident_is_uuid4(const char *s, size_t n);
/* out holds UUID_LEN + 1 bytes. From getrandom(2); aborts when the kernel has no randomness. */
void ident_uuid4(char *out);
uint64_t ident_random_u64(void);
/* Uniform in [0, bound); bound > 0. */
uint64_t ident_random_below(uint64_t bound);
