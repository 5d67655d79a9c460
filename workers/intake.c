#include "intake_private.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum {
	JOIN_BELOW = 64, /* entries: larger batches share a commit anyway */
	TIMEOUT_MS = 5000,
	CLAIM_EVERY_MS = 1000,
	CLAIM_IDLE_MS = 3000, /* with the line above: a dead worker's entries within 4 s */
	COUNT_FIRST = 64,
	BYTES_GOAL = 4 << 20, /* one batch; COUNT follows what entries weigh */
	REPLY_MAX = 24 << 20, /* light entries may be followed by heavy ones; and the largest one */
};

/* ---- making and ending ---- */

static int intake_copy_names(struct intake *in, const struct intake_config *c)
{
	in->group = strdup(c->group);
	in->consumer = strdup(c->consumer);
	in->url = strdup(c->redis_url);
	if (!in->group || !in->consumer || !in->url)
		return -ENOMEM;
	for (; in->streams < INTAKE_STREAMS_MAX && c->stream[in->streams]; in->streams++) {
		in->name[in->streams] = strdup(c->stream[in->streams]);
		if (!in->name[in->streams])
			return -ENOMEM;
	}
	return 0;
}

int intake_new(const struct intake_config *c, struct intake **ret)
{
	struct intake *in = calloc(1, sizeof *in);

	if (!in)
		return -ENOMEM;
	in->c = *c;
	in->count = COUNT_FIRST < c->batch_max ? COUNT_FIRST : c->batch_max;
	in->ceiling = c->batch_max;
	int r = intake_copy_names(in, c);
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(in->reader); i++)
		r = redis_sync_new(c->redis_url, TIMEOUT_MS, &in->reader[i]);
	if (r == 0)
		r = redis_sync_new(c->redis_url, TIMEOUT_MS, &in->control);
	if (r < 0) {
		intake_free(in);
		return r;
	}
	*ret = in;
	return 0;
}

void intake_free(struct intake *in)
{
	if (!in)
		return;
	redis_sync_free(in->reader[0]);
	redis_sync_free(in->reader[1]);
	free(in->url);
	redis_sync_free(in->control);
	for (size_t i = 0; i < in->streams; i++)
		free(in->name[i]);
	free(in->group);
	free(in->consumer);
	entries_fini(&in->now);
	entries_fini(&in->next);
	free(in);
}

const char *intake_error(const struct intake *in)
{
	return in->error;
}

struct redis_sync *intake_control(struct intake *in)
{
	return in->control;
}

uint64_t intake_generation(const struct intake *in)
{
	return in->generation;
}

const char *intake_stream_name(const struct intake *in, unsigned stream)
{
	return in->name[stream];
}

size_t intake_streams(const struct intake *in)
{
	return in->streams;
}

const char *intake_group(const struct intake *in)
{
	return in->group;
}

void intake_limit(struct intake *in, size_t n)
{
	in->ceiling = n ? n : 1;
	if (in->count > in->ceiling)
		in->count = in->ceiling;
}

uint64_t intake_take_lost(struct intake *in, unsigned stream)
{
	uint64_t n = in->lost[stream];

	in->lost[stream] = 0;
	return n;
}

/* ---- failures ---- */

int intake_fail(struct intake *in, struct redis_sync *r, int error)
{
	snprintf(in->error, sizeof in->error, "%s", redis_sync_error(r));
	in->ready = false;
	/* What was delivered is read again as our own pending entries, one by one at first. */
	if (error == -EMSGSIZE) {
		in->careful = in->count == 1 ? in->streams : 0;
		in->count = 1;
	}
	return error ? error : -EIO;
}

/* An error reply: NOGROUP makes the groups anew, anything else is told and tried again. */
int intake_refused(struct intake *in, const struct redis_reply *reply)
{
	struct span text = redis_str(reply);

	snprintf(in->error, sizeof in->error, SPAN_FMT, SPAN_ARG(text));
	in->ready = false;
	return -EAGAIN;
}

/* ---- groups ---- */

