/* host-helper: the only privileged program. Subcommands read, the daemon serves. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "audit.h"
#include "base/log.h"
#include "base/program.h"
#include "helper_main.h"

static int run(struct host_helper_settings *cfg, char **words UNUSED)
{
	if (geteuid() != 0) {
		LOG_ERROR(FIELDS(.event = "not_root"), "must run as root");
		return PROGRAM_CONFIG;
	}
	program_harden();
	int r = helper_run(cfg);
	if (r < 0)
		LOG_ERROR(FIELDS(.event = "start_failed", .error = strerror(-r)), "cannot serve");
	return r == 0 ? PROGRAM_OK : r == -EACCES || r == -EINVAL ? PROGRAM_CONFIG : PROGRAM_SYSTEM;
}

static void print_verb(const struct verb *v)
{
	static const char *const via[] = {"argv", "stdin", "env"};

	printf("%s\n    %s%s, timeout %lld s, at most %lld at once%s\n", v->name,
	       v->builtin ? "built in" : v->exec, v->effects ? ", with effects" : ", reads only",
	       (long long)v->timeout_s, (long long)v->concurrency,
	       v->network ? "" : ", no network");
	if (v->doc)
		printf("    %s\n", v->doc);
	if (strcmp(v->run_as, "root") != 0)
		printf("    runs as %s\n", v->run_as);
	for (char **c = v->capabilities; c && *c; c++)
		printf("    capability %s\n", *c);
	for (char **p = v->writable_paths; p && *p; p++)
		printf("    writes below %s\n", *p);
	if (v->writable_paths && !v->writable_paths[0])
		printf("    writes no file\n");
	for (size_t i = 0; i < v->params; i++) {
		const struct verb_param *p = &v->param[i];
		printf("    %s: %s%s%s%s", p->name, param_type_word(p->type),
		       p->secret ? ", secret" : "", v->builtin ? "" : ", via ",
		       v->builtin ? "" : via[p->via]);
		printf("%s%s%s\n", p->optional ? ", optional" : "",
		       p->default_text ? ", default " : "", p->default_text ? p->default_text : "");
	}
}

static int cmd_verbs(struct host_helper_settings *cfg, char **words UNUSED)
{
	struct verbs_faults faults = {0};
	struct verbs *verbs = NULL;

	int r = helper_load_verbs(cfg->verbs_dir, &verbs, &faults);
	for (size_t i = 0; verbs && i < verbs_count(verbs); i++)
		if (!verbs_at(verbs, i)->local)
			print_verb(verbs_at(verbs, i));
	for (size_t i = 0; i < faults.n; i++)
		fprintf(stderr, "%s: %s: %s\n", faults.item[i].file, faults.item[i].key,
			faults.item[i].text);
	bool faulty = faults.n > 0;
	verbs_faults_fini(&faults);
	verbs_free(verbs);
	return r < 0 ? PROGRAM_SYSTEM : faulty ? PROGRAM_CONFIG : PROGRAM_OK;
}

static int cmd_audit(struct host_helper_settings *cfg, char **words)
{
	if (!words[1] || strcmp(words[1], "verify") != 0 || (words[2] && words[3])) {
		fprintf(stderr, "usage: host-helper audit verify [SEQ:HASH]\n");
		return PROGRAM_CONFIG;
	}
	int r = audit_verify(cfg->state_dir, words[2], stdout);
	if (r == -EINVAL)
		fprintf(stderr, "a checkpoint is SEQ:HASH, as in data.audit of hello\n");
	else if (r < 0)
		fprintf(stderr, "%s: %s\n", cfg->state_dir, strerror(-r));
	return r == -EINVAL ? PROGRAM_CONFIG : r < 0 ? PROGRAM_SYSTEM : r;
}

static const struct {
	const char *word;
	int (*run)(struct host_helper_settings *cfg, char **words);
} commands[] = {{"run", run}, {"verbs", cmd_verbs}, {"audit", cmd_audit}};

static int dispatch(struct host_helper_settings *cfg, char **words)
{
	if (!words || !words[0])
		return run(cfg, words);
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(words[0], commands[i].word) == 0)
			return commands[i].run(cfg, words);
	fprintf(stderr, "host-helper: no subcommand `%s`; see host-helper --help\n", words[0]);
	return PROGRAM_CONFIG;
}

int main(int argc, char **argv)
{
	struct host_helper_settings cfg;
	char **words = NULL;

	for (int i = 1; i < argc && argv[i][0] == '-'; i++)
		if (strcmp(argv[i], "--check-config") == 0)
			host_helper_check_manifests = true;
	int r = program_start(&host_helper_settings_spec, argc, argv, &cfg, &words);
	if (r >= 0)
		return r;
	r = dispatch(&cfg, words);
	settings_free(&host_helper_settings_spec, &cfg);
	return r;
}
