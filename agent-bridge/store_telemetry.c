/*
 * Telemetry on its way to Redis: one XADD an entry, written by hand straight into the connection's
 * buffer; or, while Redis is away or unwilling, into a backlog that forgets the oldest.
 */
#include "store_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/decimal.h"

/* Much more than where pausing begins: sockets go on for a moment after it, by tens of KiB each. */
#define BACKLOG_MAX_BYTES ((size_t)128 << 20)
#define LARGE_FRAME_BYTES 8192 /* looked at one by one, small ones every 256 */
#define TRIM_EVERY	  100  /* entries; each MAXLEN costs Redis a tenth of an XADD */
#define SAMPLE_EVERY	  64   /* replies whose time is measured */
#define MARKS		  256  /* in so many parts the bound in bytes is kept */

static char *put_bytes(char *at, const char *bytes, size_t n)
{
	memcpy(at, bytes, n);
	return at + n;
}

/* "$<n>\r\n<bytes>\r\n" */
static char *put_bulk(char *at, const char *bytes, size_t n)
{
	*at++ = '$';
	at = decimal_put(at, n);
	at = put_bytes(at, "\r\n", 2);
	at = put_bytes(at, bytes, n);
	return put_bytes(at, "\r\n", 2);
}

#define PUT_LITERAL(at, text) put_bytes(at, text, sizeof(text) - 1)

static char *put_number(char *at, uint64_t v)
{
	char text[DECIMAL_MAX];

	return put_bulk(at, text, (size_t)(decimal_put(text, v) - text));
}

static size_t telemetry_room(const struct store *s, const struct store_conn *c, struct span frame)
{
	return sizeof(s->head_trim.text) + frame.n + strlen(c->agent_id) + strlen(c->conn_id) +
	       strlen(c->ip) + strlen(s->bridge_id) + 400; /* names, lengths, epoch, time */
}

static size_t put_telemetry(struct store *s, char *out, const struct store_conn *c,
			    struct span frame)
{
	const struct store_head *head = s->heads_put++ % TRIM_EVERY ? &s->head : &s->head_trim;
	char *at = put_bytes(out, head->text, head->n);
	struct span now = store_now_text(s);

	at = put_bulk(at, c->agent_id, strlen(c->agent_id));
	at = PUT_LITERAL(at, "$5\r\nframe\r\n");
	at = put_bulk(at, frame.p, frame.n);
	at = PUT_LITERAL(at, "$9\r\nbridge_id\r\n");
	at = put_bulk(at, s->bridge_id, strlen(s->bridge_id));
	at = PUT_LITERAL(at, "$7\r\nconn_id\r\n");
	at = put_bulk(at, c->conn_id, strlen(c->conn_id));
	at = PUT_LITERAL(at, "$5\r\nepoch\r\n");
	at = put_number(at, c->epoch);
	at = PUT_LITERAL(at, "$2\r\nip\r\n");
	at = put_bulk(at, c->ip, strlen(c->ip));
	at = PUT_LITERAL(at, "$11\r\nreceived_at\r\n");
	at = put_bulk(at, now.p, now.n);
	return (size_t)(at - out);
}

static void on_telemetry(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;

	if (redis_type(reply) == REDIS_STR) {
		if (s->impaired)
			store_note_success(s);
	} else {
		metric_add(reply ? s->m_drop_full : s->m_drop_away, 1);
		store_note_refused(s, STORE_REFUSED_TELEMETRY, NULL, reply);
	}
	if (s->pressed)
		store_check_pressure(s);
	if (s->backlog.first)
		store_pump(s);
	if (s->drained)
		store_drain_check(s);
}

static void on_sampled_telemetry(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;

	if (reply)
		metric_observe(s->m_reply, (double)(clock_boot_us() - s->sample_us) / 1e6);
	s->sample_us = 0;
	on_telemetry(s, reply);
}

/* ---- the bound in bytes ---- */

static uint64_t mark_step(const struct store *s)
{
	return (uint64_t)s->telemetry_max_bytes / MARKS;
}

static void mark(struct store *s);

