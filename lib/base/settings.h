/*
 * Settings: one .def table per program gives the struct, loading from file and environment with
 * range errors, --help, --check-config, the masked dump and docs/config.md.
 *
 * A program `foo` writes foo_settings.def with one row per setting:
 *
 *   SETTING(BOOL,   enabled,       "ENABLED",       "true",  0, 0, NULL, 0, "Run at all.")
 *   SETTING(INT,    max_conn,      "MAX_CONN",      "100",   1, 1000000, "connections",
 * SETTING_RELOAD, "…") SETTING(STR,    id,            "ID",            NULL,    0, 0, NULL, 0, "…")
 *   SETTING(ENUM,   log_level,     "LOG_LEVEL",     "info",  0, 0, "debug|info|warn|error", 0, "…")
 *   SETTING(SECRET, shared_secret, "SHARED_SECRET", NULL,    0, 0, NULL, 0, "…")
 *     kind, field, name without prefix, default as text (NULL: unset), min, max (INT: value, both
 *     0 = any; others: max is the longest length in bytes, 0 = 4096), unit or enum words, flags,
 *     one-line doc, and where there is one the full name of another environment variable that
 *     means the same (its own name wins):
 *   SETTING(STR, stream_prefix, "STREAM_PREFIX", "viw", 0, 32, NULL, 0, "…", "VIW_STREAM_PREFIX")
 *
 * foo_settings.h:
 *   struct foo_settings {
 *   #define SETTING SETTING_FIELD
 *   #include "foo_settings.def"
 *   #undef SETTING
 *   };
 *   extern const struct settings_spec foo_settings_spec;
 * foo_settings.c builds `static const struct setting rows[]` the same way with SETTING_ROW (define
 * SETTINGS_STRUCT as the struct's tag first).
 *
 * Types in the struct: BOOL bool; INT int64_t; all others `char *` (NULL when unset, owned by the
 * struct, SECRET wiped on free).
 *
 * Precedence: environment, file, default; an empty value counts as unset there. Names:
 * <PREFIX>_<NAME>, in the file <name> in lower case. Every SECRET and URL also has
 * <PREFIX>_<NAME>_FILE and <name>_file (read by file_read_secret), but not both at once. The file
 * is flat TOML: comments, `key = "string" | 'string' | integer | true | false | ["a", "b"]` (arrays
 * of strings become CSV); tables, dotted keys, duplicates and anything else are faults with file
 * and line. An unknown name that starts with the program's prefix is a fault, except what ends in
 * _SERVICE_HOST or _PORT, or has _SERVICE_PORT or _PORT_ in it (injected by Kubernetes).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/macros.h"

enum setting_kind {
	SETTING_KIND_BOOL, /* true|false|1|0|yes|no|on|off */
	SETTING_KIND_INT,  /* decimal within [min, max] */
	SETTING_KIND_STR,
	SETTING_KIND_PATH,   /* no NUL, not empty */
	SETTING_KIND_CSV,    /* comma-separated, kept as text */
	SETTING_KIND_ENUM,   /* one of the words in `unit`, separated by | */
	SETTING_KIND_ADDR,   /* host:port as netaddr_parse_hostport */
	SETTING_KIND_SECRET, /* also NAME_FILE; shown as *** everywhere */
	SETTING_KIND_URL,    /* shown with its password masked */
};

enum setting_flags {
	SETTING_RELOAD = 1,	/* SIGHUP applies a change */
	SETTING_REQUIRED = 2,	/* unset is a fault */
	SETTING_DEPRECATED = 4, /* accepted with a warning; doc names what replaces it */
};

struct setting {
	enum setting_kind kind;
	size_t offset; /* in the program's struct */
	const char *name, *default_text;
	int64_t min, max;
	const char *unit; /* unit for INT, words for ENUM */
	unsigned flags;
	const char *doc;
	const char *env_alias; /* full name of another environment variable, or NULL */
};

#define SETTING_CTYPE_BOOL   bool
#define SETTING_CTYPE_INT    int64_t
#define SETTING_CTYPE_STR    char *
#define SETTING_CTYPE_PATH   char *
#define SETTING_CTYPE_CSV    char *
#define SETTING_CTYPE_ENUM   char *
#define SETTING_CTYPE_ADDR   char *
#define SETTING_CTYPE_SECRET char *
#define SETTING_CTYPE_URL    char *
#define SETTING_FIELD(kind, field, name, def, min, max, unit, flags, ...) \
	SETTING_CTYPE_##kind field;
