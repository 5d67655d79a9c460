/* viwctl: the operator's command. A table of word, arguments, one line, function. */
#include <stdio.h>
#include <string.h>

#include "base/program.h"
#include "words.h"

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
	if (words)
		n = take_json(n, words, &c.json);
	const struct ctl_word *s = n > 0 ? ctl_word_find(words[0]) : NULL;
	bool help = n > 0 && strcmp(words[0], "help") == 0;
	if (s) {
		code = s->run(&c, n, words);
	} else {
		if (n > 0 && !help)
			ctl_error("'%s' is not a word of viwctl", words[0]);
		ctl_help(help ? stdout : stderr);
		code = help ? CTL_OK : CTL_USAGE;
	}
	ctl_fini(&c);
	return code;
}
