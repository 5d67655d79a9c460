/* One built-in verb: what it is asked, and where its answer goes. It may block. */
#pragma once

#include "base/jsonw.h"
#include "base/settings.h"
#include "health.h"
#include "verbs/verbs.h"
#include "verbs_program.h"

struct verbs_settings {
#define SETTING SETTING_FIELD
#include "verbs_settings.def"
#undef SETTING
};

struct builtin_ctx {
	const struct verb *verb;
	const struct verbs_settings *cfg;
	struct cpu_sample cpu_before; /* the helper's sample before this request */
	const char *correlation_id;
	struct verb_args args;
	struct jsonw *w;	 /* inside the object that becomes `data` */
	char code[32], msg[256]; /* on failure */
};

struct builtin {
	const char *verb;
	int (*run)(struct builtin_ctx *x); /* 0, or -1 with code and msg */
	bool inner; /* no verb, but what another one of these programs asks; it has no arguments */
};

/* What a program of built-in verbs does, whole: never returns but for --help and its like. */
int builtin_main(const char *program, const struct builtin *table, size_t n, int argc, char **argv);

/* Sets code and msg; returns -1. */
int builtin_fail(struct builtin_ctx *x, const char *code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* An argument's text or NULL. */
const char *builtin_arg(const struct builtin_ctx *x, const char *name);

int builtin_service_status(struct builtin_ctx *x) MUST_CHECK;
int builtin_tail_logs(struct builtin_ctx *x) MUST_CHECK;
int builtin_list_containers(struct builtin_ctx *x) MUST_CHECK;
int builtin_spawn_container(struct builtin_ctx *x) MUST_CHECK;
int builtin_stop_container(struct builtin_ctx *x) MUST_CHECK;

/* Pieces of get_monitoring_data. */
int builtin_container_metrics(struct builtin_ctx *x) MUST_CHECK;
void services_write(const char *csv, struct jsonw *w);
