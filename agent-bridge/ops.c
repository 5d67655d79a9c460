/* See ops.h. */
#include "ops.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct op {
	struct op *next, *prev;
	struct op_list *in;
	struct ops *q;
	redis_cb done;
	void *arg;
	enum script script;
	size_t argc, bytes;
	struct span argv[];
};

static void put(struct op *o, struct op_list *l)
{
	o->in = l;
	o->next = NULL;
	o->prev = l->last;
	if (l->last)
		l->last->next = o;
	else
		l->first = o;
	l->last = o;
}

static void take(struct op *o)
{
	if (o->prev)
		o->prev->next = o->next;
	else
		o->in->first = o->next;
	if (o->next)
		o->next->prev = o->prev;
	else
		o->in->last = o->prev;
	o->in = NULL;
}

static void op_free(struct op *o)
{
	o->q->count--;
	o->q->bytes -= o->bytes;
	explicit_bzero(o, o->bytes);
	free(o);
}

void ops_init(struct ops *q, size_t max_bytes)
{
	memset(q, 0, sizeof(*q));
	q->max_bytes = max_bytes;
}

static void end(struct op *o, const struct redis_reply *reply)
{
	struct ops *q = o->q;
	redis_cb done = o->done;
	void *arg = o->arg;

	take(o);
	op_free(o);
	if (done)
		done(arg, reply);
	if (reply && !q->closed && q->on_answer)
		q->on_answer(q->arg);
}

void ops_fini(struct ops *q)
{
	struct op_list *lists[] = {&q->flying, &q->again, &q->fresh};

	q->closed = true;
	for (size_t i = 0; i < ARRAY_LEN(lists); i++)
		while (lists[i]->first)
			end(lists[i]->first, NULL);
}

int ops_add(struct ops *q, enum script script, size_t argc, const struct span *argv, redis_cb done,
	    void *arg)
{
	size_t bytes = sizeof(struct op) + argc * sizeof(struct span);
	struct op *o;
	char *at;

	for (size_t i = 0; i < argc; i++)
		bytes += argv[i].n;
	if (q->closed || q->bytes + bytes > q->max_bytes)
		return -ENOBUFS;
	o = malloc(bytes);
	if (!o)
		return -ENOMEM;
	*o = (struct op){
	    .q = q, .done = done, .arg = arg, .script = script, .argc = argc, .bytes = bytes};
	at = (char *)&o->argv[argc];
	for (size_t i = 0; i < argc; i++) {
		if (argv[i].n)
			memcpy(at, argv[i].p, argv[i].n);
		o->argv[i] = (struct span){at, argv[i].n};
		at += argv[i].n;
	}
	q->count++;
	q->bytes += bytes;
	put(o, &q->fresh);
	return 0;
}

static void on_answer(void *arg, const struct redis_reply *reply)
{
	struct op *o = arg;
	enum redis_error_class c = redis_error_class(reply);

	if (o->q->closed)
		return; /* ops_fini has told its owner */
	if (!reply || redis_error_is_passing(c)) {
		/* Answers come in the order of sending, so `again` stays in order. */
		take(o);
		put(o, &o->q->again);
		if (reply && o->q->on_passing)
			o->q->on_passing(o->q->arg, c);
		return;
	}
	if (c != REDIS_E_NONE)
		LOG_ERROR(FIELDS(.event = "redis_refused", .error = redis_str(reply).p),
			  "Redis refuses a write for good; it is dropped");
	end(o, reply);
}

static int send_op(struct ops *q, struct op *o)
{
	if (o->script == SCRIPT_NONE)
		return redis_cmd(q->redis, on_answer, o, o->argc, o->argv);
	return redis_eval(q->redis, script_get(o->script), on_answer, o, 0, o->argc, o->argv);
}

void ops_pump(struct ops *q, size_t max)
{
	while (max-- && redis_is_up(q->redis)) {
		struct op *o = q->again.first ? q->again.first : q->fresh.first;

		if (!o || send_op(q, o) < 0)
			return;
		take(o);
		put(o, &q->flying);
	}
}
