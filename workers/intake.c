#include "intake.h"

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
	KEEP_EVERY_MS = 1000,
	COUNT_FIRST = 64,
	BYTES_GOAL = 4 << 20, /* one batch; COUNT follows what entries weigh */
	REPLY_MAX = 24 << 20, /* of more than one entry: light ones may be followed by heavy ones */
};

struct intake {
	struct intake_config c;
	char *name[INTAKE_STREAMS_MAX], *group, *consumer, *url;
	size_t streams;
	struct redis_sync *reader[2]; /* the batch's entries live in reader[at]'s last reply */
	unsigned at;
	bool ahead; /* the other reader was asked for the next batch and has not been read */
	struct redis_sync *control;
	bool ready;			      /* groups exist */
	bool fresh;			      /* the batch is of new entries */
	bool own_pending[INTAKE_STREAMS_MAX]; /* more of our own is still to be read, behind
						 own_from */
	char own_from[INTAKE_STREAMS_MAX][48];
	char claim_cursor_text[INTAKE_STREAMS_MAX][48];
	int64_t claim_at_ms;
	unsigned claim_next;
	int64_t kept_at_ms;
	size_t count, ceiling; /* entries of a read; ceiling: what the database bears */
	struct intake_entry *item;
	size_t n, cap, bytes;
	uint64_t lost[INTAKE_STREAMS_MAX];
	uint64_t generation;
	char error[240];
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
	free(in->item);
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

static int intake_fail(struct intake *in, struct redis_sync *r, int error)
{
	snprintf(in->error, sizeof in->error, "%s", redis_sync_error(r));
	in->ready = false;
	/* What was delivered is read again as our own pending entries, one by one at first. */
	if (error == -EMSGSIZE)
		in->count = 1;
	return error ? error : -EIO;
}

/* An error reply: NOGROUP makes the groups anew, anything else is told and tried again. */
static int intake_refused(struct intake *in, const struct redis_reply *reply)
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

static size_t entry_bytes(const struct stream_entry *e)
{
	size_t bytes = e->id.n;

	for (size_t i = 0; i < redis_len(e->fields); i++)
		bytes += redis_str(redis_at(e->fields, i)).n;
	return bytes;
}

static int intake_push(struct intake *in, unsigned stream, const struct stream_entry *e)
{
	if (in->n == in->cap) {
		size_t cap = in->cap ? in->cap * 2 : 256;
		struct intake_entry *larger = realloc(in->item, cap * sizeof *larger);
		if (!larger)
			return -ENOMEM;
		in->item = larger;
		in->cap = cap;
	}
	in->item[in->n++] = (struct intake_entry){.stream = stream, .e = *e};
	return 0;
}

/* An entry without a body was trimmed or deleted while pending. It is acknowledged with the batch
 * and counted: that is data nobody stored. */
static int intake_take_entries(struct intake *in, unsigned stream,
			       const struct redis_reply *entries)
{
	for (size_t i = 0; i < redis_len(entries); i++) {
		struct stream_entry e;
		if (stream_entry_parse(redis_at(entries, i), &e) < 0)
			return -EBADMSG;
		if (!e.fields)
			in->lost[stream]++;
		else
			in->bytes += entry_bytes(&e);
		int r = intake_push(in, stream, &e);
		if (r < 0)
			return r;
	}
	return 0;
}

static int intake_stream_index(const struct intake *in, struct span name)
{
	for (size_t i = 0; i < in->streams; i++)
		if (span_eq(name, in->name[i]))
			return (int)i;
	return -EBADMSG;
}

static int intake_take_streams(struct intake *in, const struct redis_reply *reply, bool *seen)
{
	for (size_t i = 0; i < redis_len(reply); i++) {
		const struct redis_reply *pair = redis_at(reply, i);
		int at = intake_stream_index(in, redis_str(redis_at(pair, 0)));
		if (at < 0)
			return at;
		const struct redis_reply *entries = redis_at(pair, 1);
		int r = intake_take_entries(in, (unsigned)at, entries);
		if (r < 0)
			return r;
		seen[at] = redis_len(entries) > 0;
	}
	return 0;
}

/* ---- reading ---- */

/* COUNT follows what entries weigh, so that memory does not depend on what agents send: down at
 * once, up fourfold at most and only while reads come back full. */
static void intake_adapt(struct intake *in, bool full)
{
	size_t fit = BYTES_GOAL / (in->bytes / in->n + 1) + 1;

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
	in->ahead = redis_sync_send(r, c.n, c.argv) == 0;
}

/* An answer nobody will read must not be taken for the next one. */
static int intake_drop_ahead(struct intake *in)
{
	if (!in->ahead)
		return 0;
	redis_sync_free(in->reader[!in->at]);
	in->reader[!in->at] = NULL;
	int r = redis_sync_new(in->url, TIMEOUT_MS, &in->reader[!in->at]);
	in->ahead = r < 0; /* tried again before anything is read */
	return r;
}

static const struct redis_reply *intake_ask(struct intake *in, bool own, int64_t block_ms,
					    int *ret_error)
{
	struct read_command c;

	if (!own && in->ahead) {
		in->at = !in->at;
		in->ahead = false;
		return redis_sync_receive(in->reader[in->at], ret_error);
	}
	intake_read_command(in, own, own ? 0 : block_ms > 0 ? block_ms : 1, &c);
	redis_sync_set_timeout(in->reader[in->at], TIMEOUT_MS + block_ms);
	redis_sync_set_reply_max(in->reader[in->at], in->count > 1 ? REPLY_MAX : 0);
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
	int r = intake_take_streams(in, reply, seen);
	if (r < 0)
		return r;
	for (size_t i = 0; own && i < in->streams; i++)
		in->own_pending[i] = seen[i];
	for (size_t i = 0; own && i < in->n; i++) {
		char *from = in->own_from[in->item[i].stream];
		if (span_copy(in->item[i].e.id, from, sizeof in->own_from[0]) < 0)
			return -EBADMSG;
	}
	in->fresh = !own;
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
	redis_sync_set_reply_max(in->reader[in->at], in->count > 1 ? REPLY_MAX : 0);
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
	return intake_take_entries(in, i, redis_at(reply, 1));
}

/* One stream a call, until one gives entries or all were asked; the cursor walks on in the next
 * round, so that entries that are not idle enough do not hide others. */
static int intake_claim_round(struct intake *in)
{
	while (in->claim_next < in->streams) {
		unsigned i = in->claim_next++;
		int r = intake_claim(in, i);
		if (r < 0 || in->n)
			return r;
	}
	in->claim_next = 0;
	in->claim_at_ms = clock_boot_ms() + CLAIM_EVERY_MS;
	return 0;
}

static int intake_fill(struct intake *in, int64_t block_ms)
{
	int r = in->ready ? 0 : intake_prepare(in);

	if (r == 0 && intake_has_own_pending(in))
		r = intake_read_group(in, true, 0);
	if (r == 0 && in->n == 0 && clock_boot_ms() >= in->claim_at_ms)
		r = intake_claim_round(in);
	if (r == 0 && in->n == 0)
		r = intake_read_group(in, false, block_ms);
	return r;
}

/* What follows an entry of the first stream at once (an offer, an answer) shares its transaction:
 * one commit instead of two, and the answer does not wait for the first. The other reader's reply
 * is kept beside it. */
static int intake_join(struct intake *in, bool *ret_joined)
{
	bool first = false;

	for (size_t i = 0; i < in->n; i++)
		first = first || in->item[i].stream == 0;
	if (!in->c.join_ms || !in->fresh || !first || in->n >= JOIN_BELOW || in->n >= in->count ||
	    in->count < in->c.batch_max || in->ahead)
		return 0; /* nothing, enough, or as much as may be: more was too much (intake_limit)
			   */
	*ret_joined = true;
	(void)poll(NULL, 0, (int)in->c.join_ms);
	in->at = !in->at;
	return intake_read_group(in, false, 0);
}

int intake_read(struct intake *in, int64_t block_ms, struct intake_batch *ret)
{
	in->n = 0;
	in->bytes = 0;
	in->fresh = false;
	bool joined = false;
	int r = intake_fill(in, block_ms);
	if (r == 0)
		r = intake_join(in, &joined);
	if (r == -EMSGSIZE) {
		in->n = 0;
		r = intake_fill(in, block_ms);
	}
	if (r < 0) {
		in->n = 0;
		if (r == -EBADMSG)
			snprintf(in->error, sizeof in->error, "not the answer of a stream command");
		return r;
	}
	/* Asking ahead needs a reader whose reply is not in use. */
	bool full = in->n >= in->count && !joined;
	*ret =
	    (struct intake_batch){.item = in->item, .n = in->n, .bytes = in->bytes, .full = full};
	if (in->n)
		intake_adapt(in, full);
	if (full && in->fresh && !in->ahead)
		intake_ask_ahead(in);
	in->kept_at_ms = clock_boot_ms();
	return 0;
}

/* ---- afterwards ---- */

/* Runs `words… id id id` for the entries of each stream, 500 ids a command. */
static int intake_for_ids(struct intake *in, const struct intake_batch *b, bool ack)
{
	enum { IDS = 500, WORDS = 6 };
	struct span argv[WORDS + IDS + 1];
	int error;

	for (unsigned s = 0; s < in->streams; s++) {
		size_t i = 0;
		while (i < b->n) {
			size_t n = 0, first;
			argv[n++] = ack ? SPAN("XACK") : SPAN("XCLAIM");
			argv[n++] = span_of(in->name[s]);
			argv[n++] = span_of(in->group);
			if (!ack) {
				argv[n++] = span_of(in->consumer);
				argv[n++] = SPAN("0");
			}
			first = n;
			for (; i < b->n && n < first + IDS; i++)
				if (b->item[i].stream == s)
					argv[n++] = b->item[i].e.id;
			if (n == first)
				break;
			if (!ack)
				argv[n++] = SPAN("JUSTID");
			const struct redis_reply *reply =
			    redis_sync_cmd(in->control, &error, n, argv);
			if (!reply)
				return intake_fail(in, in->control, error);
			if (redis_type(reply) == REDIS_ERR)
				return intake_refused(in, reply);
		}
	}
	return 0;
}

int intake_ack(struct intake *in, const struct intake_batch *b)
{
	return intake_for_ids(in, b, true);
}

int intake_keep_alive(struct intake *in, const struct intake_batch *b)
{
	int64_t now_ms = clock_boot_ms();

	if (now_ms - in->kept_at_ms < KEEP_EVERY_MS)
		return 0;
	in->kept_at_ms = now_ms;
	int r = intake_for_ids(in, b, false);
	return r < 0 ? r : 1;
}

void intake_forget_idle_consumers(struct intake *in, int64_t idle_ms)
{
	/* One script, because a consumer may take entries between the look and the removal, and
	 * removing it would drop them. */
	static const char script[] =
	    "local gone = 0\n"
	    "for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do\n"
	    "  local f = {}\n"
	    "  for i = 1, #c, 2 do f[c[i]] = c[i + 1] end\n"
	    "  if f['pending'] == 0 and f['idle'] > tonumber(ARGV[3]) and f['name'] ~= ARGV[2] "
	    "then\n"
	    "    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], f['name'])\n"
	    "    gone = gone + 1\n"
	    "  end\n"
	    "end\n"
	    "return gone";
	char idle[24];
	int error;

	snprintf(idle, sizeof idle, "%lld", (long long)idle_ms);
	for (unsigned i = 0; i < in->streams; i++) {
		const struct span argv[] = {
		    SPAN("EVAL"),	span_of(script),       SPAN("1"),    span_of(in->name[i]),
		    span_of(in->group), span_of(in->consumer), span_of(idle)};
		if (!redis_sync_cmd(in->control, &error, ARRAY_LEN(argv), argv))
			return;
	}
}
