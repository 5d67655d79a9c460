/* The settings table and what one row alone cannot check. */
#include "host_helper_settings.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "helper_main.h"
#include "verbs_program.h"

bool host_helper_check_manifests;

#define SETTINGS_STRUCT host_helper_settings
static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "host_helper_settings.def"
#undef SETTING
};

static void check_uids(const char *csv, struct settings_faults *faults)
{
	for (const char *p = csv; p && *p;) {
		size_t n = strcspn(p, ",");
		/* The largest uid is nobody's: (uid_t)-1. */
		if (n == 0 || n > 10 || strspn(p, "0123456789") < n ||
		    strtoull(p, NULL, 10) >= UINT32_MAX) {
			settings_fault_add(
			    faults, "HOST_HELPER_ALLOWED_UIDS",
			    "must be numeric uids separated by commas, such as 0,990");
			return;
		}
		p += n + (p[n] == ',');
	}
}

static void check_manifests(const char *dir, struct settings_faults *faults)
{
	struct verbs_faults found = {0};
	struct verbs *verbs = NULL;

	if (helper_load_verbs(dir, &verbs, &found) < 0)
		settings_fault_add(faults, "HOST_HELPER_VERBS_DIR", "cannot be read");
	for (size_t i = 0; i < found.n; i++)
		settings_fault_add(faults, found.item[i].file, "%s: %s", found.item[i].key,
				   found.item[i].text);
	verbs_faults_fini(&found);
	verbs_free(verbs);
}

/* What it says is obeyed as root: it must be root's own, as manifests must. */
static void check_file(struct settings_faults *faults)
{
	const char *named = getenv(host_helper_settings_spec.file_env);
	const char *path = named && *named ? named : host_helper_settings_spec.default_file;
	char why[256];

	if (access(path, F_OK) == 0 && trust_check_path(path, TRUST_FILE, why, sizeof why) < 0)
		settings_fault_add(faults, host_helper_settings_spec.file_env, "%s", why);
}

static void validate(const void *cfg, struct settings_faults *faults)
{
	const struct host_helper_settings *c = cfg;
	const struct {
		const char *name, *path;
	} paths[] = {{"HOST_HELPER_SOCKET", c->socket},
		     {"HOST_HELPER_SECRET_FILE", c->secret_file},
		     {"HOST_HELPER_VERBS_DIR", c->verbs_dir},
		     {"HOST_HELPER_STATE_DIR", c->state_dir},
		     {"HOST_HELPER_ENGINE_SOCKET", c->engine_socket},
		     {"HOST_HELPER_JOURNAL_DIR", c->journal_dir}};
	int first, last;

	for (size_t i = 0; i < ARRAY_LEN(paths); i++)
		if (paths[i].path && paths[i].path[0] != '/')
			settings_fault_add(faults, paths[i].name, "must be an absolute path");
	if (c->container_ports && verbs_program_parse_ports(c->container_ports, &first, &last) < 0)
		settings_fault_add(faults, "HOST_HELPER_CONTAINER_PORTS",
				   "must be first-last within 1 to 65535, such as 8000-9000");
	check_uids(c->allowed_uids, faults);
	check_file(faults);
	if (host_helper_check_manifests && c->verbs_dir && c->verbs_dir[0] == '/')
		check_manifests(c->verbs_dir, faults);
}

const struct settings_spec host_helper_settings_spec = {
    .program = "host-helper",
    .summary = "The privileged part: runs declared verbs for the agent, each command at most once.",
    .prefix = "HOST_HELPER",
    .file_env = "HOST_HELPER_CONFIG",
    .default_file = "/etc/viworks/host_helper.toml",
    .usage = "host-helper [run]\n"
	     "host-helper verbs                    what is allowed, with parameters\n"
	     "host-helper audit verify [SEQ:HASH]  checks the audit log, and that it holds a "
	     "checkpoint\n",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct host_helper_settings),
    .validate = validate,
};
