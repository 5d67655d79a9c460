/* Verbs that are the helper's own code. All but the quick ones run in a process of their own and
 * may block. */
#pragma once

#include "base/buf.h"
#include "base/jsonw.h"
#include "health.h"
#include "host_helper_settings.h"
#include "verbs/verbs.h"

/* Exit code of a built-in verb that failed by the rules: "<code>\n<msg>" is on its stderr. */
#define BUILTIN_EXIT_REFUSED 100

struct builtin_ctx {
	const struct verb *verb;
	const struct verb_args *args;
	const struct host_helper_settings *cfg;
	struct cpu_sample cpu_before; /* the helper's sample before this request */
	const char *correlation_id;
	struct jsonw *w;	 /* inside the object that becomes `data` */
	char code[32], msg[256]; /* on failure */
};

/* 0 or -1 with code and msg. -1 when there is no such verb. */
int builtin_run(struct builtin_ctx *x) MUST_CHECK;
/* True for those that read a few files of /proc and never wait, when cpu_before is set: the
 * dispatcher runs them itself. */
bool builtin_is_quick(const char *verb);
/* What it keeps: the others run as nobody with these capabilities and write no file. */
char *const *builtin_capabilities(const char *verb);
/* Sets code and msg; returns -1. */
int builtin_fail(struct builtin_ctx *x, const char *code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* An argument's text or NULL. */
const char *builtin_arg(const struct builtin_ctx *x, const char *name);

int builtin_system_health(struct builtin_ctx *x) MUST_CHECK;
int builtin_monitoring_data(struct builtin_ctx *x) MUST_CHECK;
int builtin_service_status(struct builtin_ctx *x) MUST_CHECK;
int builtin_tail_logs(struct builtin_ctx *x) MUST_CHECK;
int builtin_list_containers(struct builtin_ctx *x) MUST_CHECK;
int builtin_spawn_container(struct builtin_ctx *x) MUST_CHECK;
int builtin_stop_container(struct builtin_ctx *x) MUST_CHECK;

/* Pieces of get_monitoring_data; what cannot be had is left out. */
void services_write(const char *csv, struct jsonw *w);
void containers_write_metrics(const struct host_helper_settings *cfg, struct jsonw *w);
