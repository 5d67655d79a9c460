/* Commands posted over HTTP: into viw.commands through one script, repeated safely by their id. */
#include "store_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

struct post {
	struct store *s;
	void (*cb)(void *arg, enum store_command_result r);
	void *arg;
};

static void on_post(void *arg, const struct redis_reply *reply)
{
	static const struct {
		const char *word;
		enum store_command_result result;
	} words[] = {{"queued", STORE_COMMAND_QUEUED},
		     {"conflict", STORE_COMMAND_CONFLICT},
		     {"offline", STORE_COMMAND_OFFLINE},
		     {"full", STORE_COMMAND_FULL}};
	struct post *p = arg;
	enum store_command_result r = STORE_COMMAND_UNAVAILABLE;

	for (size_t i = 0; i < ARRAY_LEN(words); i++)
		if (redis_type(reply) == REDIS_STR && span_eq(redis_str(reply), words[i].word))
			r = words[i].result;
	store_note_refused(p->s, STORE_REFUSED_POST, NULL, reply);
	p->cb(p->arg, r);
	free(p);
}

int store_post_command(struct store *s, const struct store_command *c,
		       void (*cb)(void *arg, enum store_command_result r), void *arg)
{
	bool run = !c->op || strcmp(c->op, "cancel");
	struct span argv[24] = {span_of(store_prefix(s)), span_of(c->agent_id),
				span_of(c->correlation_id), SPAN(""),
				c->require_connected ? SPAN("1") : SPAN("0")};
	struct span params = c->params_json ? span_of(c->params_json) : SPAN("{}");
	char digest[SHA256_HEX_LEN + 1], ttl[24], max[24];
	struct post *p;
	size_t n = 6;
	int r;

	(void)snprintf(ttl, sizeof(ttl), "%lld", (long long)c->ttl_s);
	(void)snprintf(max, sizeof(max), "%lld", (long long)c->queue_max);
	argv[5] = span_of(max);
#define ADD(name, value) (argv[n] = SPAN(name), argv[n + 1] = (value), n += 2)
	ADD("correlation_id", span_of(c->correlation_id));
	ADD("agent_id", span_of(c->agent_id));
	if (run) {
		command_digest(span_of(c->agent_id), span_of(c->command), params, digest);
		argv[3] = span_of(digest);
		ADD("command", span_of(c->command));
		ADD("params", params);
		if (c->ttl_s > 0)
			ADD("ttl_s", span_of(ttl));
	} else {
		ADD("op", SPAN("cancel"));
	}
	if (c->issued_by)
		ADD("issued_by_admin_id", span_of(c->issued_by));
#undef ADD
	if (!store_is_up(s))
		return -ENOTCONN;
	p = malloc(sizeof(*p));
	if (!p)
		return -ENOMEM;
	*p = (struct post){s, cb, arg};
	r = redis_eval(store_redis(s), script_get(SCRIPT_post), on_post, p, 0, n, argv);
	if (r < 0)
		free(p);
	return r;
}
