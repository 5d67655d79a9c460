#include "session.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport.h"

#define VIOLATIONS_MAX	    10
#define VIOLATION_WINDOW_MS 60000

static const char *const state_words[SESSION_STATES] = {
    [SESSION_CLAIMING] = "claiming", [SESSION_GREETED] = "greeted", [SESSION_READY] = "ready",
    [SESSION_CLOSING] = "closing",   [SESSION_GONE] = "gone",
};

#define TO(state) (1u << SESSION_##state)
static const unsigned legal_moves[SESSION_STATES] = {
    [SESSION_CLAIMING] = TO(GREETED) | TO(CLOSING) | TO(GONE),
    [SESSION_GREETED] = TO(READY) | TO(CLOSING) | TO(GONE),
    [SESSION_READY] = TO(CLOSING) | TO(GONE),
    [SESSION_CLOSING] = TO(GONE),
};
#undef TO

const char *session_state_word(enum session_state s)
{
	return state_words[s];
}

void session_move(struct session *s, enum session_state to)
{
	assert(legal_moves[s->state] & (1u << to));
	LOG_DEBUG(FIELDS(.event = "session_state", .agent_id = s->agent_id, .conn_id = s->conn_id,
			 .detail = state_words[to]),
		  "session was %s", state_words[s->state]);
	s->state = to;
}

void session_close(struct session *s, int code, const char *reason)
{
	if (!session_is_open(s))
		return;
	s->close_code = code;
	s->close_reason = reason;
	session_move(s, SESSION_CLOSING);
	transport_close(s);
}

struct store_conn session_conn(const struct session *s)
{
	return (struct store_conn){
	    .agent_id = s->agent_id, .conn_id = s->conn_id, .ip = s->ip, .epoch = s->epoch};
}

/* ---- sending ---- */

/* The queue's own memory is the encoder's buffer: no copy between them. */
static struct session_frame *frame_encode(const struct wire_frame *f, size_t max)
{
	const size_t before = offsetof(struct session_frame, bytes) + SESSION_HEADROOM;
	struct session_frame *q;
	struct buf b;
	char *at;

	buf_init(&b, before + max);
	if (buf_reserve(&b, before, &at) < 0)
		return NULL;
	memset(at, 0, before);
	buf_commit(&b, before);
	if (wire_encode(f, &b) < 0) {
		buf_fini(&b);
		return NULL;
	}
	q = (struct session_frame *)(void *)b.data;
	q->n = (uint32_t)(b.len - before);
	q->type = (uint8_t)f->type;
	return q;
}

int session_send(struct session *s, const struct session_limits *l, const struct wire_frame *f)
{
	struct session_frame *q;

	if (!session_is_open(s) || !s->socket)
		return -ENOTCONN;
	q = frame_encode(f, l->send_bytes);
	if (!q || s->out.n + 1 > l->send_msgs || s->out.bytes + q->n > l->send_bytes) {
		free(q);
		session_close(s, SESSION_CLOSE_POLICY, "slow_reader");
		return -ENOBUFS;
	}
	if (s->out.last)
		s->out.last->next = q;
	else
		s->out.first = q;
	s->out.last = q;
	s->out.n++;
	s->out.bytes += q->n;
	transport_wake(s);
	return 0;
}

bool session_has_room(const struct session *s, const struct session_limits *l)
{
	return s->out.n * 2 <= l->send_msgs && s->out.bytes * 2 <= l->send_bytes;
}

struct session_frame *session_next(struct session *s)
{
	struct session_frame *q = s->out.first;

	if (!q)
		return NULL;
	s->out.first = q->next;
	if (!s->out.first)
		s->out.last = NULL;
	s->out.n--;
	s->out.bytes -= q->n;
	return q;
}

/* ---- holding ---- */

void session_hold(struct session *s, const struct session_limits *l, const char *bytes, size_t n)
{
	struct session_held *h = malloc(sizeof(*h) + n);

	if (!h || s->held.bytes + n > l->held_bytes || *s->held.of_all + n > SESSION_HELD_ALL_MAX) {
		free(h);
		session_close(s, SESSION_CLOSE_REDIS, "overloaded");
		return;
	}
	h->next = NULL;
	h->n = n;
	memcpy(h->bytes, bytes, n);
	if (s->held.last)
		s->held.last->next = h;
	else
		s->held.first = h;
	s->held.last = h;
	s->held.bytes += n;
	*s->held.of_all += n;
	s->pause |= SESSION_PAUSE_HELD;
	transport_pause(s);
}

struct session_held *session_unhold(struct session *s)
{
	struct session_held *h = s->held.first;

	if (!h)
		return NULL;
	s->held.first = h->next;
	if (!s->held.first)
		s->held.last = NULL;
	s->held.bytes -= h->n;
	*s->held.of_all -= h->n;
	return h;
}

/* ---- the rest ---- */

bool session_violated(struct session *s, int64_t boot_ms)
{
	int64_t oldest;

	if (!s->violation_ms)
		s->violation_ms = calloc(VIOLATIONS_MAX, sizeof(*s->violation_ms));
	if (!s->violation_ms)
		return true;
	s->violation_ms[s->violations++ % VIOLATIONS_MAX] = boot_ms;
	if (s->violations < VIOLATIONS_MAX)
		return false;
	oldest = s->violation_ms[s->violations % VIOLATIONS_MAX];
	return boot_ms - oldest < VIOLATION_WINDOW_MS;
}

int session_set_text(char **field, struct span text)
{
	char *copy = NULL;

	if (text.p) {
		copy = span_dup(text);
		if (!copy)
			return -ENOMEM;
	}
	free(*field);
	*field = copy;
	return 0;
}

void session_fini(struct session *s)
{
	assert(!s->ring.oldest && !s->result.oldest);
	while (s->out.first)
		free(session_next(s));
	while (s->held.first)
		free(session_unhold(s));
	free(s->violation_ms);
	free(s->version);
	free(s->site);
	free(s->journal_id);
	free(s->fingerprint);
}
