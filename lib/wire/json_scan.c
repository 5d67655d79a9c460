/*
 * The scanner: one loop over the document, no recursion. It stands either before a value or
 * behind one; a level per open container says which kind it is and which names it had.
 *
 * Duplicate names: an object compares a new name with its earlier ones by hash, as long as they
 * are few; from then on names go into one table for the whole document, keyed by the object's
 * number. So n names cost O(n) whoever chose them.
 */
#include <errno.h>
#include <stdlib.h>

#include "wire/json_core.h"

#define LEVELS_MAX  JSON_MAX_DEPTH
#define KEYS_MAX    256 /* names kept for comparing, all open objects together */
#define FEW_KEYS    24	/* names of one object that are compared one by one */
#define SLOTS_FIRST 128

struct slot {
	struct json_key key;
	uint32_t object; /* 0: free */
};

struct level {
	uint64_t
	    seen; /* a bit for the low bits of every hash: most new names are known new at once */
	uint32_t object; /* its number from 1; 0: an array */
	uint32_t first_key, keys;
	bool in_table;
};

struct scanner {
	const char *p, *end, *start;
	const char *what; /* the fault, once there is one */
	const struct json_sink *sink;
	const char *member_start; /* of the outermost object */
	struct json_key member_key;
	enum json_type type; /* of the value just scanned */
	bool escaped;
	bool no_memory;
	unsigned depth, max_depth;
	uint32_t objects, keys;
	struct slot *slot; /* points at first_slots or to the heap */
	uint32_t slots, slots_used;
	struct level level[LEVELS_MAX];
	struct json_key key[KEYS_MAX];
	struct slot first_slots[SLOTS_FIRST];
};

static bool fail(struct scanner *s, const char *what)
{
	s->what = what;
	return false;
}

/* ---- names ---- */

static uint32_t slot_index(const struct scanner *s, uint32_t hash, uint32_t object)
{
	return (hash ^ object * 0x9E3779B1u) & (s->slots - 1);
}

/* False when the name is there already. There is room. */
static bool table_insert(struct scanner *s, const struct json_key *key, uint32_t object)
{
	uint32_t i = slot_index(s, key->hash, object);

	for (; s->slot[i].object; i = (i + 1) & (s->slots - 1)) {
		if (s->slot[i].object == object && json_key_eq(&s->slot[i].key, key))
			return false;
	}
	s->slot[i] = (struct slot){.key = *key, .object = object};
	s->slots_used++;
	return true;
}

static bool table_grow(struct scanner *s)
{
	struct slot *old = s->slot;
	uint32_t old_slots = s->slots;

	if (!old) {
		memset(s->first_slots, 0, sizeof s->first_slots);
		s->slot = s->first_slots;
		s->slots = SLOTS_FIRST;
		return true;
	}
	s->slot = calloc((size_t)old_slots * 4, sizeof *s->slot);
	if (!s->slot) {
		s->slot = old;
		s->no_memory = true;
		return false;
	}
	s->slots = old_slots * 4;
	s->slots_used = 0;
	for (uint32_t i = 0; i < old_slots; i++) {
		if (old[i].object)
			(void)table_insert(s, &old[i].key, old[i].object);
	}
	if (old != s->first_slots)
		free(old);
	return true;
}

static bool table_add(struct scanner *s, const struct json_key *key, uint32_t object)
{
	if (s->slots_used * 2 >= s->slots && !table_grow(s))
		return fail(s, "no memory");
	return table_insert(s, key, object) || fail(s, "a name that was there before");
}

static bool move_to_table(struct scanner *s, struct level *l)
{
	for (uint32_t i = 0; i < l->keys; i++) {
		if (!table_add(s, &s->key[l->first_key + i], l->object))
			return false;
	}
	s->keys = l->first_key;
	l->in_table = true;
	return true;
}

static bool name_is_new(struct scanner *s, const struct json_key *key)
{
	struct level *l = &s->level[s->depth - 1];
	uint64_t bit = UINT64_C(1) << (key->hash & 63);

	if (!l->in_table && (l->keys == FEW_KEYS || s->keys == KEYS_MAX) && !move_to_table(s, l))
		return false;
	if (l->in_table)
		return table_add(s, key, l->object);
	if (l->seen & bit) {
		for (uint32_t i = 0; i < l->keys; i++) {
			if (json_key_eq(&s->key[l->first_key + i], key))
				return fail(s, "a name that was there before");
		}
	}
	l->seen |= bit;
	l->keys++;
	s->key[s->keys++] = *key;
	return true;
}

/* ---- values ---- */

static bool string(struct scanner *s)
{
	const char *at, *p = json_scan_string(s->p, s->end, &s->escaped, &at, &s->what);

	if (!p) {
		s->p = at;
		return false;
	}
	s->p = p;
	return true;
}

static bool literal(struct scanner *s, const char *word, size_t n, enum json_type type)
{
	if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
		return fail(s, "an unknown word; true, false and null are");
	s->p += n;
	s->type = type;
	return true;
}

static bool number(struct scanner *s)
{
	const char *p = json_scan_number(s->p, s->end, &s->type, &s->what);

	if (!p)
		return false;
	s->p = p;
	return true;
}

