/* viwctl: the operator's command. A table of word, arguments, one line, function. */
#include <stdio.h>
#include <string.h>

#include "base/program.h"
#include "viwctl.h"

struct subcommand {
	const char *word, *args, *line;
	int (*run)(struct ctl *c, int argc, char **argv);
};

static const struct subcommand subcommands[] = {
#define SUBCOMMAND(word, args, line, run) {word, args, line, run},
#include "subcommands.def"
#undef SUBCOMMAND
};

static const struct subcommand *find(const char *word)
{
	for (size_t i = 0; i < ARRAY_LEN(subcommands); i++) {
		if (strcmp(subcommands[i].word, word) == 0)
			return &subcommands[i];
	}
	return NULL;
}

static void usage(FILE *out)
{
	fprintf(out, "viwctl: see and steer a fleet of gateways\n\n");
	for (size_t i = 0; i < ARRAY_LEN(subcommands); i++)
		fprintf(out, "  %-14s %-44s %s\n", subcommands[i].word, subcommands[i].args,
			subcommands[i].line);
	fprintf(out, "\nviwctl WORD --help shows a word's options; viwctl --help the settings.\n"
		     "Every word takes --json.\n");
}

/* --json is understood wherever it stands, so that no word has to know it. */
static int take_json(int argc, char **argv, bool *ret_json)
{
	int kept = 0;
	for (int i = 0; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			*ret_json = true;
		else
			argv[kept++] = argv[i];
	}
	argv[kept] = NULL;
	return kept;
}

int main(int argc, char **argv)
{
	struct ctl c = {0};
	char **words = NULL;
	int code = program_start(&viwctl_settings_spec, argc, argv, &c.cfg, &words);
	if (code >= 0)
		return code;
	program_harden();
	int n = 0;
	while (words && words[n])
		n++;
	n = take_json(n, words, &c.json);
	const struct subcommand *s = n > 0 ? find(words[0]) : NULL;
	if (s) {
		code = s->run(&c, n, words);
	} else {
		if (n > 0 && strcmp(words[0], "help") != 0)
			ctl_error("'%s' is not a word of viwctl", words[0]);
		usage(n > 0 && strcmp(words[0], "help") == 0 ? stdout : stderr);
		code = n > 0 && strcmp(words[0], "help") == 0 ? CTL_OK : CTL_USAGE;
	}
	ctl_fini(&c);
	return code;
}
