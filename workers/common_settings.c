#include "common_settings.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/ident.h"
#include "pg/pg.h"
#include "redis/redis.h"

void common_settings_check(const char *prefix, const char *redis_url, const char *database_url,
			   const char *stream_prefix, const char *consumer,
			   struct settings_faults *f)
{
	char name[64], msg[200];

	if (redis_url && redis_url_check(redis_url, msg, sizeof msg) < 0) {
		snprintf(name, sizeof name, "%s_REDIS_URL", prefix);
		settings_fault_add(f, name, "%s", msg);
	}
	if (database_url && pg_uri_check(database_url, msg, sizeof msg) < 0) {
		snprintf(name, sizeof name, "%s_DATABASE_URL", prefix);
		settings_fault_add(f, name, "%s", msg);
	}
	if (stream_prefix && !ident_is_agent_id(stream_prefix, strlen(stream_prefix))) {
		snprintf(name, sizeof name, "%s_STREAM_PREFIX", prefix);
		settings_fault_add(f, name, "may hold letters, digits, '.', '_' and '-' only");
	}
	if (consumer && (!*consumer || strpbrk(consumer, " \t\r\n"))) {
		snprintf(name, sizeof name, "%s_CONSUMER", prefix);
		settings_fault_add(f, name, "must be a word without blanks");
	}
}

char *common_stream_name(const char *prefix, const char *suffix)
{
	char *name;

	return asprintf(&name, "%s.%s", prefix, suffix) < 0 ? NULL : name;
}

char *common_consumer(const char *consumer_or_null)
{
	char host[128] = "";

	if (consumer_or_null)
		return strdup(consumer_or_null);
	if (gethostname(host, sizeof host - 1) < 0 || !host[0])
		return strdup("writer");
	return strdup(host);
}
