/* Remembers (owner, nonce) pairs until a time; refuses when full, never forgets early. An add costs
 * the same on average, full or not. Entries hold a 16-byte keyed hash, not the text. Not
 * thread-safe. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/macros.h"

struct nonces;

/* capacity: entries, each at most 40 bytes; memory grows as needed up to it. */
int nonces_new(size_t capacity, struct nonces **ret) MUST_CHECK;
void nonces_free(struct nonces *s);
/* 0 and remembered until wall time until_ms; -EEXIST seen before; -ENOSPC full. */
int nonces_add(struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
	       int64_t until_ms, int64_t now_ms) MUST_CHECK;
/* Whether it is remembered now. */
bool nonces_has(const struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
		int64_t now_ms) MUST_CHECK;
/* With those that have ended since, until an add comes past them. */
size_t nonces_count(const struct nonces *s);
/* What it cost so far to find the entries that have ended: how often one was looked at. */
uint64_t nonces_moves(const struct nonces *s);
