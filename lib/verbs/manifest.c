/*
 * One manifest file: JSON to struct verb, every fault gathered with file and key. Keys are rows of
 * a table; a key that is no row is a fault, so that a misspelt limit never silently falls away.
 */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "verbs/verbs_private.h"

struct ctx {
	const char *file;
	struct verbs_faults *faults;
	bool bad;
};

static void fault(struct ctx *c, const char *key, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void fault(struct ctx *c, const char *key, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	verbs_fault_add(c->faults, c->file, key, "%s", text);
	c->bad = true;
}

static bool is_word(const char *s, const char *extra, size_t max)
{
	size_t n = strlen(s);

	if (n < 1 || n > max || !((s[0] >= 'a' && s[0] <= 'z') || (s[0] >= 'A' && s[0] <= 'Z')))
		return false;
	for (size_t i = 0; i < n; i++)
		if (!(s[i] >= 'a' && s[i] <= 'z') && !(s[i] >= 'A' && s[i] <= 'Z') &&
		    !(s[i] >= '0' && s[i] <= '9') && !strchr(extra, s[i]))
			return false;
	return true;
}

static bool has_control(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			return true;
	return false;
}

static void strv_free(char **v)
{
	for (char **p = v; p && *p; p++)
		free(*p);
	free(v);
}

/* An array of plain strings, at most max; NULL with a fault. */
static char **take_strings(struct ctx *c, const char *key, json_t *j, size_t max)
{
	size_t n = json_array_size(j);

	if (!json_is_array(j) || n > max) {
		fault(c, key, "must be an array of at most %zu strings", max);
		return NULL;
	}
	char **v = calloc(n + 1, sizeof *v);
	for (size_t i = 0; v && i < n; i++) {
		const char *s = json_string_value(json_array_get(j, i));
		if (!s || has_control(s) || strlen(s) > 1024) {
			fault(c, key,
			      "item %zu must be a string without control bytes, at most 1024 bytes",
			      i);
			break;
		}
		v[i] = strdup(s);
		if (!v[i])
			break;
	}
	return v;
}

static char *take_string(struct ctx *c, const char *key, json_t *j, size_t max)
{
	const char *s = json_string_value(j);

	if (!s || !*s || has_control(s) || strlen(s) > max) {
		fault(c, key, "must be a string of 1 to %zu bytes without control bytes", max);
		return NULL;
	}
	return strdup(s);
}

static bool take_bool(struct ctx *c, const char *key, json_t *j)
{
	if (!json_is_boolean(j))
		fault(c, key, "must be true or false");
	return json_is_true(j);
}

static int64_t take_int(struct ctx *c, const char *key, json_t *j, int64_t min, int64_t max)
{
	int64_t v = (int64_t)json_integer_value(j);

	if (!json_is_integer(j) || v < min || v > max) {
		fault(c, key, "must be a whole number from %lld to %lld", (long long)min,
		      (long long)max);
		return min;
	}
	return v;
}

/* ---- one parameter ---- */

struct param_ctx {
	struct ctx *c;
	struct verb_param *p;
	json_t *deflt, *min, *max;
	const char *key;
};

static void p_type(struct param_ctx *x, json_t *j)
{
	const char *word = json_string_value(j);

	for (int t = 0; word && t < PARAM_TYPES; t++)
		if (strcmp(word, param_kinds[t].word) == 0) {
			x->p->type = (enum param_type)t;
			return;
		}
	fault(x->c, x->key, "unknown type; see the manifest schema for the list");
}

static void p_via(struct param_ctx *x, json_t *j)
{
	static const char *const words[] = {"argv", "stdin", "env"};
	const char *word = json_string_value(j);

	for (size_t i = 0; word && i < ARRAY_LEN(words); i++)
		if (strcmp(word, words[i]) == 0) {
			x->p->via = (enum param_via)i;
			return;
		}
	fault(x->c, x->key, "must be \"argv\", \"stdin\" or \"env\"");
}

static void p_optional(struct param_ctx *x, json_t *j)
{
	x->p->optional = take_bool(x->c, x->key, j);
}

static void p_secret(struct param_ctx *x, json_t *j)
{
	x->p->secret = take_bool(x->c, x->key, j);
}

static void p_default(struct param_ctx *x, json_t *j)
{
	x->deflt = j;
}

static void p_min(struct param_ctx *x, json_t *j)
{
	x->min = j;
}

static void p_max(struct param_ctx *x, json_t *j)
{
	x->max = j;
}

static void p_values(struct param_ctx *x, json_t *j)
{
	strv_free(x->p->words);
	x->p->words = take_strings(x->c, x->key, j, 64);
}

static void p_charset(struct param_ctx *x, json_t *j)
{
	free(x->p->charset);
	x->p->charset = take_string(x->c, x->key, j, 128);
}

static void p_doc(struct param_ctx *x, json_t *j)
{
	free(take_string(x->c, x->key, j, 256));
}

static const struct {
	const char *key;
	void (*take)(struct param_ctx *x, json_t *j);
} param_rows[] = {
    {"type", p_type},	    {"via", p_via}, {"optional", p_optional}, {"secret", p_secret},
    {"default", p_default}, {"min", p_min}, {"max", p_max},	      {"values", p_values},
    {"charset", p_charset}, {"doc", p_doc},
};

static void param_bounds(struct param_ctx *x, const char *name)
{
	const struct param_kind *k = &param_kinds[x->p->type];
	char key[160];

	x->p->min = k->min;
	x->p->max = k->max_default;
	if (x->min) {
		snprintf(key, sizeof key, "params.%s.min", name);
		x->p->min = take_int(x->c, key, x->min, k->min, k->max);
	}
	if (x->max) {
		snprintf(key, sizeof key, "params.%s.max", name);
		x->p->max = take_int(x->c, key, x->max, k->min, k->max);
	}
	if (x->p->min > x->p->max) {
		snprintf(key, sizeof key, "params.%s.min", name);
		fault(x->c, key, "is above max");
	}
}

static void param_default(struct param_ctx *x, const char *name)
{
	char key[160], number[32];
	const char *s = json_string_value(x->deflt), *why;

	snprintf(key, sizeof key, "params.%s.default", name);
	if (x->p->secret) {
		fault(x->c, key, "a secret has no default");
		return;
	}
	if (json_is_boolean(x->deflt))
		s = json_is_true(x->deflt) ? "true" : "false";
	if (json_is_integer(x->deflt)) {
		snprintf(number, sizeof number, "%lld", (long long)json_integer_value(x->deflt));
		s = number;
	}
	if (!s || param_check(x->p, s, strlen(s), &x->p->default_text, &why) < 0)
		fault(x->c, key, "must be %s", s ? why : "a string, whole number or boolean");
}

/* The helper sets VIW_<NAME> of these itself; the run's id marks its processes. */
static bool is_helpers_own(const char *name)
{
	static const char *const own[] = {"run_id", "correlation_id", "agent_id"};

	for (size_t i = 0; i < ARRAY_LEN(own); i++)
		if (strcasecmp(name, own[i]) == 0)
			return true;
	return false;
}

static void take_param(struct ctx *c, struct verb_param *p, const char *name, json_t *j)
{
	struct param_ctx x = {.c = c, .p = p};
	char key[160];
	const char *k;
	json_t *v;

	p->name = strdup(name);
	p->type = PARAM_TYPES;
	json_object_foreach(j, k, v)
	{
		size_t i = 0;
		snprintf(key, sizeof key, "params.%s.%.64s", name, k);
		x.key = key;
		while (i < ARRAY_LEN(param_rows) && strcmp(param_rows[i].key, k) != 0)
			i++;
		if (i == ARRAY_LEN(param_rows))
			fault(c, key, "unknown key");
		else
			param_rows[i].take(&x, v);
	}
	snprintf(key, sizeof key, "params.%s", name);
	if (p->via == PARAM_VIA_ENV && is_helpers_own(name))
		fault(c, key, "is a variable the helper sets itself; choose another name");
	snprintf(key, sizeof key, "params.%s.type", name);
	if (p->type == PARAM_TYPES) {
		if (!json_object_get(j, "type"))
			fault(c, key, "is required");
		p->type = PARAM_TEXT;
		return;
	}
	if (p->type == PARAM_SECRET || verb_name_is_secret(name, strlen(name)))
		p->secret = true;
	param_bounds(&x, name);
	if (p->type == PARAM_ENUM && (!p->words || !p->words[0]))
		fault(c, key, "an enum needs \"values\"");
	if (x.deflt)
		param_default(&x, name);
}

/* ---- the verb ---- */

static void v_verb(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->name = take_string(c, key, j, 64);
	if (v->name && !is_word(v->name, "_", 64))
		fault(c, key, "must be letters, digits and _, a letter first");
}

static void v_exec(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->exec = take_string(c, key, j, 1024);
	if (v->exec && v->exec[0] != '/')
		fault(c, key, "must be an absolute path");
}

static void v_argv(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->argv = take_strings(c, key, j, 64);
}

static void v_params(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	const char *name;
	json_t *p;

	if (!json_is_object(j) || json_object_size(j) > 32) {
		fault(c, key, "must be an object of at most 32 parameters");
		return;
	}
	v->param = calloc(json_object_size(j) + 1, sizeof *v->param);
	if (!v->param)
		return;
	json_object_foreach(j, name, p)
	{
		if (!is_word(name, "_", 48))
			fault(c, key,
			      "a parameter's name must be letters, digits and _, at most 48");
		else if (!json_is_object(p))
			fault(c, key, "parameter %s must be an object", name);
		else
			take_param(c, &v->param[v->params++], name, p);
	}
}

static void v_effects(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->effects = take_bool(c, key, j);
}

static void v_idempotent(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->idempotent = take_bool(c, key, j);
}

static void v_network(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->network = take_bool(c, key, j);
}

static void v_timeout(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->timeout_s = take_int(c, key, j, 1, VERB_TIMEOUT_MAX_S);
}

static void v_output(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->max_output_bytes = take_int(c, key, j, 0, 262144);
}

static void v_concurrency(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->concurrency = take_int(c, key, j, 1, 64);
}

static void v_run_as(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	free(v->run_as);
	v->run_as = take_string(c, key, j, 32);
	if (v->run_as && !is_word(v->run_as, "_-", 32))
		fault(c, key, "must be a user's name");
}

static void v_writable(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->writable_paths = take_strings(c, key, j, 32);
	for (char **p = v->writable_paths; p && *p; p++)
		if (**p != '/')
			fault(c, key, "every path must be absolute");
}

static void v_capabilities(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->capabilities = take_strings(c, key, j, 41);
	for (char **p = v->capabilities; p && *p; p++)
		if (strncmp(*p, "CAP_", 4) != 0 || !is_word(*p, "_", 32))
			fault(c, key, "every item must be a capability's name such as CAP_CHOWN");
}

static void v_doc(struct ctx *c, struct verb *v, const char *key, json_t *j)
{
	v->doc = take_string(c, key, j, 256);
}

static const struct {
	const char *key;
	void (*take)(struct ctx *c, struct verb *v, const char *key, json_t *j);
	bool required;
} verb_rows[] = {
    {"verb", v_verb, true},
    {"exec", v_exec, true},
    {"argv", v_argv, false},
    {"params", v_params, false},
    {"effects", v_effects, false},
    {"idempotent", v_idempotent, false},
    {"network", v_network, false},
    {"timeout_s", v_timeout, false},
    {"max_output_bytes", v_output, false},
    {"concurrency", v_concurrency, false},
    {"run_as", v_run_as, false},
    {"writable_paths", v_writable, false},
    {"capabilities", v_capabilities, false},
    {"doc", v_doc, false},
};

static const struct verb_param *find_param(const struct verb *v, const char *name, size_t n)
{
	for (size_t i = 0; i < v->params; i++)
		if (strlen(v->param[i].name) == n && memcmp(v->param[i].name, name, n) == 0)
			return &v->param[i];
	return NULL;
}

/* Every {name} must be a declared parameter that travels in argv, and each of those must occur. */
static void check_templates(struct ctx *c, const struct verb *v)
{
	bool used[32] = {false};

	for (char **a = v->argv; a && *a; a++)
		for (const char *p = strchr(*a, '{'); p; p = strchr(p + 1, '{')) {
			const char *end = strchr(p, '}');
			const struct verb_param *param =
			    end ? find_param(v, p + 1, (size_t)(end - p) - 1) : NULL;
			if (!param || param->via != PARAM_VIA_ARGV)
				fault(c, "argv", "\"%.100s\": {…} must name a parameter via argv",
				      *a);
			else
				used[param - v->param] = true;
		}
	for (size_t i = 0; i < v->params; i++)
		if (v->param[i].via == PARAM_VIA_ARGV && !used[i])
			fault(c, "argv", "parameter %s is via argv but no {%s} uses it",
			      v->param[i].name, v->param[i].name);
}

static void take_keys(struct ctx *c, struct verb *v, json_t *root)
{
	const char *k;
	json_t *j;

	json_object_foreach(root, k, j)
	{
		size_t i = 0;
		while (i < ARRAY_LEN(verb_rows) && strcmp(verb_rows[i].key, k) != 0)
			i++;
		if (i < ARRAY_LEN(verb_rows))
			verb_rows[i].take(c, v, k, j);
		else if (strcmp(k, "$schema") != 0)
			fault(c, is_word(k, "_-", 64) ? k : "(key)", "unknown key");
	}
	for (size_t i = 0; i < ARRAY_LEN(verb_rows); i++)
		if (verb_rows[i].required && !json_object_get(root, verb_rows[i].key))
			fault(c, verb_rows[i].key, "is required");
}

int verb_parse(const char *json, size_t n, const char *file, struct verb **ret,
	       struct verbs_faults *faults)
{
	struct ctx c = {.file = file, .faults = faults};
	json_error_t err;

	if (n > VERB_MANIFEST_MAX_BYTES) {
		fault(&c, "(file)", "is larger than %d bytes", VERB_MANIFEST_MAX_BYTES);
		return -EINVAL;
	}
	json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &err);
	if (!json_is_object(root)) {
		if (root)
			fault(&c, "(file)", "must be one JSON object");
		else
			fault(&c, "(file)", "is not JSON: line %d: %.120s", err.line, err.text);
		json_decref(root);
		return -EINVAL;
	}
	struct verb *v = calloc(1, sizeof *v);
	if (v) {
		*v = (struct verb){.effects = true,
				   .network = true,
				   .timeout_s = 30,
				   .max_output_bytes = 65536,
				   .concurrency = 1};
		v->file = strdup(file);
		v->run_as = strdup("root");
		take_keys(&c, v, root);
		if (!c.bad)
			check_templates(&c, v);
	}
	json_decref(root);
	if (!v || c.bad || !v->name || !v->exec || !v->run_as || !v->file) {
		verb_free(v);
		return c.bad ? -EINVAL : -ENOMEM;
	}
	*ret = v;
	return 0;
}

static void param_fini(struct verb_param *p)
{
	free(p->name);
	free(p->default_text);
	free(p->charset);
	strv_free(p->words);
}

void verb_free(struct verb *v)
{
	if (!v)
		return;
	for (size_t i = 0; i < v->params; i++)
		param_fini(&v->param[i]);
	free(v->param);
	free(v->name);
	free(v->file);
	free(v->exec);
	free(v->run_as);
	free(v->doc);
	strv_free(v->argv);
	strv_free(v->writable_paths);
	strv_free(v->capabilities);
	free(v);
}
