/* A request's arguments against a verb's parameters, and the digest over both. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/ident.h"
#include "crypto/crypto.h"
#include "verbs/verbs_private.h"

static void wipe_free(char *s)
{
	if (s)
		crypto_wipe(s, strlen(s));
	free(s);
}

void verb_args_fini(struct verb_args *a, const struct verb *v UNUSED)
{
	for (size_t i = 0; i < a->n; i++)
		wipe_free(a->value[i]);
	free(a->value);
	*a = (struct verb_args){0};
}

static int find_param(const struct verb *v, const struct buf *key)
{
	for (size_t i = 0; i < v->params; i++)
		if (strlen(v->param[i].name) == key->len &&
		    memcmp(v->param[i].name, key->data, key->len) == 0)
			return (int)i;
	return -1;
}

/* The value as text: strings unescaped, whole numbers and booleans as written. */
static int value_text(const struct verb_param *p, const struct json_member *m, struct buf *out)
{
	bool number = param_kinds[p->type].numeric;

	if (m->type == JSON_T_STR)
		return json_unescape(m->raw, out);
	if ((m->type == JSON_T_INT && number) || (m->type == JSON_T_BOOL && p->type == PARAM_BOOL))
		return buf_append(out, m->raw.p, m->raw.n);
	return -EINVAL;
}

static int take_value(const struct verb *v, size_t i, const struct json_member *m,
		      struct verb_args *a, char *msg, size_t msg_cap)
{
	const struct verb_param *p = &v->param[i];
	const char *why = "";
	struct buf text;

	if (a->value[i]) {
		snprintf(msg, msg_cap, "args.%s: is given twice; give it once", p->name);
		return -EINVAL;
	}
	buf_init(&text, 65536);
	int r = value_text(p, m, &text);
	if (r == -EINVAL)
		snprintf(msg, msg_cap, "args.%s: has the wrong JSON type; give %s", p->name,
			 param_kinds[p->type].want);
	if (r == 0) {
		r = param_check(p, text.data ? text.data : "", text.len, &a->value[i], &why);
		if (r == -EINVAL)
			snprintf(msg, msg_cap, "args.%s: is not valid; give %s", p->name, why);
	}
	buf_wipe(&text);
	buf_fini(&text);
	return r;
}

static int fill_absent(const struct verb *v, struct verb_args *a, char *msg, size_t msg_cap)
{
	for (size_t i = 0; i < v->params; i++) {
		const struct verb_param *p = &v->param[i];
		if (a->value[i] || (p->optional && !p->default_text))
			continue;
		if (!p->default_text) {
			snprintf(msg, msg_cap, "args.%s: is required; give %s", p->name,
				 param_kinds[p->type].want);
			return -EINVAL;
		}
		a->value[i] = strdup(p->default_text);
		if (!a->value[i])
			return -ENOMEM;
	}
	return 0;
}

static int take_members(const struct verb *v, struct span args, struct verb_args *a, char *msg,
			size_t msg_cap)
{
	struct json_iter it;
	struct json_member m;
	struct buf key;
	int r = 0;

	buf_init(&key, 65536);
	json_iter_init(&it, args);
	while (r == 0 && json_iter_next(&it, &m)) {
		buf_clear(&key);
		r = json_unescape(m.key, &key);
		if (r < 0)
			break;
		int i = key.len ? find_param(v, &key) : -1;
		if (i >= 0) {
			r = take_value(v, (size_t)i, &m, a, msg, msg_cap);
			continue;
		}
		bool shown = key.len > 0 && key.len <= 48 && ident_is_agent_id(key.data, key.len);
		snprintf(msg, msg_cap, "args.%s: is not a parameter of %s; leave it out",
			 shown ? key.data : "?", v->name);
		r = -EINVAL;
	}
	buf_fini(&key);
	return r;
}

int verb_args_check(const struct verb *v, struct span args, struct verb_args *ret, char *msg,
		    size_t msg_cap)
{
	struct verb_args a = {.n = v->params};

	if (msg_cap)
		msg[0] = 0;
	a.value = calloc(v->params + 1, sizeof *a.value);
	if (!a.value)
		return -ENOMEM;
	int r = args.p ? take_members(v, args, &a, msg, msg_cap) : 0;
	if (r == 0)
		r = fill_absent(v, &a, msg, msg_cap);
	if (r < 0) {
		verb_args_fini(&a, v);
		return r;
	}
	*ret = a;
	return 0;
}

struct pair {
	const char *name, *value;
};

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct pair *)a)->name, ((const struct pair *)b)->name);
}

/* Each text with its length before it, so that no two different sets give the same bytes. */
static int put(struct buf *out, const char *s)
{
	return buf_appendf(out, "%zu:%s,", strlen(s), s);
}

void verb_digest(const struct verb *v, const struct verb_args *a, char *out)
{
	struct pair pair[64];
	uint8_t hash[SHA256_BYTES];
	struct buf text;
	size_t n = 0;

	for (size_t i = 0; i < a->n && n < ARRAY_LEN(pair); i++)
		if (a->value[i])
			pair[n++] = (struct pair){v->param[i].name, a->value[i]};
	qsort(pair, n, sizeof pair[0], by_name);
	buf_init(&text, 1 << 20);
	int r = put(&text, v->name);
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = put(&text, pair[i].name);
		if (r == 0)
			r = put(&text, pair[i].value);
	}
	if (r < 0)
		abort(); /* out of memory: a wrong digest could let a second command run */
	crypto_sha256(text.data, text.len, hash);
	crypto_hex(hash, sizeof hash, out);
	buf_wipe(&text);
	buf_fini(&text);
}