/* From the quote of a member's name to its value. */
static bool member_name(struct scanner *s)
{
	struct json_key key;

	if (s->p == s->end || *s->p != '"')
		return fail(s, "a member needs a name in quotes");
	key.p = ++s->p;
	if (!string(s))
		return false;
	key.n = (uint32_t)(s->p - 1 - key.p);
	key.escaped = s->escaped;
	key.hash = json_key_hash(key.p, key.n, key.escaped);
	if (!name_is_new(s, &key)) {
		s->p = key.p;
		return false;
	}
	s->p = json_skip_space(s->p, s->end);
	if (s->p == s->end || *s->p != ':')
		return fail(s, "a colon is missing after a name");
	s->p = json_skip_space(s->p + 1, s->end);
	if (s->depth == 1 && s->sink) {
		s->member_key = key;
		s->member_start = s->p;
	}
	return true;
}

static void close_container(struct scanner *s)
{
	const struct level *l = &s->level[--s->depth];

	if (!l->in_table)
		s->keys = l->first_key;
	s->type = l->object ? JSON_T_OBJ : JSON_T_ARR;
	s->p++;
}

/* *ret_inside: it is not empty, and the scanner stands before its first value. */
static bool open_container(struct scanner *s, bool object, bool *ret_inside)
{
	struct level *l = &s->level[s->depth];

	if (s->depth == s->max_depth)
		return fail(s, "nested too deep");
	s->depth++;
	*l = (struct level){.object = object ? ++s->objects : 0, .first_key = s->keys};
	s->p = json_skip_space(s->p + 1, s->end);
	if (s->p < s->end && *s->p == (object ? '}' : ']')) {
		close_container(s);
		return true;
	}
	*ret_inside = true;
	return !object || member_name(s);
}

static bool value(struct scanner *s, bool *ret_inside)
{
	*ret_inside = false;
	if (s->p == s->end)
		return fail(s, "it ends too early");
	switch (*s->p) {
	case '"':
		s->p++;
		s->type = JSON_T_STR;
		return string(s);
	case '{':
		return open_container(s, true, ret_inside);
	case '[':
		return open_container(s, false, ret_inside);
	case 't':
		return literal(s, "true", 4, JSON_T_BOOL);
	case 'f':
		return literal(s, "false", 5, JSON_T_BOOL);
	case 'n':
		return literal(s, "null", 4, JSON_T_NULL);
	default:
		return number(s);
	}
}

static void tell_member(struct scanner *s)
{
	struct json_member m = {
	    .key = {s->member_key.p, s->member_key.n},
	    .type = s->type,
	    .raw = {s->member_start, (size_t)(s->p - s->member_start)},
	};

	if (m.type == JSON_T_STR) {
		m.raw.p++;
		m.raw.n -= 2;
	}
	s->sink->on_member(s->sink->arg, &s->member_key, &m, m.type == JSON_T_STR && s->escaped);
}

/* Behind a value: goes on to the next one of the container, leaving containers that end here.
 * *ret_done: the document's value is over. */
static bool after_value(struct scanner *s, bool *ret_done)
{
	for (;;) {
		bool object;

		*ret_done = s->depth == 0;
		if (*ret_done)
			return true;
		object = s->level[s->depth - 1].object;
		if (s->depth == 1 && s->sink)
			tell_member(s);
		s->p = json_skip_space(s->p, s->end);
		if (s->p == s->end)
			return fail(s, "it ends too early");
		if (*s->p == ',') {
			s->p = json_skip_space(s->p + 1, s->end);
			return !object || member_name(s);
		}
		if (*s->p != (object ? '}' : ']'))
			return fail(s, "a comma or the closing bracket is missing");
		close_container(s);
	}
}

static bool document(struct scanner *s)
{
	bool inside, done = false;

	s->p = json_skip_space(s->p, s->end);
	if (s->sink && (s->p == s->end || *s->p != '{'))
		return fail(s, "it is not an object");
	while (!done) {
		if (!value(s, &inside))
			return false;
		if (!inside && !after_value(s, &done))
			return false;
	}
	s->p = json_skip_space(s->p, s->end);
	return s->p == s->end || fail(s, "something follows the value");
}

int json_scan(const char *json, size_t n, unsigned max_depth, const struct json_sink *sink,
	      struct json_fault *fault)
{
	struct scanner s; /* not zeroed: key, level and first_slots are large */
	bool good;

	if (n > UINT32_MAX) {
		if (fault)
			*fault = (struct json_fault){.what = "larger than 4 GiB"};
		return -EBADMSG;
	}
	s.p = s.start = json;
	s.end = json + n;
	s.what = NULL;
	s.sink = sink;
	s.escaped = s.no_memory = false;
	s.depth = 0;
	s.max_depth = max_depth < LEVELS_MAX ? max_depth : LEVELS_MAX;
	s.objects = s.keys = 0;
	s.slot = NULL;
	s.slots = s.slots_used = 0;
	good = document(&s);
	if (s.slot && s.slot != s.first_slots)
		free(s.slot);
	if (good)
		return 0;
	if (fault)
		*fault = (struct json_fault){.offset = (size_t)(s.p - s.start), .what = s.what};
	return s.no_memory ? -ENOMEM : -EBADMSG;
}

int json_validate(const char *json, size_t n, unsigned max_depth, struct json_fault *fault)
{
	return json_scan(json, n, max_depth, NULL, fault);
}