static int intake_make_group(struct intake *in, unsigned i)
{
	const struct span argv[] = {SPAN("XGROUP"),	SPAN("CREATE"), span_of(in->name[i]),
				    span_of(in->group), SPAN("0"),	SPAN("MKSTREAM")};
	int error;
	const struct redis_reply *reply =
	    redis_sync_cmd(in->control, &error, ARRAY_LEN(argv), argv);

	if (!reply)
		return intake_fail(in, in->control, error);
	enum redis_error_class c = redis_error_class(reply);
	return c == REDIS_E_NONE || c == REDIS_E_BUSYGROUP ? 0 : intake_refused(in, reply);
}

static int intake_drop_ahead(struct intake *in);

static int intake_prepare(struct intake *in)
{
	int dropped = intake_drop_ahead(in);

	if (dropped < 0)
		return dropped;
	for (unsigned i = 0; i < in->streams; i++) {
		int r = intake_make_group(in, i);
		if (r < 0)
			return r;
	}
	for (unsigned i = 0; i < in->streams; i++) {
		in->own_pending[i] = true;
		snprintf(in->own_from[i], sizeof in->own_from[i], "0-0");
		snprintf(in->claim_cursor_text[i], sizeof in->claim_cursor_text[i], "0-0");
	}
	in->ready = true;
	in->generation++;
	return 0;
}

/* ---- taking entries out of replies ---- */

static int intake_stream_index(const struct intake *in, struct span name)
{
	for (size_t i = 0; i < in->streams; i++)
		if (span_eq(name, in->name[i]))
			return (int)i;
	return -EBADMSG;
}

/* ret_seen[i]: stream i gave entries. */
static int intake_take_streams(struct intake *in, struct entries *l,
			       const struct redis_reply *reply, bool *ret_seen)
{
	for (size_t i = 0; i < redis_len(reply); i++) {
		const struct redis_reply *pair = redis_at(reply, i);
		int at = intake_stream_index(in, redis_str(redis_at(pair, 0)));
		if (at < 0)
			return at;
		const struct redis_reply *entries = redis_at(pair, 1);
		int r = entries_take(l, (unsigned)at, entries, &in->lost[at]);
		if (r < 0)
			return r;
		ret_seen[at] = redis_len(entries) > 0;
	}
	return 0;
}

/* ---- reading ---- */

/* COUNT follows what entries weigh, so that memory does not depend on what agents send: down at
 * once, up fourfold at most and only while reads come back full. */
static void intake_adapt(struct intake *in, bool full)
{
	size_t fit = BYTES_GOAL / (in->now.bytes / in->now.n + 1) + 1;

	if (full && in->ceiling < in->c.batch_max)
		in->ceiling += in->ceiling / 32 + 1;
	if (fit > in->ceiling)
		fit = in->ceiling;
	if (fit < in->count)
		in->count = fit;
	else if (full)
		in->count = in->count * 4 < fit ? in->count * 4 : fit;
}

enum { READ_WORDS = 9 + 2 * INTAKE_STREAMS_MAX };
struct read_command {
	struct span argv[READ_WORDS];
	size_t n;
	char count[24], block[24];
};

/* Own: the consumer's own pending entries, once through: what of them stays pending comes again by
 * XAUTOCLAIM, and must not keep new ones waiting. Else new ones. block_ms 0: do not wait. */
static void intake_read_command(const struct intake *in, bool own, int64_t block_ms,
				struct read_command *c)
{
	snprintf(c->count, sizeof c->count, "%zu", in->count);
	snprintf(c->block, sizeof c->block, "%lld", (long long)block_ms);
	c->n = 0;
	c->argv[c->n++] = SPAN("XREADGROUP");
	c->argv[c->n++] = SPAN("GROUP");
	c->argv[c->n++] = span_of(in->group);
	c->argv[c->n++] = span_of(in->consumer);
	c->argv[c->n++] = SPAN("COUNT");
	c->argv[c->n++] = span_of(c->count);
	if (block_ms > 0) {
		c->argv[c->n++] = SPAN("BLOCK");
		c->argv[c->n++] = span_of(c->block);
	}
	c->argv[c->n++] = SPAN("STREAMS");
	for (size_t i = 0; i < in->streams; i++)
		c->argv[c->n++] = span_of(in->name[i]);
	for (size_t i = 0; i < in->streams; i++)
		c->argv[c->n++] = own ? span_of(in->own_from[i]) : SPAN(">");
}