#define SETTING_DOC_OF(doc, ...)	  doc
#define SETTING_ALIAS_OF(doc, alias, ...) alias
/* the last arguments are doc and, optionally, the alias */
#define SETTING_ROW(kind_, field_, name_, def_, min_, max_, unit_, flags_, ...) \
	{.kind = SETTING_KIND_##kind_,                                          \
	 .offset = offsetof(struct SETTINGS_STRUCT, field_),                    \
	 .name = (name_),                                                       \
	 .default_text = (def_),                                                \
	 .min = (min_),                                                         \
	 .max = (max_),                                                         \
	 .unit = (unit_),                                                       \
	 .flags = (flags_),                                                     \
	 .doc = SETTING_DOC_OF(__VA_ARGS__, NULL),                              \
	 .env_alias = SETTING_ALIAS_OF(__VA_ARGS__, NULL, NULL)},

/* Faults are gathered, never just the first. Owned text; settings_faults_fini frees. */
struct settings_faults {
	struct settings_fault {
		char *setting; /* full name, or file:line */
		char *text;    /* what is wrong and what would be right; never a secret's value */
	} * item;
	size_t n;
	struct settings_fault *warning; /* does not stop the program */
	size_t warnings;
};
void settings_fault_add(struct settings_faults *f, const char *setting, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
void settings_warning_add(struct settings_faults *f, const char *setting, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
void settings_faults_fini(struct settings_faults *f);

struct buf;
struct metric_family;
struct settings_spec {
	const char *program;	  /* "agent-bridge" */
	const char *summary;	  /* one line for --help */
	const char *prefix;	  /* "AGENT_BRIDGE" */
	const char *file_env;	  /* "AGENT_BRIDGE_CONFIG" */
	const char *default_file; /* read when it exists; NULL: none */
	const char *usage;	  /* extra usage lines (subcommands), or NULL */
	const struct setting *row;
	size_t rows;
	size_t struct_size;
	/* Checks across settings; adds faults. May be NULL. Fields at fault hold their default; it
	 * is not called while a SETTING_REQUIRED field is unset. */
	void (*validate)(const void *cfg, struct settings_faults *faults);
	/* For --check-config alone, once all else is valid: what the files hold that settings name.
	 * May be NULL. */
	void (*check_files)(const void *cfg, struct settings_faults *faults);
	/* The program's metrics, for --markdown-metrics, and metrics_markdown: a program that has
	 * none links nothing of them. May be NULL. */
	const struct metric_family *metric;
	size_t metrics;
	int (*metrics_markdown)(const struct metric_family *table, size_t n, struct buf *out);
};

/* Fills cfg (zeroed first). 0 (perhaps with warnings), or -EINVAL with faults, -ENOMEM. envp as
 * environ(7). cfg is to be freed with settings_free in every case. */
int settings_load(const struct settings_spec *spec, char *const *envp, void *cfg,
		  struct settings_faults *faults) MUST_CHECK;
/* Tells each file that settings_load reads in this environment, there or not: the settings file and
 * what a _FILE form names. For watching them. 0 or -ENOMEM. */
int settings_files(const struct settings_spec *spec, char *const *envp,
		   void (*on_file)(void *arg, const char *path), void *arg) MUST_CHECK;
void settings_free(const struct settings_spec *spec, void *cfg);
/* Secrets as ***, unset as empty; one `name = value` a line, valid as a file but for the mask. */
void settings_dump(const struct settings_spec *spec, const void *cfg, FILE *out);
void settings_help(const struct settings_spec *spec, FILE *out);
/* The Markdown table of docs/config.md for this program. */
void settings_markdown(const struct settings_spec *spec, FILE *out);
/* Names of the settings with SETTING_RELOAD that differ are copied from `fresh` into `live`;
 * `on_ignored` is called for each other difference. Returns how many were copied. */
size_t settings_apply_reload(const struct settings_spec *spec, void *live, void *fresh,
			     void (*on_ignored)(const char *name));
