#include "order.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "wire/command_rules.h"

#define TTL_DEFAULT_S 60
#define TTL_MAX_S     86400

/* A string member: 1 there, 0 absent, -1 not a string or too long. */
static int member_text(struct span body, const char *key, char *out, size_t cap)
{
	struct json_member m;
	struct buf text;
	int r = -1;

	out[0] = '\0';
	if (!json_find(body, key, &m))
		return 0;
	buf_init(&text, cap - 1);
	if (m.type == JSON_T_STR && json_unescape(m.raw, &text) == 0) {
		if (text.len)
			memcpy(out, text.data, text.len);
		out[text.len] = '\0';
		r = 1;
	}
	buf_fini(&text);
	return r;
}

static bool is_verb(const char *s)
{
	static const char allowed[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";

	return *s && *s != '-' && *s != '.' && !s[strspn(s, allowed)];
}

static const char *read_command(struct span body, struct order *o)
{
	char other[ORDER_VERB_MAX + 1];
	int command = member_text(body, "command", o->command, sizeof(o->command)),
	    type = member_text(body, "type", other, sizeof(other));

	if (command < 0 || type < 0)
		return "command must be a string of at most 128 bytes";
	if (!command)
		memcpy(o->command, other, sizeof(other));
	else if (type && strcmp(o->command, other) != 0)
		return "command and type differ: send one of them";
	return is_verb(o->command) ? NULL : "command must be a verb like tail_logs";
}

static const char *read_params(struct span body, struct order *o)
{
	struct json_member m, other;
	bool params = json_find(body, "params", &m), payload = json_find(body, "payload", &other);

	if (params && payload)
		return "params and payload are the same: send one of them";
	if (payload)
		m = other;
	if ((params || payload) && m.type != JSON_T_OBJ)
		return "params must be an object";
	if ((params || payload) && !command_is_params(m.raw, NULL))
		return "params may be nested 14 deep at most";
	o->params = params || payload ? span_dup(m.raw) : strdup("{}");
	return o->params ? NULL : "out of memory";
}

static const char *read_ttl(struct span body, struct order *o)
{
	struct json_member m;

	o->ttl_s = TTL_DEFAULT_S;
	if (!json_find(body, "ttl_s", &m))
		return NULL;
	if (m.type != JSON_T_INT || json_int(m.raw, &o->ttl_s) < 0 || o->ttl_s < 1 ||
	    o->ttl_s > TTL_MAX_S)
		return "ttl_s must be a whole number from 1 to 86400";
	return NULL;
}

const char *order_read(const char *agent_id, struct span body, struct order *o)
{
	const char *fault;

	memset(o, 0, sizeof(*o));
	if (!ident_is_agent_id(agent_id, strlen(agent_id)))
		return "the path names no valid agent id";
	memcpy(o->agent_id, agent_id, strlen(agent_id) + 1);
	if (member_text(body, "correlation_id", o->correlation_id, sizeof(o->correlation_id)) <=
		0 ||
	    !ident_is_correlation_id(o->correlation_id, strlen(o->correlation_id)))
		return "correlation_id is missing or does not fit "
		       "[A-Za-z0-9][A-Za-z0-9._:-]{0,127}";
	if (member_text(body, "issued_by_admin_id", o->issued_by, sizeof(o->issued_by)) < 0 ||
	    !command_is_text(span_of(o->issued_by), COMMAND_ISSUER_MAX_BYTES))
		return "issued_by_admin_id must be a string of at most 128 bytes without control "
		       "characters";
	fault = read_command(body, o);
	if (!fault)
		fault = read_ttl(body, o);
	return fault ? fault : read_params(body, o);
}

void order_fini(struct order *o)
{
	if (o->params)
		explicit_bzero(o->params, strlen(o->params)); /* may hold secrets */
	free(o->params);
	o->params = NULL;
}
