/*
 * See nonces.h. Open addressing with linear probing; expired entries go when the table is rebuilt,
 * so there are no tombstones. A slot with until_ms 0 is free. Hashes are keyed, so peers cannot aim
 * at one chain.
 */
#include "crypto/nonces.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/ident.h"
#include "crypto/crypto.h"

#define FIRST_SLOTS 64

struct slot {
	uint8_t hash[16];
	int64_t until_ms;
};

struct nonces {
	size_t capacity, count, slots; /* slots: power of two, or 0 */
	struct slot *slot;
	int64_t earliest_ms; /* no entry ends before this */
	uint8_t key[32];
};

/* Tables are tens of MiB and come and go: straight from the kernel, so that a freed one leaves no
 * hole in the heap. */
static struct slot *table_new(size_t slots)
{
	void *p = mmap(NULL, slots * sizeof(struct slot), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	/* Children have no use for it, and each fork would copy its page tables. */
	(void)madvise(p, slots * sizeof(struct slot), MADV_DONTFORK);
	return p;
}

static void table_free(struct slot *slot, size_t slots)
{
	if (slot)
		(void)munmap(slot, slots * sizeof(struct slot));
}

int nonces_new(size_t capacity, struct nonces **ret)
{
	struct nonces *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->capacity = capacity;
	s->earliest_ms = INT64_MAX;
	for (size_t i = 0; i < sizeof s->key; i += 8) {
		uint64_t r = ident_random_u64();
		memcpy(s->key + i, &r, 8);
	}
	*ret = s;
	return 0;
}

void nonces_free(struct nonces *s)
{
	if (!s)
		return;
	crypto_wipe(s->key, sizeof s->key);
	table_free(s->slot, s->slots);
	free(s);
}

size_t nonces_count(const struct nonces *s)
{
	return s->count;
}

static size_t home_of(const struct nonces *s, const uint8_t *hash)
{
	uint64_t h;
	memcpy(&h, hash, sizeof h);
	return (size_t)h & (s->slots - 1);
}

/* The slot that holds hash, or the free one where it would go. */
static struct slot *find(const struct nonces *s, const uint8_t *hash)
{
	size_t i = home_of(s, hash);
	while (s->slot[i].until_ms && memcmp(s->slot[i].hash, hash, sizeof s->slot[i].hash) != 0)
		i = (i + 1) & (s->slots - 1);
	return &s->slot[i];
}

/* Puts every entry that lasts beyond now into a table of `slots`. */
static int rebuild(struct nonces *s, size_t slots, int64_t now_ms)
{
	struct slot *old = s->slot;
	size_t old_slots = s->slots;
	struct slot *fresh = table_new(slots);
	if (!fresh)
		return -ENOMEM;
	s->slot = fresh;
	s->slots = slots;
	s->count = 0;
	s->earliest_ms = INT64_MAX;
	for (size_t i = 0; i < old_slots; i++) {
		if (old[i].until_ms <= now_ms)
			continue;
		*find(s, old[i].hash) = old[i];
		s->count++;
		if (old[i].until_ms < s->earliest_ms)
			s->earliest_ms = old[i].until_ms;
	}
	table_free(old, old_slots);
	return 0;
}

/* Makes sure that one more entry fits: at most 3/4 of the slots are used. */
static int make_room(struct nonces *s, int64_t now_ms)
{
	bool full = s->count >= s->capacity;
	bool dense = s->slots == 0 || (s->count + 1) * 4 > s->slots * 3;
	if (!full && !dense)
		return 0;
	size_t slots = s->slots ? s->slots : FIRST_SLOTS;
	/* Expired entries go first. earliest_ms keeps a full store from being rebuilt per attempt.
	 */
	if (s->count && now_ms >= s->earliest_ms) {
		int r = rebuild(s, slots, now_ms);
		if (r < 0)
			return r;
	}
	if (s->count >= s->capacity)
		return -ENOSPC;
	while ((s->count + 1) * 2 > slots)
		slots *= 2;
	/* grown at 3/4, to at most half full: rebuilding is paid for by the adds between */
	if (s->slots == 0 || (s->count + 1) * 4 > s->slots * 3)
		return rebuild(s, slots, now_ms);
	return 0;
}

/* SHA-256 over key, owner with its NUL, nonce: the NUL keeps the two apart. The key only has to be
 * unknown to peers, who never see a hash, so HMAC's protection against extension is not needed. */
static void hash_pair(const struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
		      uint8_t out[SHA256_BYTES])
{
	uint8_t text[sizeof s->key + 256], short_nonce[SHA256_BYTES], short_owner[SHA256_BYTES];
	size_t owner_n = strlen(owner) + 1, n = sizeof s->key;
	if (nonce_n > 96) {
		crypto_sha256(nonce, nonce_n, short_nonce);
		nonce = (const char *)short_nonce;
		nonce_n = sizeof short_nonce;
	}
	if (owner_n > 128) {
		crypto_sha256(owner, owner_n, short_owner);
		owner = (const char *)short_owner;
		owner_n = sizeof short_owner;
	}
	memcpy(text, s->key, n);
	memcpy(text + n, owner, owner_n);
	memcpy(text + n + owner_n, nonce, nonce_n);
	crypto_sha256(text, n + owner_n + nonce_n, out);
}

int nonces_add(struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
	       int64_t until_ms, int64_t now_ms)
{
	uint8_t hash[SHA256_BYTES];
	if (until_ms < 1)
		until_ms = 1;
	hash_pair(s, owner, nonce, nonce_n, hash);
	if (s->slots) {
		struct slot *seen = find(s, hash);
		if (seen->until_ms > now_ms)
			return -EEXIST;
		if (seen->until_ms) { /* its time is over: used anew */
			seen->until_ms = until_ms;
			if (until_ms < s->earliest_ms)
				s->earliest_ms = until_ms;
			return 0;
		}
	}
	int r = make_room(s, now_ms);
	if (r < 0)
		return r;
	struct slot *free_slot = find(s, hash);
	memcpy(free_slot->hash, hash, sizeof free_slot->hash);
	free_slot->until_ms = until_ms;
	s->count++;
	if (until_ms < s->earliest_ms)
		s->earliest_ms = until_ms;
	return 0;
}
