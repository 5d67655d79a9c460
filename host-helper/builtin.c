/* The table of built-in verbs. */
#include "builtin.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The journal's files may be read; the engine's socket is root's (who may talk to it is as good as
 * root, so nothing less would do). */
static char *const none[] = {NULL};
static char *const reads_journal[] = {(char *)"CAP_DAC_READ_SEARCH", NULL};
static char *const asks_engine[] = {(char *)"CAP_DAC_OVERRIDE", NULL};

static const struct {
	const char *verb;
	int (*run)(struct builtin_ctx *x);
	char *const *capabilities;
	bool quick;
} table[] = {
    {"get_system_health", builtin_system_health, none, true},
    {"get_monitoring_data", builtin_monitoring_data, asks_engine, false},
    {"get_service_status", builtin_service_status, none, false},
    {"tail_logs", builtin_tail_logs, reads_journal, false},
    {"list_containers", builtin_list_containers, asks_engine, false},
    {"spawn_container", builtin_spawn_container, asks_engine, false},
    {"stop_container", builtin_stop_container, asks_engine, false},
};

bool builtin_is_quick(const char *verb)
{
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].verb, verb) == 0)
			return table[i].quick;
	return false;
}

char *const *builtin_capabilities(const char *verb)
{
	for (size_t i = 0; i < ARRAY_LEN(table); i++)
		if (strcmp(table[i].verb, verb) == 0)
			return table[i].capabilities;
	return none;
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
