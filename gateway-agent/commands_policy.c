/* Which commands this agent runs: its allowlist, effects, and the verbs' parameters. */
#include <stdio.h>
#include <string.h>

#include "commands_private.h"

static bool csv_has(const char *csv, const char *word)
{
	size_t n = strlen(word);

	while (*csv) {
		size_t k;

		csv += strspn(csv, ", \t");
		k = strcspn(csv, ", \t");
		if (k == n && strncmp(csv, word, n) == 0)
			return true;
		csv += k;
	}
	return false;
}

bool commands_allows(const struct commands *c, const char *verb, bool effects)
{
	if (c->allowed_verbs && !csv_has(c->allowed_verbs, verb))
		return false;
	return !effects || c->exec_enable;
}

enum kind commands_kind_of(struct commands *c, const char *verb)
{
	const struct verb *v;

	if (strcmp(verb, "ECHO") == 0)
		return KIND_ECHO;
	if (strcmp(verb, "shutdown") == 0)
		return KIND_SHUTDOWN;
	v = c->ops->find_verb(c->arg, verb);
	if (!v)
		return KIND_UNKNOWN;
	return v->effects ? KIND_EFFECTS : KIND_READ_ONLY;
}

void commands_judge(struct commands *c, struct command *m)
{
	bool effects = m->kind != KIND_ECHO && m->kind != KIND_READ_ONLY;
	const struct verb *v;
	struct verb_args a;

	m->refusal = NULL;
	if (c->allowed_verbs && !csv_has(c->allowed_verbs, m->verb)) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "not in this agent's VIW_AGENT_ALLOWED_VERBS");
	} else if (effects && !c->exec_enable &&
		   (m->kind != KIND_UNKNOWN || c->ops->verbs_known(c->arg))) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "this agent runs read-only verbs only; set "
			       "VIW_AGENT_FEATURE_EXEC_ENABLE=true to run verbs with effects");
	} else if (m->kind == KIND_UNKNOWN && c->ops->verbs_known(c->arg)) {
		m->refusal = "verb_not_allowed";
		(void)snprintf(m->refusal_msg, sizeof m->refusal_msg,
			       "no manifest of the helper declares this verb");
	} else if (m->kind != KIND_UNKNOWN && m->kind != KIND_ECHO) {
		v = c->ops->find_verb(c->arg, m->verb);
		if (!v)
			return;
		if (verb_args_check(v, span_of(m->args), &a, m->refusal_msg,
				    sizeof m->refusal_msg) < 0)
			m->refusal = "bad_args";
		else
			verb_args_fini(&a, v);
	}
}
