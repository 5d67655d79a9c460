/*
 * One line of log on stderr per call: a JSON object (ts, level, msg, event and those fields that
 * are set) or text. Each line is one write(2), or two, at most 8 KiB, longer messages are cut and
 * marked. Lines that nobody takes are left out and counted; no program stands still for its log.
 * Programs log; lib/ does not log above debug. Never pass a secret.
 *
 *   LOG_INFO(FIELDS(.event = "connected", .agent_id = s->agent_id, .ip = s->ip), "agent
 * connected");
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

struct log_fields {
	const char *event;    /* snake_case word, what kind of line this is */
	const char *agent_id; /* NULL: left out, and so on */
	const char *conn_id;
	const char *correlation_id;
	const char *ip;
	const char *error;   /* code or strerror text */
	const char *setting; /* a setting's full name, for faults at start */
	const char *stream;
	const char *verb;
	const char *detail;
	bool has_rc;
	int rc;
	bool has_duration_ms;
	int64_t duration_ms;
	bool has_count;
	int64_t count;
};

void log_setup(bool json, enum log_level level);
/* "debug|info|warn|error"; -EINVAL. */
int log_level_parse(const char *word, enum log_level *ret) MUST_CHECK;
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const struct log_fields *f, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

#define FIELDS(...) (&(const struct log_fields){__VA_ARGS__})
#define LOG_AT(level, fields, ...)                                 \
	do {                                                       \
		if (log_enabled(level))                            \
			log_write((level), (fields), __VA_ARGS__); \
	} while (0)
#define LOG_DEBUG(fields, ...) LOG_AT(LOG_LEVEL_DEBUG, fields, __VA_ARGS__)
#define LOG_INFO(fields, ...)  LOG_AT(LOG_LEVEL_INFO, fields, __VA_ARGS__)
#define LOG_WARN(fields, ...)  LOG_AT(LOG_LEVEL_WARN, fields, __VA_ARGS__)
#define LOG_ERROR(fields, ...) LOG_AT(LOG_LEVEL_ERROR, fields, __VA_ARGS__)