/* Under load the next batch is asked for while this one is written. */
static void intake_ask_ahead(struct intake *in)
{
	struct redis_sync *r = in->reader[!in->at];
	struct read_command c;

	intake_read_command(in, false, 0, &c);
	redis_sync_set_timeout(r, TIMEOUT_MS);
	redis_sync_set_reply_max(r, REPLY_MAX);
	/* A failure shows when it is asked again. */
	in->ahead = redis_sync_send(r, c.n, c.argv) == 0 ? AHEAD_ASKED : AHEAD_NONE;
}

/* What it comes to is kept for the read that would have asked. */
static void intake_answered_ahead(struct intake *in, int error)
{
	bool seen[INTAKE_STREAMS_MAX] = {0};

	in->ahead = AHEAD_ANSWERED;
	in->ahead_error = error;
	if (error < 0)
		in->ahead_reply = NULL;
	entries_clear(&in->next, 0);
	if (redis_type(in->ahead_reply) == REDIS_ARR &&
	    intake_take_streams(in, &in->next, in->ahead_reply, seen) == 0)
		in->next.serial = ++in->serial;
}

int intake_look_ahead(struct intake *in, struct intake_batch *ret, int *ret_fd)
{
	if (in->ahead == AHEAD_ASKED) {
		struct redis_sync *r = in->reader[!in->at];
		int got = redis_sync_take(r, &in->ahead_reply);
		if (got == -EAGAIN)
			*ret_fd = redis_sync_fd(r);
		if (got == 0 || got == -EAGAIN)
			return got;
		intake_answered_ahead(in, got < 0 ? got : 0);
	}
	if (in->ahead != AHEAD_ANSWERED || !in->next.serial)
		return -ENOENT;
	*ret = (struct intake_batch){.item = in->next.item,
				     .n = in->next.n,
				     .bytes = in->next.bytes,
				     .serial = in->next.serial};
	return 1;
}

/* An answer nobody will read must not be taken for the next one. */
static int intake_drop_ahead(struct intake *in)
{
	if (in->ahead == AHEAD_NONE)
		return 0;
	entries_clear(&in->next, 0);
	redis_sync_free(in->reader[!in->at]);
	in->reader[!in->at] = NULL;
	int r = redis_sync_new(in->url, TIMEOUT_MS, &in->reader[!in->at]);
	in->ahead_reply = NULL;
	in->ahead_error = r;
	in->ahead = r < 0 ? AHEAD_ANSWERED : AHEAD_NONE; /* tried again before anything is read */
	return r;
}

static const struct redis_reply *intake_ask(struct intake *in, bool own, int64_t block_ms,
					    int *ret_error)
{
	struct read_command c;

	if (!own && in->ahead != AHEAD_NONE) {
		if (in->ahead == AHEAD_ASKED) {
			int error;
			in->ahead_reply = redis_sync_receive(in->reader[!in->at], &error);
			intake_answered_ahead(in, error);
		}
		in->at = !in->at;
		in->ahead = AHEAD_NONE;
		*ret_error = in->ahead_error;
		return in->ahead_reply;
	}
	intake_read_command(in, own, own ? 0 : block_ms > 0 ? block_ms : 1, &c);
	redis_sync_set_timeout(in->reader[in->at], TIMEOUT_MS + block_ms);
	redis_sync_set_reply_max(in->reader[in->at], REPLY_MAX);
	return redis_sync_cmd(in->reader[in->at], ret_error, c.n, c.argv);
}

