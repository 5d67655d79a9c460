/*
 * See nonces.h. Entries live in one array and are named by their number + 1 (0: none). Each hangs
 * in two lists: a chain of the hash table, and the slot of a wheel that says when it ends. Hashes
 * are keyed, so peers cannot aim at one chain.
 *
 * The wheel is a hierarchical timing wheel (Varghese and Lauck 1987): level L has 64 slots of 64^L
 * ms. An entry is on the level of the highest digit, base 64, in which its end differs from
 * reached_ms; when that slot is reached it moves down, at most LEVELS times (a window of ten
 * minutes: four). So an entry costs the same however many there are, and the ones that have ended
 * are found at once. What is due is taken a few entries an add: only a full store must find one
 * before it refuses.
 */
#include "crypto/nonces.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/ident.h"
#include "crypto/crypto.h"

#define FIRST_ENTRIES 64
#define ENTRIES_MAX   ((size_t)1 << 31)
#define DIGIT_BITS    6
#define DIGITS	      ((size_t)1 << DIGIT_BITS)
#define LEVELS	      11 /* of 64 bits */
#define MOVES_PER_ADD 16 /* more than an entry needs in its life: what is due does not pile up */

struct entry {
	uint8_t hash[16];
	int64_t until_ms; /* 0: freed */
	uint32_t chain;	  /* next in the hash table's chain, or of the freed ones */
	uint32_t wheel;	  /* next in the wheel's slot */
};

struct nonces {
	size_t capacity, count;
	struct entry *entry;
	size_t room, used; /* entries there is memory for; the first `used` were used before */
	uint32_t freed;
	uint32_t *chain; /* heads */
	size_t chains;	 /* power of two, at least room; or 0 */
	uint32_t slot[LEVELS][DIGITS];
	uint64_t occupied[LEVELS]; /* a bit each slot */
	uint32_t due;		   /* of the slot that was reached, not yet moved down */
	int64_t reached_ms;	   /* no slot before this holds anything */
	uint64_t moves;
	uint8_t key[32];
};

/* ---- memory: tens of MiB, straight from the kernel, so that it leaves no hole in the heap ---- */

static void *pages_resize(void *old, size_t old_bytes, size_t bytes)
{
	void *p =
	    old ? mremap(old, old_bytes, bytes, MREMAP_MAYMOVE)
		: mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	/* Children have no use for it, and each fork would copy its page tables. */
	(void)madvise(p, bytes, MADV_DONTFORK);
	return p;
}

static void pages_free(void *p, size_t bytes)
{
	if (p)
		(void)munmap(p, bytes);
}

int nonces_new(size_t capacity, struct nonces **ret)
{
	struct nonces *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->capacity = capacity < ENTRIES_MAX ? capacity : ENTRIES_MAX;
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
	pages_free(s->entry, s->room * sizeof *s->entry);
	pages_free(s->chain, s->chains * sizeof *s->chain);
	free(s);
}

size_t nonces_count(const struct nonces *s)
{
	return s->count;
}

uint64_t nonces_moves(const struct nonces *s)
{
	return s->moves;
}

/* ---- hash table ---- */

static uint32_t *chain_of(const struct nonces *s, const uint8_t *hash)
{
	uint64_t h;
	memcpy(&h, hash, sizeof h);
	return &s->chain[h & (s->chains - 1)];
}

static struct entry *find(const struct nonces *s, const uint8_t *hash)
{
	if (!s->chains)
		return NULL;
	for (uint32_t at = *chain_of(s, hash); at; at = s->entry[at - 1].chain)
		if (memcmp(s->entry[at - 1].hash, hash, sizeof s->entry->hash) == 0)
			return &s->entry[at - 1];
	return NULL;
}

static void chain_add(struct nonces *s, uint32_t at)
{
	uint32_t *head = chain_of(s, s->entry[at - 1].hash);
	s->entry[at - 1].chain = *head;
	*head = at;
}

/* Twice as many entries; every one is in use. */
static int grow(struct nonces *s)
{
	size_t room = s->room ? s->room * 2 : FIRST_ENTRIES, chains = room;
	if (room > s->capacity)
		room = s->capacity;
	uint32_t *chain = pages_resize(NULL, 0, chains * sizeof *chain);
	struct entry *entry =
	    chain ? pages_resize(s->entry, s->room * sizeof *entry, room * sizeof *entry) : NULL;
	if (!entry) {
		pages_free(chain, chains * sizeof *chain);
		return -ENOMEM;
	}
	pages_free(s->chain, s->chains * sizeof *s->chain);
	s->entry = entry;
	s->room = room;
	s->chain = chain;
	s->chains = chains;
	for (size_t i = 0; i < s->used; i++)
		chain_add(s, (uint32_t)i + 1);
	return 0;
}

