/*
 * One built-in verb, one process: arguments in, one JSON object out. host-helper starts these
 * programs as it starts a script (verbs_program.h). They have no power of their own: who starts one
 * by hand gets what he could do himself.
 */
#include "builtin.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/program.h"

#define STDIN_MAX_BYTES 65536
#define INNER_MAX_BYTES 262144

#define SETTINGS_STRUCT verbs_settings
static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "verbs_settings.def"
#undef SETTING
};

int builtin_fail(struct builtin_ctx *x, const char *code, const char *fmt, ...)
{
	va_list ap;

	snprintf(x->code, sizeof x->code, "%s", code);
	va_start(ap, fmt);
	vsnprintf(x->msg, sizeof x->msg, fmt, ap);
	va_end(ap);
	return -1;
}

const char *builtin_arg(const struct builtin_ctx *x, const char *name)
{
	for (size_t i = 0; i < x->verb->params; i++)
		if (strcmp(x->verb->param[i].name, name) == 0)
			return x->args.value[i];
	return NULL;
}

static char *from_env(const struct verb_param *p)
{
	char name[64];
	int n = snprintf(name, sizeof name, "VIW_%s", p->name);

	for (int i = 4; i < n && name[i]; i++)
		if (name[i] >= 'a' && name[i] <= 'z')
			name[i] = (char)(name[i] - 'a' + 'A');
	return getenv(name);
}

/* The next line of *at; NULL: it is empty, which stands for a parameter that is absent. */
static char *from_stdin(char **at)
{
	char *line = strsep(at, "\n");

	return line && *line ? line : NULL;
}

static int read_stdin(struct buf *in)
{
	char chunk[4096];
	ssize_t n;
	int r = 0;

	while (r == 0 && (n = read(0, chunk, sizeof chunk)) > 0)
		r = buf_append(in, chunk, (size_t)n);
	return r == 0 ? buf_append_char(in, 0) : r;
}

/* The helper has checked them; they are checked again. */
static int take_args(struct builtin_ctx *x)
{
	struct verb_args *ret = &x->args;
	const struct verb *v = x->verb;
	char *rest = NULL;
	const char *why = "";
	struct buf in;
	int r = 0;

	buf_init(&in, STDIN_MAX_BYTES);
	ret->n = v->params;
	ret->value = calloc(v->params + 1, sizeof *ret->value);
	for (size_t i = 0; ret->value && r == 0 && i < v->params; i++) {
		const struct verb_param *p = &v->param[i];
		if (p->via == PARAM_VIA_STDIN && !in.len && (r = read_stdin(&in)) == 0)
			rest = in.data;
		const char *text = p->via == PARAM_VIA_STDIN ? from_stdin(&rest) : from_env(p);
		text = text ? text : p->default_text;
		if (r == 0 && text)
			r = param_check(p, text, strlen(text), &ret->value[i], &why);
		else if (!p->optional)
			r = -EINVAL;
		if (r < 0)
			(void)builtin_fail(x, r == -EINVAL ? "bad_args" : "internal", "args.%s: %s",
					   p->name, r == -EINVAL ? "is not valid" : strerror(-r));
	}
	buf_wipe(&in);
	buf_fini(&in);
	return ret->value ? r : builtin_fail(x, "internal", "out of memory");
}

/* Writes the answer to stdout, or its refusal to stderr; gives the exit code. */
static int answer(struct builtin_ctx *x, int (*run)(struct builtin_ctx *x))
{
	struct buf text;

	buf_init(&text, (size_t)x->verb->max_output_bytes);
	jsonw_init(x->w, &text);
	jsonw_obj(x->w, NULL);
	int r = take_args(x);
	if (r == 0)
		r = run(x);
	if (r == 0) {
		jsonw_obj_end(x->w);
		if (jsonw_finish(x->w) < 0)
			r = builtin_fail(x, "internal", "the answer is larger than %lld bytes",
					 (long long)x->verb->max_output_bytes);
	}
	if (r < 0) {
		dprintf(2, "%s\n%s", x->code, x->msg);
		return VERBS_EXIT_REFUSED;
	}
	return file_write_all(1, text.data, text.len) < 0;
}

static const struct verb *find_verb(const struct builtin *b)
{
	static const struct verb inner = {.max_output_bytes = INNER_MAX_BYTES};
	struct verbs_faults none = {0};
	struct verbs *verbs = NULL;

	if (b->inner)
		return &inner;
	return verbs_load(NULL, VERBS_TRUST_ANY, false, &verbs, &none) < 0
		   ? NULL
		   : verbs_find(verbs, b->verb);
}

int builtin_main(const char *program, const struct builtin *table, size_t n, int argc, char **argv)
{
	const struct settings_spec spec = {
	    .program = program,
	    .summary = "Built-in verbs of host-helper, which starts it and hands its settings on.",
	    .prefix = "HOST_HELPER",
	    .usage = "VERB: parameters as VIW_<NAME>, secrets on stdin, one a line\n",
	    .row = rows,
	    .rows = ARRAY_LEN(rows),
	    .struct_size = sizeof(struct verbs_settings),
	};
	struct verbs_settings cfg;
	char **words = NULL;
	size_t i = 0;

	program_harden();
	int r = program_start(&spec, argc, argv, &cfg, &words);
	if (r >= 0)
		return r;
	while (words[0] && i < n && strcmp(table[i].verb, words[0]) != 0)
		i++;
	const char *id = getenv("VIW_CORRELATION_ID");
	struct jsonw w;
	struct builtin_ctx x = {.cfg = &cfg,
				.w = &w,
				.cpu_before = verbs_program_get_cpu(getenv(VERBS_CPU_ENV)),
				.correlation_id = id ? id : ""};
	if (words[0] && !words[1] && i < n)
		x.verb = find_verb(&table[i]);
	r = VERBS_EXIT_REFUSED;
	if (x.verb)
		r = answer(&x, table[i].run);
	else
		dprintf(2, "verb_not_allowed\n%s takes the name of one of its verbs", program);
	_exit(r); /* clean-up is the kernel's: libraries have nothing to say here */
}
