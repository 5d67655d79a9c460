/* The table of built-in verbs. */
#include "builtin.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *verb;
	int (*run)(struct builtin_ctx *x);
	bool quick;
} table[] = {
    {"get_system_health", builtin_system_health, true},
    {"get_monitoring_data", builtin_monitoring_data, false},
    {"get_service_status", builtin_service_status, false},
    {"tail_logs", builtin_tail_logs, false},
    {"list_containers", builtin_list_containers, false},
    {"spawn_container", builtin_spawn_container, false},
    {"stop_container", builtin_stop_container, false},
};

bool builtin_is_quick(const char *verb)
{
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].verb, verb) == 0)
			return table[i].quick;
	return false;
}

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
			return x->args->value[i];
	return NULL;
}

int builtin_run(struct builtin_ctx *x)
{
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].verb, x->verb->name) == 0)
			return table[i].run(x);
	return builtin_fail(x, "verb_not_allowed", "not a verb of this helper");
}
