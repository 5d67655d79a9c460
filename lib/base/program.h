/*
 * What every main() shares: --help, --version, --check-config, --dump-config, logging set-up,
 * hardening, exit codes, sd_notify. Only main.c calls exit; this returns what to exit with.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/settings.h"

enum program_exit {
	PROGRAM_OK = 0,
	PROGRAM_UNAVAILABLE = 69, /* a needed service refused at start */
	PROGRAM_SYSTEM = 71,	  /* system error: bind, memory, descriptor limit */
	PROGRAM_CONFIG = 78,
};

extern const char *const program_version; /* from CMake's project version */

/*
 * Handles the common options and loads cfg. Returns -1: go on running; else the exit code.
 * Options: --help --version --check-config --dump-config --config FILE; hidden, for docs/:
 * --markdown, --markdown-metrics. Unknown options and stray words: usage on stderr and 78. When
 * spec->usage is set, the first word ends the options: *ret_words points at it in argv
 * (NULL-terminated; at the NULL when there is none), and all that follows is the subcommand's.
 * log_json and log_level come from the fields of that name if rows "LOG_JSON", "LOG_LEVEL" exist.
 */
int program_start(const struct settings_spec *spec, int argc, char **argv, void *cfg,
		  char ***ret_words) MUST_CHECK;

/* No core dumps, not ptraceable by the same user, SIGPIPE ignored, umask 077, RLIMIT_NOFILE
 * raised to its hard limit. */
void program_harden(void);

/* sd_notify(3) without libsystemd: sends to $NOTIFY_SOCKET if set. */
void program_notify(const char *state_fmt, ...) PRINTF_LIKE(1, 2);
/* Half of WATCHDOG_USEC in ms, 0 when no watchdog is asked of this pid. */
int64_t program_watchdog_interval_ms(void);

/*
 * For blocking programs (workers, migrate): SIGTERM and SIGINT set a flag, SIGHUP another; both
 * also write to a pipe so that poll(2) wakes. Loop programs use loop_on_signal instead.
 */
int program_catch_signals(void) MUST_CHECK; /* returns the pipe's read end, or -errno */
bool program_should_stop(void);
bool program_take_reload(void);
