/*
 * viwctl completion bash|zsh: prints a shell's completion, made from the tables of words and
 * options. Both scripts share the tables as shell functions; only how a shell is asked and answered
 * differs. `completion verbs` lists the verbs known here, for the scripts.
 */
#include <string.h>
#include <unistd.h>

#include "words.h"

/* What both shells run. $1 word, $2 option. */
static const char head[] =
    "# Completion of viwctl, printed by `viwctl completion %s` from its tables.\n"
    "\n"
    "# Values of a kind, one a line.\n"
    "_viwctl_values() {\n"
    "	case $1 in\n"
    "	@agents) viwctl gateways --ids 2>/dev/null ;;\n"
    "	@verbs) viwctl completion verbs 2>/dev/null ;;\n"
    "	*) printf '%%s\\n' \"$1\" | tr ' ' '\\n' ;;\n"
    "	esac\n"
    "}\n\n";

/* Walks the words before the one that is typed; the shell's own lines set `seen` (those words) and
 * `cur`. Leaves kind: what can stand here, and word. */
static const char walk[] =
    "	local word='' kind='' skip='' n=0 many=0 w\n"
    "	for w in \"${seen[@]}\"; do\n"
    "		if [ \"$w\" = '=' ]; then continue; fi\n"
    "		if [ -n \"$skip\" ]; then skip=''; kind=''; continue; fi\n"
    "		case \"$word $w\" in 'send --all' | 'send --site' | 'send --label') many=1 ;; "
    "esac\n"
    "		case $w in\n"
    "		--config) if [ -z \"$word\" ]; then skip=1 kind=@files; fi ;;\n"
    "		-*) if [ -n \"$word\" ] && kind=$(_viwctl_argument \"$word\" \"$w\"); then skip=1; "
    "else kind=''; fi ;;\n"
    "		*) if [ -z \"$word\" ]; then word=$w; else n=$((n + 1)); fi ;;\n"
    "		esac\n"
    "	done\n"
    "	if [ -z \"$skip\" ]; then\n"
    "		case $cur in\n"
    "		-*) kind=$(_viwctl_options \"$word\") ;;\n"
    "		*) if [ -z \"$word\" ]; then kind=$(_viwctl_words); else kind=$(_viwctl_operand "
    "\"$word\" $((n + many))); fi ;;\n"
    "		esac\n"
    "	fi\n";

static const char bash_tail[] =
    "	compopt +o filenames 2>/dev/null\n"
    "	COMPREPLY=()\n"
    "	case $kind in\n"
    "	'') ;;\n"
    "	@files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\") ;;\n"
    "	@dirs) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$cur\") ;;\n"
    "	*) mapfile -t COMPREPLY < <(compgen -W \"$(_viwctl_values \"$kind\")\" -- \"$cur\") ;;\n"
    "	esac\n"
    "}\n"
    "complete -F _viwctl viwctl\n";

static const char zsh_tail[] =
    "	case $kind in\n"
    "	'') ;;\n"
    "	@files) _files ;;\n"
    "	@dirs) _files -/ ;;\n"
    "	*) compadd -- ${(f)\"$(_viwctl_values \"$kind\")\"} ;;\n"
    "	esac\n"
    "}\n"
    "if [ \"$funcstack[1]\" = _viwctl ]; then _viwctl \"$@\"; else compdef _viwctl viwctl; fi\n";

static void put_words(void)
{
	fputs("_viwctl_words() {\n	echo '", stdout);
	for (size_t i = 0; i < ctl_words_n; i++)
		printf("%s ", ctl_words[i].word);
	fputs("help --help --version --config --check-config --dump-config'\n}\n", stdout);
}

static void put_options(void)
{
	fputs("_viwctl_options() {\n	case $1 in\n	'') _viwctl_words ;;\n", stdout);
	for (size_t i = 0; i < ctl_words_n; i++) {
		printf("	%s) echo '", ctl_words[i].word);
		for (size_t k = 0; k < ctl_options_n; k++) {
			if (strcmp(ctl_options[k].word, ctl_words[i].word) == 0)
				printf("--%s ", ctl_options[k].name);
		}
		fputs("--json --help' ;;\n", stdout);
	}
	fputs("	esac\n}\n", stdout);
}

/* Fails when the option takes no argument. */
static void put_arguments(void)
{
	fputs("_viwctl_argument() {\n	case \"$1 $2\" in\n", stdout);
	for (size_t k = 0; k < ctl_options_n; k++) {
		const struct ctl_option *o = &ctl_options[k];
		if (!o->arg)
			continue;
		printf("	'%s --%s'", o->word, o->name);
		if (o->brief)
			printf(" | '%s -%c'", o->word, o->key);
		printf(") echo '%s' ;;\n", o->values);
	}
	fputs("	*) return 1 ;;\n	esac\n}\n", stdout);
}

/* $2: how many operands stand before it. */
static void put_operands(void)
{
	fputs("_viwctl_operand() {\n	case \"$1 $2\" in\n", stdout);
	for (size_t i = 0; i < ctl_words_n; i++) {
		const char *s = ctl_words[i].operands;
		for (int n = 0; *s; n++) {
			int len = (int)strcspn(s, "|");
			printf("	'%s %d') echo '%.*s' ;;\n", ctl_words[i].word, n, len, s);
			s += len;
			s += *s == '|';
		}
	}
	fputs("	esac\n}\n\n", stdout);
}

static void put_script(const char *shell, const char *begin, const char *tail)
{
	printf(head, shell);
	put_words();
	put_options();
	put_arguments();
	put_operands();
	fputs(begin, stdout);
	fputs(walk, stdout);
	fputs(tail, stdout);
}

int cmd_completion(struct ctl *c, int argc, char **argv)
{
	bool end = false;
	int code = ctl_no_options("completion", argc, argv, 1, &end);
	if (end)
		return code;
	if (strcmp(argv[optind], "bash") == 0) {
		put_script("bash",
			   "_viwctl() {\n"
			   "	local cur=${COMP_WORDS[COMP_CWORD]} "
			   "seen=(\"${COMP_WORDS[@]:1:COMP_CWORD-1}\")\n"
			   "	if [ \"$cur\" = '=' ]; then cur=''; fi\n",
			   bash_tail);
	} else if (strcmp(argv[optind], "zsh") == 0) {
		puts("#compdef viwctl");
		put_script("zsh",
			   "_viwctl() {\n"
			   "	local cur=${words[CURRENT]}; local -a seen\n"
			   "	if ((CURRENT > 2)); then seen=(\"${(@)words[2,CURRENT-1]}\"); fi\n",
			   zsh_tail);
	} else if (strcmp(argv[optind], "verbs") == 0) {
		const struct verbs *v = ctl_verbs(c);
		for (size_t i = 0; v && i < verbs_count(v); i++)
			puts(verbs_at(v, i)->name);
		return v ? CTL_OK : CTL_CONFIG;
	} else {
		ctl_usage("completion", stderr);
		return CTL_USAGE;
	}
	return CTL_OK;
}
