/*
 * What host-helper and the programs of its built-in verbs, which lie beside it, agree on. They are
 * started as a script is: the verb's name as the only argument, parameters and the settings of
 * verbs_settings.def in the environment, secrets on stdin; they answer one JSON object on stdout.
 */
#pragma once

#include "health.h"

#define VERBS_PROGRAM		 "host-helper-verbs"
#define VERBS_CONTAINERS_PROGRAM "host-helper-containers"
/* What get_monitoring_data asks the latter. */
#define VERBS_CONTAINER_METRICS "container_metrics"
/* Exit code of a verb that failed by the rules: "<code>\n<msg>" is on its stderr. */
#define VERBS_EXIT_REFUSED 100
/* The helper's sample before this request, so that the verb need not wait for two of its own. */
#define VERBS_CPU_ENV "VIW_CPU_BEFORE"

/* Where this program itself lies. -errno. */
int verbs_program_folder(char *out, size_t cap) MUST_CHECK;

/* The variable's text (malloc), NULL: no memory. */
char *verbs_program_put_cpu(const struct cpu_sample *s);
/* All 0 when there is none. */
struct cpu_sample verbs_program_get_cpu(const char *text);

/* "first-last", 1 to 65535. -EINVAL. */
int verbs_program_parse_ports(const char *text, int *ret_first, int *ret_last) MUST_CHECK;
