/*
 * A RESULT on its way: LOOKUP (whose command is it, with which parameters) → masking → RESULT →
 * on_result_stored. Both steps are kept until Redis answers, and both may be repeated: an id that
 * is finished stays as it is.
 */
#include "dispatch_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/crash.h"
#include "masking.h"

#define RESULTS_MAX_BYTES     ((size_t)32 << 20)
#define DEAD_LETTER_MAX_BYTES 4096
#define DEAD_LETTERS_A_MINUTE 128 /* of one agent: twice what our own can hold unacknowledged */

struct result {
	struct dispatch *d;
	uint64_t sid, epoch;
	char agent[AGENT_ID_MAX + 1], cid[CORRELATION_ID_MAX + 1];
	struct buf frame; /* as received, in our own encoding; later masked */
	size_t counted;
};

static void result_free(struct result *x)
{
	struct dispatch *d = x->d;

	d->result_bytes -= x->counted;
	buf_wipe(&x->frame);
	buf_fini(&x->frame);
	free(x);
	dispatch_unhold(d);
}

static void result_end(struct result *x, enum dispatch_result_fate fate, int64_t left)
{
	struct dispatch *d = x->d;
	struct holding *s = d->closed ? NULL : dispatch_find(d, x->sid);

	if (!d->closed) {
		CRASH_POINT("dispatch.after_result");
		if (s) {
			if (fate != DISPATCH_RESULT_NOT_YOURS)
				dispatch_slot_remove(d, s, x->cid);
			if (left >= 0)
				dispatch_set_left(d, s, (uint64_t)left);
			/* Fewer left than sent: some ended elsewhere; a full OFFER says which. */
			if (s->left != s->slots)
				dispatch_want_offer(d, s, s->left < s->slots);
		}
		d->ops->on_result_stored(d->arg, x->sid, x->cid, fate);
	}
	result_free(x);
}

/* The frame goes into the dead letter without its output: nothing says what in it is secret.
 * false: the agent has used up its dead letters for now. By agent, so that a new connection of it
 * brings no new ones. */
static bool dead_letter(struct result *x, const struct wire_result *r, const char *reason)
{
	struct dispatch *d = x->d;
	struct buf masked;

	if (ratelimit_take(d->dead_letters, x->agent, strlen(x->agent), DEAD_LETTERS_A_MINUTE,
			   loop_now_ms(d->loop)))
		return false;
	buf_init(&masked, DEAD_LETTER_MAX_BYTES);
	if (masking_apply(d->verbs, r, false, (struct span){0}, (struct span){0}, &masked) == 0)
		store_dead_letter(d->store, "command_results", span_of(x->cid), reason,
				  (struct span){masked.data, masked.len});
	buf_fini(&masked);
	return true;
}

static void on_result(void *arg, const struct redis_reply *reply)
{
	static const struct {
		const char *word;
		enum dispatch_result_fate fate;
	} words[] = {{"stored", DISPATCH_RESULT_STORED},
		     {"finished", DISPATCH_RESULT_AGAIN},
		     {"not_yours", DISPATCH_RESULT_NOT_YOURS},
		     {"unknown", DISPATCH_RESULT_UNKNOWN}};
	struct result *x = arg;
	struct span word = redis_str(redis_at(reply, 0));

	for (size_t i = 0; i < ARRAY_LEN(words); i++)
		if (span_eq(word, words[i].word)) {
			result_end(x, words[i].fate, redis_int(redis_at(reply, 1)));
			return;
		}
	result_free(x); /* not acknowledged: the agent will send it again */
}

static void store_masked(struct result *x, const struct wire_result *r,
			 const struct redis_reply *reply)
{
	struct dispatch *d = x->d;
	char epoch[24];
	struct span argv[] = {span_of(d->cfg.prefix),	 span_of(x->agent),
			      span_of(x->cid),		 {0},
			      span_of(d->cfg.bridge_id), {0},
			      store_now_text(d->store)};
	struct buf masked;
	int error;

	buf_init(&masked, 2 * x->frame.max);
	error =
	    masking_apply(d->verbs, r, span_eq(redis_str(redis_at(reply, 0)), "open"),
			  redis_str(redis_at(reply, 1)), redis_str(redis_at(reply, 2)), &masked);
	(void)snprintf(epoch, sizeof(epoch), "%" PRIu64, x->epoch);
	argv[3] = (struct span){masked.data, masked.len};
	argv[5] = span_of(epoch);
	CRASH_POINT("dispatch.before_result");
	if (error == 0)
		error =
		    store_keep_script(d->store, SCRIPT_result, ARRAY_LEN(argv), argv, on_result, x);
	if (error == 0)
		d->ops->on_result_masked(d->arg, x->sid, argv[3]);
	else
		LOG_ERROR(FIELDS(.event = "result", .agent_id = x->agent, .correlation_id = x->cid,
				 .error = strerror(-error)),
			  "a result cannot be stored now; the agent will send it again");
	buf_fini(&masked);
	if (error < 0)
		result_free(x);
}

static void on_lookup(void *arg, const struct redis_reply *reply)
{
	struct result *x = arg;
	struct span word = redis_str(redis_at(reply, 0));
	struct wire_refusal_info info;
	struct wire_frame f;

	if (!reply || x->d->closed ||
	    wire_decode(x->d->decoder, WIRE_FROM_AGENT, x->frame.data, x->frame.len, &f, &info) !=
		WIRE_OK) {
		result_free(x);
		return;
	}
	if (span_eq(word, "finished")) {
		result_end(x, DISPATCH_RESULT_AGAIN, -1);
	} else if (span_eq(word, "not_yours")) {
		(void)dead_letter(x, &f.result, "not_yours");
		result_end(x, DISPATCH_RESULT_NOT_YOURS, -1);
	} else if (span_eq(word, "unknown")) {
		result_end(x,
			   dead_letter(x, &f.result, "unknown_command") ? DISPATCH_RESULT_UNKNOWN
									: DISPATCH_RESULT_TOO_MANY,
			   -1);
	} else if (word.p) {
		store_masked(x, &f.result, reply);
	} else {
		result_free(x); /* refused for good: logged, not acknowledged */
	}
}

int dispatch_result(struct dispatch *d, uint64_t sid, const struct wire_result *r)
{
	struct wire_frame f = {.type = WIRE_RESULT, .result = *r};
	struct holding *s = dispatch_find(d, sid);
	struct span argv[3] = {span_of(d->cfg.prefix)};
	struct result *x;
	int error;

	if (!s || !s->owner)
		return 0; /* nobody to acknowledge to: it will come again */
	if (d->result_bytes > RESULTS_MAX_BYTES)
		return -ENOBUFS;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOBUFS;
	dispatch_hold(d);
	x->d = d;
	x->sid = sid;
	x->epoch = s->epoch;
	buf_init(&x->frame, DISPATCH_RESULT_MAX_BYTES);
	(void)snprintf(x->agent, sizeof(x->agent), "%s", s->agent);
	error = span_copy(r->correlation_id, x->cid, sizeof(x->cid));
	if (error == 0)
		error = wire_encode(&f, &x->frame);
	if (error == 0) {
		argv[1] = span_of(x->agent);
		argv[2] = span_of(x->cid);
		error = store_keep_script(d->store, SCRIPT_lookup, 3, argv, on_lookup, x);
	}
	if (error < 0) {
		result_free(x);
		return -ENOBUFS;
	}
	x->counted = sizeof(*x) + x->frame.cap;
	d->result_bytes += x->counted;
	return 0;
}