static void on_mark(void *arg, const struct redis_reply *reply)
{
	struct store *s = arg;

	if (redis_type(reply) != REDIS_INT) { /* counted with the next */
		s->mark_due = s->unmarked + mark_step(s);
		return;
	}
	s->unmarked -= s->marking;
	s->mark_due = mark_step(s);
	if (s->unmarked >= s->mark_due) /* of what left meanwhile */
		mark(s);
}

/* Tells Redis how many bytes it was sent; it drops what they push past the bound. */
static void mark(struct store *s)
{
	char bytes[24], bound[24];
	struct span argv[] = {span_of(s->prefix), {0}, {0}};

	(void)snprintf(bytes, sizeof(bytes), "%" PRIu64, s->unmarked);
	(void)snprintf(bound, sizeof(bound), "%" PRId64, s->telemetry_max_bytes);
	argv[1] = span_of(bytes);
	argv[2] = span_of(bound);
	s->marking = s->unmarked;
	s->mark_due = UINT64_MAX;
	if (redis_eval(s->redis, script_get(SCRIPT_trim_bytes), on_mark, s, 0, ARRAY_LEN(argv),
		       argv) < 0)
		on_mark(s, NULL);
}

static void commit_telemetry(struct store *s, size_t n)
{
	bool sampled = ++s->telemetry_sent % SAMPLE_EVERY == 0 && !s->sample_us;

	if (sampled)
		s->sample_us = clock_boot_us();
	redis_commit(s->redis, n, sampled ? on_sampled_telemetry : on_telemetry, s);
	s->unmarked += n;
	if (s->unmarked >= s->mark_due)
		mark(s);
}

static int keep(struct store *s, const struct store_conn *c, struct span frame)
{
	struct backlog_entry *e = backlog_entry_new(telemetry_room(s, c, frame));

	if (!e)
		return -ENOMEM;
	e->n = put_telemetry(s, e->bytes, c, frame);
	metric_add(s->up ? s->m_drop_full : s->m_drop_away, backlog_add(&s->backlog, e));
	store_check_pressure(s);
	return 0;
}

void store_telemetry_pump(struct store *s, size_t max)
{
	struct backlog *b = &s->backlog;
	char *at;

	while (max-- && b->first && redis_reserve(s->redis, b->first->n, &at) == 0) {
		memcpy(at, b->first->bytes, b->first->n);
		commit_telemetry(s, b->first->n);
		backlog_drop_oldest(b);
	}
}

int store_telemetry(struct store *s, const struct store_conn *c, struct span frame)
{
	char *at;

	if (s->impaired || s->backlog.first ||
	    redis_reserve(s->redis, telemetry_room(s, c, frame), &at) < 0)
		return keep(s, c, frame);
	commit_telemetry(s, put_telemetry(s, at, c, frame));
	if (!s->pressed && (!(s->telemetry_sent & 255) || frame.n > LARGE_FRAME_BYTES))
		store_check_pressure(s);
	return 0;
}

static void make_head(struct store_head *h, const char *prefix, int64_t maxlen)
{
	char key[96];
	char *at = maxlen ? PUT_LITERAL(h->text, "*20\r\n$4\r\nXADD\r\n")
			  : PUT_LITERAL(h->text, "*17\r\n$4\r\nXADD\r\n");

	(void)snprintf(key, sizeof(key), "%s.telemetry", prefix);
	at = put_bulk(at, key, strlen(key));
	if (maxlen) {
		at = PUT_LITERAL(at, "$6\r\nMAXLEN\r\n$1\r\n~\r\n");
		at = put_number(at, (uint64_t)maxlen);
	}
	at = PUT_LITERAL(at, "$1\r\n*\r\n$8\r\nagent_id\r\n");
	h->n = (size_t)(at - h->text);
}

void store_telemetry_init(struct store *s, const struct store_config *cfg)
{
	make_head(&s->head, s->prefix, 0);
	make_head(&s->head_trim, s->prefix, cfg->telemetry_maxlen);
	s->telemetry_max_bytes = cfg->telemetry_max_bytes;
	s->mark_due = mark_step(s);
	s->backlog.max_bytes = BACKLOG_MAX_BYTES;
}

void store_telemetry_fini(struct store *s)
{
	while (s->backlog.first)
		backlog_drop_oldest(&s->backlog);
}
