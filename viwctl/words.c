/* See words.h and viwctl.h. */
#include "words.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

const struct ctl_word ctl_words[] = {
#define SUBCOMMAND(word, calls, operands, line, run) {word, calls, operands, line, run},
#include "subcommands.def"
#undef SUBCOMMAND
};
const size_t ctl_words_n = ARRAY_LEN(ctl_words);

const struct ctl_option ctl_options[] = {
#define OPTION(word, name, key, brief, arg, values, line) \
	{word, name, key, brief, arg, values, line},
#include "options.def"
#undef OPTION
};
const size_t ctl_options_n = ARRAY_LEN(ctl_options);

static const struct {
	int code;
	const char *line;
} exits[] = {
#define EXIT(name, code, line) {code, line},
#include "exits.def"
#undef EXIT
};

const struct ctl_word *ctl_word_find(const char *word)
{
	for (size_t i = 0; i < ctl_words_n; i++) {
		if (strcmp(ctl_words[i].word, word) == 0)
			return &ctl_words[i];
	}
	return NULL;
}

void ctl_help(FILE *out)
{
	fprintf(out, "viwctl: see and steer a fleet of gateways\n\n");
	for (size_t i = 0; i < ctl_words_n; i++)
		fprintf(out, "  %-15s %s\n", ctl_words[i].word, ctl_words[i].line);
	fprintf(out, "\nviwctl WORD --help shows a word's options; viwctl --help the settings.\n"
		     "Every word takes --json.\n\nExit codes:\n\n");
	for (size_t i = 0; i < ARRAY_LEN(exits); i++)
		fprintf(out, "  %3d  %s\n", exits[i].code, exits[i].line);
}

void ctl_usage(const char *word, FILE *out)
{
	const struct ctl_word *w = ctl_word_find(word);
	char left[64];
	for (const char *s = w->calls; s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL)
		fprintf(out, "viwctl %s %.*s\n", word, (int)strcspn(s, "\n"), s);
	for (size_t i = 0; i < ctl_options_n; i++) {
		const struct ctl_option *o = &ctl_options[i];
		if (strcmp(o->word, word) != 0)
			continue;
		char brief[8] = "";
		if (o->brief)
			snprintf(brief, sizeof brief, "-%c, ", o->key);
		snprintf(left, sizeof left, "%s--%s%s%s", brief, o->name, o->arg ? " " : "",
			 o->arg ? o->arg : "");
		fprintf(out, "  %-25s %s\n", left, o->line);
	}
}

bool ctl_number(const char *what, const char *text, long min, long max, long *ret)
{
	bool digits = *text && text[strspn(text, "0123456789")] == '\0';
	errno = 0;
	long v = digits ? strtol(text, NULL, 10) : 0;
	if (!digits || errno || v < min || v > max) {
		ctl_error("%s must be %ld to %ld, not '%s'", what, min, max, text);
		return false;
	}
	*ret = v;
	return true;
}

/* One of the words that the table lists for the option, where it lists any. */
static bool value_is_listed(const struct ctl_option *o, const char *value)
{
	if (!o->arg || !*o->values || *o->values == '@')
		return true;
	size_t n = strlen(value);
	for (const char *s = o->values; *s;) {
		size_t len = strcspn(s, " ");
		if (len == n && memcmp(s, value, n) == 0)
			return true;
		s += len + (s[len] == ' ');
	}
	ctl_error("--%s must be one of: %s; not '%s'", o->name, o->values, value);
	return false;
}

static bool value_is_good(const char *word, int key)
{
	for (size_t i = 0; i < ctl_options_n; i++) {
		const struct ctl_option *o = &ctl_options[i];
		if (o->key == key && strcmp(o->word, word) == 0)
			return value_is_listed(o, optarg);
	}
	return true;
}

int ctl_option(const char *word, int argc, char **argv)
{
	struct option longs[24] = {0};
	char shorts[3 * ARRAY_LEN(longs)] = "h";
	size_t n = 0, m = 1;
	for (size_t i = 0; i < ctl_options_n && n + 2 < ARRAY_LEN(longs); i++) {
		const struct ctl_option *o = &ctl_options[i];
		if (strcmp(o->word, word) != 0)
			continue;
		longs[n++] =
		    (struct option){.name = o->name, .has_arg = o->arg != NULL, .val = o->key};
		if (!o->brief)
			continue;
		shorts[m++] = o->key;
		if (o->arg)
			shorts[m++] = ':';
	}
	longs[n] = (struct option){.name = "help", .val = CTL_OPTION_HELP};
	int key = getopt_long(argc, argv, shorts, longs, NULL);
	if (key == 'h')
		key = CTL_OPTION_HELP;
	if (key == CTL_OPTION_HELP)
		ctl_usage(word, stdout);
	else if (key == '?')
		ctl_usage(word, stderr);
	else if (key != -1 && !value_is_good(word, key))
		key = '?';
	return key;
}

int ctl_no_options(const char *word, int argc, char **argv, int operands, bool *ret_end)
{
	int key = ctl_option(word, argc, argv);
	*ret_end = true;
	if (key == CTL_OPTION_HELP)
		return CTL_OK;
	if (key == -1 && (operands < 0 || argc - optind == operands)) {
		*ret_end = false;
		return CTL_OK;
	}
	if (key == -1)
		ctl_usage(word, stderr);
	return CTL_USAGE;
}
