/* See verbset.h. */
#include "verbset.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "crypto/crypto.h"

struct verbset {
	struct verbs *builtin;
	struct verb **learned; /* NULL: the helper has not told yet */
	size_t n;
	uint8_t digest[SHA256_BYTES]; /* of what it told: mostly the same again */
};

int verbset_new(struct verbset **ret)
{
	struct verbs_faults faults = {0};
	struct verbset *v = calloc(1, sizeof *v);
	int r;

	if (!v)
		return -ENOMEM;
	r = verbs_load(NULL, VERBS_TRUST_ANY, false, &v->builtin, &faults);
	verbs_faults_fini(&faults);
	if (r < 0) {
		free(v);
		return r;
	}
	*ret = v;
	return 0;
}

static void free_learned(struct verb **learned, size_t n)
{
	size_t i;

	for (i = 0; learned && i < n; i++)
		verb_free(learned[i]);
	free(learned);
}

void verbset_free(struct verbset *v)
{
	if (!v)
		return;
	free_learned(v->learned, v->n);
	verbs_free(v->builtin);
	free(v);
}

/* Every parameter that travels in argv needs a place there; which one does not matter here. */
static void put_argv(struct jsonw *w, struct span params)
{
	struct json_member m, via;
	struct json_iter it;
	char item[160];

	jsonw_arr(w, "argv");
	json_iter_init(&it, params);
	while (json_iter_next(&it, &m)) {
		if (m.type != JSON_T_OBJ ||
		    (json_find(m.raw, "via", &via) && !span_eq(via.raw, "argv")))
			continue;
		(void)snprintf(item, sizeof item, "{" SPAN_FMT "}", SPAN_ARG(m.key));
		jsonw_str(w, NULL, item);
	}
	jsonw_arr_end(w);
}

/* hello tells no more than is to be checked: the rest of a manifest is filled in. */
static struct verb *parse_one(struct span item)
{
	struct json_member name, effects, params;
	struct verbs_faults faults = {0};
	struct verb *verb = NULL;
	struct jsonw w;
	struct buf b;

	if (!json_find(item, "name", &name) || name.type != JSON_T_STR)
		return NULL;
	buf_init(&b, VERB_MANIFEST_MAX_BYTES);
	jsonw_init(&w, &b);
	jsonw_obj(&w, NULL);
	jsonw_strn(&w, "verb", name.raw.p, name.raw.n);
	jsonw_str(&w, "exec", "/");
	jsonw_bool(&w, "effects",
		   !json_find(item, "effects", &effects) || !span_eq(effects.raw, "false"));
	if (json_find(item, "params", &params) && params.type == JSON_T_OBJ) {
		jsonw_raw(&w, "params", params.raw.p, params.raw.n);
		put_argv(&w, params.raw);
	}
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) < 0 || verb_parse(b.data, b.len, "hello", &verb, &faults) < 0)
		LOG_WARN(FIELDS(.event = "verb_unreadable",
				.error = faults.n ? faults.item[0].text : "out of memory"),
			 "the helper's verb " SPAN_FMT " cannot be read", SPAN_ARG(name.raw));
	verbs_faults_fini(&faults);
	buf_fini(&b);
	return verb;
}

int verbset_learn(struct verbset *v, struct span verbs)
{
	struct json_iter it;
	struct json_member m;
	uint8_t digest[SHA256_BYTES];
	struct verb **learned;
	size_t n = 0, items = 0;

	crypto_sha256(verbs.p, verbs.n, digest);
	if (v->learned && memcmp(digest, v->digest, sizeof digest) == 0)
		return 0;
	/* as many as a reply of the helper holds */
	for (json_iter_init(&it, verbs); json_iter_next(&it, &m); items++)
		;
	learned = calloc(items + 1, sizeof(*learned));
	if (!learned)
		return -ENOMEM;
	json_iter_init(&it, verbs);
	while (n < items && json_iter_next(&it, &m)) {
		if (m.type == JSON_T_OBJ && (learned[n] = parse_one(m.raw)))
			n++;
	}
	free_learned(v->learned, v->n);
	v->learned = learned;
	v->n = n;
	memcpy(v->digest, digest, sizeof digest);
	return 0;
}

bool verbset_known(const struct verbset *v)
{
	return v->learned != NULL;
}

const struct verb *verbset_find(const struct verbset *v, const char *name)
{
	const struct verb *b = verbs_find(v->builtin, name);
	size_t i;

	if ((b && b->local) || !v->learned)
		return b;
	for (i = 0; i < v->n; i++) {
		if (strcmp(v->learned[i]->name, name) == 0)
			return v->learned[i];
	}
	return NULL;
}

void verbset_each(const struct verbset *v, void (*fn)(void *arg, const struct verb *verb),
		  void *arg)
{
	size_t i;

	for (i = 0; i < verbs_count(v->builtin); i++) {
		const struct verb *b = verbs_at(v->builtin, i);

		if (b->local || !v->learned)
			fn(arg, b);
	}
	for (i = 0; v->learned && i < v->n; i++)
		fn(arg, v->learned[i]);
}
