/* The words of viwctl and their options, as tables: what reads argv, help, manual page, completion.
 */
#pragma once

#include <stdio.h>

#include "viwctl.h"

struct ctl_word {
	const char *word, *calls, *operands, *line;
	int (*run)(struct ctl *c, int argc, char **argv);
};
extern const struct ctl_word ctl_words[];
extern const size_t ctl_words_n;
const struct ctl_word *ctl_word_find(const char *word);

struct ctl_option {
	const char *word, *name;
	char key;
	bool brief; /* -key works too */
	const char *arg, *values, *line;
};
extern const struct ctl_option ctl_options[];
extern const size_t ctl_options_n;

/* All words, where their help is, and the exit codes. */
void ctl_help(FILE *out);
