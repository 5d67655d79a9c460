/*
 * Scripts by their SHA-1. The arguments are kept until the answer, because only then is it known
 * whether Redis still has the script (SCRIPT FLUSH, restart, failover).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "redis_internal.h"

struct call {
	struct redis *r;
	struct redis_script *script;
	redis_cb cb;
	void *arg;
	size_t argc, bytes; /* argc with EVALSHA, sha and the number of keys */
	char keys_text[24];
	struct span argv[];
};

static void call_free(struct call *c)
{
	explicit_bzero(c, c->bytes); /* arguments may be secret */
	free(c);
}

static void on_answer(void *arg, const struct redis_reply *reply)
{
	struct call *c = arg;

	if (c->cb)
		c->cb(c->arg, reply);
	call_free(c);
}

static void on_sha_answer(void *arg, const struct redis_reply *reply)
{
	struct call *c = arg;

	if (redis_error_class(reply) == REDIS_E_NOSCRIPT) {
		c->argv[0] = SPAN("EVAL");
		c->argv[1] = span_of(c->script->body);
		if (redis_cmd(c->r, on_answer, c, c->argc, c->argv) == 0)
			return;
		reply = NULL;
	}
	on_answer(c, reply);
}

int redis_eval(struct redis *r, struct redis_script *s, redis_cb cb, void *arg, size_t keys,
	       size_t argc, const struct span *argv)
{
	size_t text = 0;
	struct call *c;
	char *at;
	int error;

	if (!s->sha1[0])
		redis_sha1_hex(s->body, strlen(s->body), s->sha1);
	for (size_t i = 0; i < argc; i++)
		text += argv[i].n;
	text += sizeof(*c) + (argc + 3) * sizeof(struct span);
	c = malloc(text);
	if (!c)
		return -ENOMEM;
	c->r = r;
	c->script = s;
	c->cb = cb;
	c->arg = arg;
	c->argc = argc + 3;
	c->bytes = text;
	(void)snprintf(c->keys_text, sizeof(c->keys_text), "%zu", keys);
	c->argv[0] = SPAN("EVALSHA");
	c->argv[1] = (struct span){s->sha1, 40};
	c->argv[2] = span_of(c->keys_text);
	at = (char *)&c->argv[c->argc];
	for (size_t i = 0; i < argc; i++) {
		if (argv[i].n)
			memcpy(at, argv[i].p, argv[i].n);
		c->argv[i + 3] = (struct span){at, argv[i].n};
		at += argv[i].n;
	}
	error = redis_cmd(r, on_sha_answer, c, c->argc, c->argv);
	if (error < 0)
		call_free(c);
	return error;
}
