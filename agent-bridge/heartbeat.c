#include "heartbeat.h"

#include "bridge_metrics.h"
#include "transport.h"

#define STOOD_STILL_MS	 5000
#define HEARTBEAT_SPREAD 128

/* Until its socket is read again. */
static bool is_paused(const struct session *s)
{
	return s->pause || s->pause_applied;
}

/* Why this session has to go, or NULL. */
static const char *fault(const struct session *s, int64_t now_ms, int *ret_code)
{
	*ret_code = SESSION_CLOSE_POLICY;
	if (s->stuck_since_ms && now_ms - s->stuck_since_ms > HEARTBEAT_STUCK_MS)
		return "slow_reader";
	if (is_paused(s)) {
		*ret_code = SESSION_CLOSE_REDIS;
		return now_ms - s->rx_at_ms > HEARTBEAT_PRESSURE_MS ? "redis_behind" : NULL;
	}
	if (s->partial_since_ms && now_ms - s->partial_since_ms > HEARTBEAT_PARTIAL_MS)
		return "slow_sender";
	if (now_ms - s->rx_at_ms > HEARTBEAT_SILENT_MS)
		return "heartbeat_missed";
	return NULL;
}

static int64_t sooner(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Some sockets may have been read since. */
static void move_on(int64_t *since_ms, int64_t gap_ms, int64_t now_ms)
{
	if (*since_ms)
		*since_ms = *since_ms + gap_ms < now_ms ? *since_ms + gap_ms : now_ms;
}

/* The soonest that anything can be due, if nothing begins; what begins is due later than a ping. */
static int64_t next_look_ms(const struct session *s, int64_t now_ms)
{
	int64_t at = now_ms + HEARTBEAT_PING_MS;

	if (!session_is_open(s))
		return at;
	at = sooner(at, s->ping_due_ms);
	if (s->stuck_since_ms)
		at = sooner(at, s->stuck_since_ms + HEARTBEAT_STUCK_MS);
	if (is_paused(s))
		return sooner(at, s->rx_at_ms + HEARTBEAT_PRESSURE_MS);
	at = sooner(at, s->rx_at_ms + HEARTBEAT_SILENT_MS);
	if (s->partial_since_ms)
		at = sooner(at, s->partial_since_ms + HEARTBEAT_PARTIAL_MS);
	return at;
}

static void forgive(struct sessions *all, int64_t gap_ms, int64_t now_ms)
{
	for (struct session *s = all->first; s; s = s->next) {
		move_on(&s->rx_at_ms, gap_ms, now_ms);
		move_on(&s->partial_since_ms, gap_ms, now_ms);
		move_on(&s->stuck_since_ms, gap_ms, now_ms);
		s->ping_due_ms += gap_ms;
	}
}

static void look_at(struct session *s, struct metrics *m, int64_t now_ms)
{
	const char *why;
	int code;

	if (!session_is_open(s))
		return;
	why = fault(s, now_ms, &code);
	if (why) {
		if (code == SESSION_CLOSE_POLICY && !s->partial_since_ms && !s->stuck_since_ms)
			metric_add(metrics_get(m, M_heartbeats_missed, NULL, NULL), 1);
		session_close(s, code, why);
	} else if (now_ms >= s->ping_due_ms) {
		s->ping_due_ms = now_ms + HEARTBEAT_PING_MS;
		s->want_ping = true;
		transport_wake(s);
	}
}

void heartbeat_unheard(struct session *s, int64_t now_ms)
{
	s->rx_at_ms = now_ms;
	if (s->partial_since_ms)
		s->partial_since_ms = now_ms;
}

int64_t heartbeat_first_ping_ms(const struct session *s)
{
	return s->rx_at_ms + HEARTBEAT_PING_MS -
	       (int64_t)(s->sid % HEARTBEAT_SPREAD) * HEARTBEAT_PING_MS / 2 / HEARTBEAT_SPREAD;
}

void heartbeat_tick(struct sessions *all, struct metrics *m, int64_t boot_ms)
{
	if (all->ticked_ms && boot_ms - all->ticked_ms > STOOD_STILL_MS)
		forgive(all, boot_ms - all->ticked_ms, boot_ms);
	all->ticked_ms = boot_ms;
	for (int i = 0; all->at < all->all && i < HEARTBEAT_PART; i++) {
		struct session_beat *b = &all->beats[all->at++];

		if (boot_ms < b->look_ms)
			continue;
		look_at(b->s, m, boot_ms);
		b->look_ms = next_look_ms(b->s, boot_ms);
	}
	if (all->at == all->all)
		all->at = 0;
}
