/* See masking.h. Fails closed: what cannot be masked is withheld. */
#include "masking.h"

#include <string.h>

#include "base/log.h"

#define WITHHELD "***"

int masking_load(const char *dir, bool partial, struct verbs **ret)
{
	struct verbs_faults faults = {0};
	int r = verbs_load(dir, VERBS_TRUST_ANY, partial, ret, &faults);

	for (size_t i = 0; i < faults.n; i++)
		LOG_WARN(FIELDS(.event = "bad_manifest", .detail = faults.item[i].file,
				.error = faults.item[i].text),
			 "a verb manifest is not used; %s",
			 partial ? "its secrets are known by name only" : "the old ones stay");
	if (r < 0 && !faults.n)
		LOG_WARN(FIELDS(.event = "bad_manifest", .detail = dir, .error = strerror(-r)),
			 "verb manifests cannot be read; %s",
			 partial ? "secrets are known by name only" : "the old ones stay");
	verbs_faults_fini(&faults);
	return r;
}

static int mask(const struct secret_set *set, struct span *text, struct buf *scratch)
{
	int r;

	if (!text->p)
		return 0;
	if (!set) {
		*text = SPAN(WITHHELD);
		return 0;
	}
	r = redact_text(set, text->p, text->n, scratch);
	if (r == 0)
		*text = (struct span){scratch->len ? scratch->data : "", scratch->len};
	return r;
}

/* The verb's manifest, when the bridge has it; secrets are known by name without. */
static const struct verb *find_verb(const struct verbs *verbs, struct span name)
{
	char text[129];

	if (!verbs || !name.p || span_copy(name, text, sizeof(text)) < 0)
		return NULL;
	return verbs_find(verbs, text);
}

int masking_apply(const struct verbs *verbs, const struct wire_result *r, bool known,
		  struct span verb, struct span params, struct buf *out)
{
	struct wire_frame f = {.type = WIRE_RESULT, .result = *r};
	struct secret_set set = {0};
	struct buf scratch[3];
	int error = 0;

	for (size_t i = 0; i < ARRAY_LEN(scratch); i++)
		buf_init(&scratch[i], out->max);
	if (known)
		known = json_validate(params.p, params.n, WIRE_MAX_DEPTH, NULL) == 0 &&
			secret_set_from_params(find_verb(verbs, verb), params, &set) == 0;
	error = mask(known ? &set : NULL, &f.result.stdout, &scratch[0]);
	if (error == 0)
		error = mask(known ? &set : NULL, &f.result.stderr, &scratch[1]);
	if (error == 0 && f.result.error.set)
		error = mask(known ? &set : NULL, &f.result.error.msg, &scratch[2]);
	if (error == 0)
		error = wire_encode(&f, out);
	for (size_t i = 0; i < ARRAY_LEN(scratch); i++) {
		buf_wipe(&scratch[i]);
		buf_fini(&scratch[i]);
	}
	secret_set_fini(&set);
	return error;
}