static void forget(struct nonces *s, uint32_t at)
{
	struct entry *e = &s->entry[at - 1];
	uint32_t *link = chain_of(s, e->hash);
	while (*link != at)
		link = &s->entry[*link - 1].chain;
	*link = e->chain;
	e->until_ms = 0;
	e->chain = s->freed;
	s->freed = at;
	s->count--;
}

/* ---- wheel ---- */

static unsigned digit(int64_t ms, unsigned level)
{
	return (unsigned)((uint64_t)ms >> (level * DIGIT_BITS)) & (DIGITS - 1);
}

static void wheel_add(struct nonces *s, uint32_t at)
{
	/* The clock went back: not before the wheel's own time. */
	int64_t end =
	    s->entry[at - 1].until_ms > s->reached_ms ? s->entry[at - 1].until_ms : s->reached_ms;
	uint64_t differ = (uint64_t)end ^ (uint64_t)s->reached_ms;
	unsigned level = differ ? (63 - (unsigned)__builtin_clzll(differ)) / DIGIT_BITS : 0;
	unsigned n = digit(end, level);
	s->entry[at - 1].wheel = s->slot[level][n];
	s->slot[level][n] = at;
	s->occupied[level] |= (uint64_t)1 << n;
}

/* When a slot that holds something begins. */
static int64_t begins_ms(const struct nonces *s, unsigned level, unsigned n)
{
	uint64_t span = level + 1 < LEVELS ? (uint64_t)1 << ((level + 1) * DIGIT_BITS) : 0;
	uint64_t above = span ? (uint64_t)s->reached_ms / span * span : 0;
	return (int64_t)(above + ((uint64_t)n << (level * DIGIT_BITS)));
}

/* Takes the next slot if it begins no later than now. Any slot of a level is before all of the
 * level above: those share that level's digit with reached_ms. */
static bool wheel_turn(struct nonces *s, int64_t now_ms)
{
	unsigned level = 0, n;
	while (level < LEVELS && !s->occupied[level])
		level++;
	n = level < LEVELS ? (unsigned)__builtin_ctzll(s->occupied[level]) : 0;
	if (level == LEVELS || begins_ms(s, level, n) > now_ms) {
		if (now_ms > s->reached_ms)
			s->reached_ms = now_ms;
		return false;
	}
	s->reached_ms = begins_ms(s, level, n);
	s->due = s->slot[level][n];
	s->slot[level][n] = 0;
	s->occupied[level] &= ~((uint64_t)1 << n);
	return true;
}

/* Moves one entry down, or forgets it. false: nothing more is due. */
static bool move_one(struct nonces *s, int64_t now_ms)
{
	if (!s->due && !wheel_turn(s, now_ms))
		return false;
	uint32_t at = s->due;
	s->due = s->entry[at - 1].wheel;
	s->moves++;
	if (s->entry[at - 1].until_ms <= now_ms)
		forget(s, at);
	else
		wheel_add(s, at);
	return true;
}

/* The clock went back, and what the wheel took for the past is to come: all of it anew. */
static void wheel_rewind(struct nonces *s, int64_t now_ms)
{
	memset(s->slot, 0, sizeof s->slot);
	memset(s->occupied, 0, sizeof s->occupied);
	s->due = 0;
	s->reached_ms = now_ms;
	for (size_t i = 0; i < s->used; i++) {
		if (s->entry[i].until_ms > now_ms)
			wheel_add(s, (uint32_t)i + 1);
		else if (s->entry[i].until_ms)
			forget(s, (uint32_t)i + 1);
	}
}

/* ---- add ---- */

static int make_room(struct nonces *s, int64_t now_ms)
{
	for (int i = 0; i < MOVES_PER_ADD && move_one(s, now_ms); i++)
		;
	while (s->count >= s->capacity && move_one(s, now_ms))
		;
	if (s->count >= s->capacity && now_ms < s->reached_ms)
		wheel_rewind(s, now_ms);
	if (s->count >= s->capacity)
		return -ENOSPC;
	return s->freed || s->used < s->room ? 0 : grow(s);
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
	struct entry *seen = find(s, hash);
	if (seen && seen->until_ms > now_ms)
		return -EEXIST;
	if (seen) { /* its time is over: used anew, and moved when its old slot is reached */
		seen->until_ms = until_ms;
		return 0;
	}
	int r = make_room(s, now_ms);
	if (r < 0)
		return r;
	uint32_t at = s->freed ? s->freed : (uint32_t)++s->used;
	struct entry *e = &s->entry[at - 1];
	if (s->freed)
		s->freed = e->chain;
	memcpy(e->hash, hash, sizeof e->hash);
	e->until_ms = until_ms;
	chain_add(s, at);
	wheel_add(s, at);
	s->count++;
	return 0;
}

bool nonces_has(const struct nonces *s, const char *owner, const char *nonce, size_t nonce_n,
		int64_t now_ms)
{
	uint8_t hash[SHA256_BYTES];

	hash_pair(s, owner, nonce, nonce_n, hash);
	const struct entry *seen = find(s, hash);
	return seen && seen->until_ms > now_ms;
}
