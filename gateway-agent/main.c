/* gateway-agent: run (default), status, check. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "agent_private.h"
#include "agent_settings.h"
#include "base/log.h"
#include "base/program.h"
#include "check.h"
#include "footprint.h"
#include "loop/loop.h"
#include "status.h"

/* Takes the known options off words; -1 when one is not known. */
static int take_options(char **words, const char *const *known, bool *ret, size_t n)
{
	size_t i;

	for (; words && *words; words++) {
		for (i = 0; i < n && strcmp(*words, known[i]) != 0; i++)
			;
		if (i == n || !ret) {
			fprintf(stderr,
				"gateway-agent: unknown word `%s`; see gateway-agent --help\n",
				*words);
			return -1;
		}
		ret[i] = true;
	}
	return 0;
}

static int cmd_run(struct agent_settings *cfg, char **words)
{
	struct loop *l = NULL;
	struct agent *a = NULL;
	int r;

	if (take_options(words, NULL, NULL, 0) < 0)
		return PROGRAM_CONFIG;
	program_harden();
	r = loop_new(&l);
	if (r == 0)
		r = agent_open(l, cfg, &a);
	if (r == 0) {
		loop_run(l);
		agent_close(a);
	}
	if (l)
		loop_free(l);
	if (r == -EINVAL)
		return PROGRAM_CONFIG;
	if (r < 0) {
		LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-r)), "cannot start");
		return PROGRAM_SYSTEM;
	}
	return PROGRAM_OK;
}

static int cmd_status(struct agent_settings *cfg, char **words)
{
	static const char *const known[] = {"--json"};
	bool on[ARRAY_LEN(known)] = {false};

	return take_options(words, known, on, ARRAY_LEN(known)) < 0 ? PROGRAM_CONFIG
								    : status_show(cfg, on[0]);
}

static int cmd_check(struct agent_settings *cfg, char **words)
{
	static const char *const known[] = {"--json", "--dial"};
	bool on[ARRAY_LEN(known)] = {false};

	return take_options(words, known, on, ARRAY_LEN(known)) < 0 ? PROGRAM_CONFIG
								    : check_run(cfg, on[0], on[1]);
}

static const struct {
	const char *word;
	int (*run)(struct agent_settings *cfg, char **words);
} commands[] = {{"run", cmd_run}, {"status", cmd_status}, {"check", cmd_check}};

/* The words begin with the setting, without its prefix. */
static void check_files(const void *cfg, struct settings_faults *faults)
{
	struct trust_config tc = agent_trust_config(cfg);
	struct trust *t = NULL;
	char why[512], name[64];
	size_t n;

	if (trust_load(&tc, &t, why, sizeof why) < 0) {
		n = strcspn(why, ":");
		snprintf(name, sizeof name, "VIW_AGENT_%.*s", (int)n, why);
		settings_fault_add(faults, name, "%s", why + n + strspn(why + n, ": "));
	}
	trust_free(t);
}

int main(int argc, char **argv)
{
	struct agent_settings cfg = {0};
	struct settings_spec spec = agent_settings_spec;
	char **words = NULL;
	const char *word;
	size_t i;
	int r;

	footprint_stay_small();
	spec.check_files = check_files;
	r = program_start(&spec, argc, argv, &cfg, &words);
	if (r >= 0)
		return r;
	word = words && words[0] ? words[0] : "run";
	for (i = 0; i < ARRAY_LEN(commands); i++) {
		if (strcmp(word, commands[i].word) == 0)
			break;
	}
	if (i == ARRAY_LEN(commands)) {
		fprintf(stderr, "gateway-agent: unknown word `%s`; see gateway-agent --help\n",
			word);
		r = PROGRAM_CONFIG;
	} else {
		r = commands[i].run(&cfg, words && words[0] ? words + 1 : words);
	}
	settings_free(&agent_settings_spec, &cfg);
	if (loop_resolver_hangs()) {
		(void)fflush(NULL);
		_exit(r);
	}
	return r;
}