static int intake_read_group(struct intake *in, bool own, int64_t block_ms)
{
	bool seen[INTAKE_STREAMS_MAX] = {0};
	int error;
	const struct redis_reply *reply = intake_ask(in, own, block_ms, &error);

	if (!reply)
		return intake_fail(in, in->reader[in->at], error);
	if (redis_type(reply) == REDIS_ERR)
		return intake_refused(in, reply);
	int r = 0;
	if (in->next.serial && !own) {
		struct entries used = in->now;
		in->now = in->next;
		in->next = used;
		entries_clear(&in->next, 0);
	} else {
		r = intake_take_streams(in, &in->now, reply, seen);
	}
	if (r < 0)
		return r;
	for (size_t i = 0; own && i < in->streams; i++)
		in->own_pending[i] = seen[i];
	for (size_t i = 0; own && i < in->now.n; i++) {
		char *from = in->own_from[in->now.item[i].stream];
		if (span_copy(in->now.item[i].e.id, from, sizeof in->own_from[0]) < 0)
			return -EBADMSG;
	}
	in->fresh = !own;
	return 0;
}

/* The entry of ours behind own_from is larger than one answer may be: of it only the id is taken.
 */
static int intake_take_large(struct intake *in, unsigned i)
{
	char from[sizeof in->own_from[0] + 1];
	int error;

	snprintf(from, sizeof from, "(%s", in->own_from[i]);
	const struct span argv[] = {
	    SPAN("XPENDING"), span_of(in->name[i]), span_of(in->group), span_of(from), SPAN("+"),
	    SPAN("1"),	      span_of(in->consumer)};
	const struct redis_reply *reply =
	    redis_sync_cmd(in->control, &error, ARRAY_LEN(argv), argv);
	if (!reply)
		return intake_fail(in, in->control, error);
	if (redis_type(reply) == REDIS_ERR)
		return intake_refused(in, reply);
	struct span id = redis_str(redis_at(redis_at(reply, 0), 0));
	if (!id.n) /* gone meanwhile */
		return 0;
	if (span_copy(id, in->own_from[i], sizeof in->own_from[i]) < 0)
		return -EBADMSG;
	return entries_take_large(&in->now, i, span_of(in->own_from[i]));
}

static int intake_read_careful(struct intake *in)
{
	while (in->careful) {
		unsigned i = (unsigned)(in->streams - in->careful--);
		const struct span argv[] = {
		    SPAN("XREADGROUP"),	   SPAN("GROUP"),	 span_of(in->group),
		    span_of(in->consumer), SPAN("COUNT"),	 SPAN("1"),
		    SPAN("STREAMS"),	   span_of(in->name[i]), span_of(in->own_from[i])};
		bool seen[INTAKE_STREAMS_MAX] = {0};
		int error;
		if (!in->own_pending[i])
			continue;
		redis_sync_set_timeout(in->reader[in->at], TIMEOUT_MS);
		redis_sync_set_reply_max(in->reader[in->at], REPLY_MAX);
		const struct redis_reply *reply =
		    redis_sync_cmd(in->reader[in->at], &error, ARRAY_LEN(argv), argv);
		if (!reply && error == -EMSGSIZE)
			return intake_take_large(in, i);
		if (!reply)
			return intake_fail(in, in->reader[in->at], error);
		if (redis_type(reply) == REDIS_ERR)
			return intake_refused(in, reply);
		int r = intake_take_streams(in, &in->now, reply, seen);
		if (r < 0)
			return r;
		in->own_pending[i] = seen[i];
		if (in->now.n)
			return span_copy(in->now.item[0].e.id, in->own_from[i],
					 sizeof in->own_from[i]) < 0
				   ? -EBADMSG
				   : 0;
	}
	return 0;
}

static bool intake_has_own_pending(const struct intake *in)
{
	for (size_t i = 0; i < in->streams; i++)
		if (in->own_pending[i])
			return true;
	return false;
}

