/* Remembers (owner, nonce) pairs until a time; refuses when full, never forgets early.
 * Entries hold a 16-byte keyed hash, not the text. Not thread-safe. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct nonces;

/* capacity: entries, each about 32 bytes; memory grows as needed up to it. */
int nonces_new(size_t capacity, struct nonces **ret) MUST_CHECK;
void nonces_free(struct nonces *s);
/* 0 and remembered until wall time until_ms; -EEXIST seen before; -ENOSPC full. */
int nonces_add(struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
	       int64_t until_ms, int64_t now_ms) MUST_CHECK;
size_t nonces_count(const struct nonces *s);