static int intake_claim(struct intake *in, unsigned i)
{
	char idle[24], count[24];
	int error;

	snprintf(idle, sizeof idle, "%d", CLAIM_IDLE_MS);
	snprintf(count, sizeof count, "%zu", in->count);
	const struct span argv[] = {SPAN("XAUTOCLAIM"), span_of(in->name[i]),
				    span_of(in->group), span_of(in->consumer),
				    span_of(idle),	span_of(in->claim_cursor_text[i]),
				    SPAN("COUNT"),	span_of(count)};
	redis_sync_set_timeout(in->reader[in->at], 0);
	redis_sync_set_reply_max(in->reader[in->at], REPLY_MAX);
	const struct redis_reply *reply =
	    redis_sync_cmd(in->reader[in->at], &error, ARRAY_LEN(argv), argv);
	if (!reply)
		return intake_fail(in, in->reader[in->at], error);
	if (redis_type(reply) == REDIS_ERR)
		return intake_refused(in, reply);
	if (span_copy(redis_str(redis_at(reply, 0)), in->claim_cursor_text[i],
		      sizeof in->claim_cursor_text[i]) < 0)
		return -EBADMSG;
	/* Redis drops deleted ones from the pending list itself and names them third. */
	in->lost[i] += redis_len(redis_at(reply, 2));
	return entries_take(&in->now, i, redis_at(reply, 1), &in->lost[i]);
}

/* One stream a call, until one gives entries or all were asked; the cursor walks on in the next
 * round, so that entries that are not idle enough do not hide others. */
static int intake_claim_round(struct intake *in)
{
	while (in->claim_next < in->streams) {
		unsigned i = in->claim_next++;
		int r = intake_claim(in, i);
		if (r < 0 || in->now.n)
			return r;
	}
	in->claim_next = 0;
	in->claim_at_ms = clock_boot_ms() + CLAIM_EVERY_MS;
	return 0;
}

static int intake_fill(struct intake *in, int64_t block_ms)
{
	int r = in->ready ? 0 : intake_prepare(in);

	if (r == 0 && in->careful)
		r = intake_read_careful(in);
	if (r == 0 && in->now.n == 0 && intake_has_own_pending(in))
		r = intake_read_group(in, true, 0);
	if (r == 0 && in->now.n == 0 && clock_boot_ms() >= in->claim_at_ms)
		r = intake_claim_round(in);
	if (r == 0 && in->now.n == 0)
		r = intake_read_group(in, false, block_ms);
	return r;
}

/* What follows an entry of the first stream at once (an offer, an answer) shares its transaction:
 * one commit instead of two, and the answer does not wait for the first. The other reader's reply
 * is kept beside it. */
static int intake_join(struct intake *in, bool *ret_joined)
{
	bool first = false;

	for (size_t i = 0; i < in->now.n; i++)
		first = first || in->now.item[i].stream == 0;
	if (!in->c.join_ms || !in->fresh || !first || in->now.n >= JOIN_BELOW ||
	    in->now.n >= in->count || in->count < in->c.batch_max || in->ahead != AHEAD_NONE)
		return 0; /* nothing, enough, or as much as may be: more was too much (intake_limit)
			   */
	*ret_joined = true;
	(void)poll(NULL, 0, (int)in->c.join_ms);
	in->at = !in->at;
	return intake_read_group(in, false, 0);
}

int intake_read(struct intake *in, int64_t block_ms, struct intake_batch *ret)
{
	entries_clear(&in->now, ++in->serial);
	in->fresh = false;
	bool joined = false;
	int r = intake_fill(in, block_ms);
	if (r == 0)
		r = intake_join(in, &joined);
	/* Too much at once, then by COUNT 1 of each stream, then by one stream. */
	for (int less = 0; r == -EMSGSIZE && less < 2; less++) {
		entries_clear(&in->now, ++in->serial);
		r = intake_fill(in, block_ms);
	}
	if (r < 0) {
		entries_clear(&in->now, 0);
		if (r == -EBADMSG)
			snprintf(in->error, sizeof in->error, "not the answer of a stream command");
		return r;
	}
	/* Asking ahead needs a reader whose reply is not in use. */
	bool full = in->now.n >= in->count && !joined;
	*ret = (struct intake_batch){.item = in->now.item,
				     .n = in->now.n,
				     .bytes = in->now.bytes,
				     .serial = in->now.serial,
				     .full = full};
	if (in->now.n)
		intake_adapt(in, full);
	if (full && in->fresh && in->ahead == AHEAD_NONE)
		intake_ask_ahead(in);
	in->kept_at_ms = clock_boot_ms();
	return 0;
}
