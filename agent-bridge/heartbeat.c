#include "heartbeat.h"

#include "bridge_metrics.h"
#include "transport.h"

/* Why this session has to go, or NULL. */
static const char *fault(const struct session *s, int64_t now_ms, int *ret_code)
{
	*ret_code = SESSION_CLOSE_POLICY;
	if (s->stuck_since_ms && now_ms - s->stuck_since_ms > HEARTBEAT_STUCK_MS)
		return "slow_reader";
	if (s->pause) {
		*ret_code = SESSION_CLOSE_REDIS;
		return now_ms - s->rx_at_ms > HEARTBEAT_PRESSURE_MS ? "redis_behind" : NULL;
	}
	if (s->partial_since_ms && now_ms - s->partial_since_ms > HEARTBEAT_PARTIAL_MS)
		return "slow_sender";
	if (now_ms - s->rx_at_ms > HEARTBEAT_SILENT_MS)
		return "heartbeat_missed";
	return NULL;
}

void heartbeat_tick(struct sessions *all, struct metrics *m, int64_t boot_ms)
{
	struct session *next;

	for (struct session *s = all->first; s; s = next) {
		const char *why;
		int code;

		next = s->next;
		if (!session_is_open(s))
			continue;
		why = fault(s, boot_ms, &code);
		if (why) {
			if (code == SESSION_CLOSE_POLICY && !s->partial_since_ms &&
			    !s->stuck_since_ms)
				metric_add(metrics_get(m, M_heartbeats_missed, NULL, NULL), 1);
			session_close(s, code, why);
		} else if (boot_ms >= s->ping_due_ms) {
			s->ping_due_ms = boot_ms + HEARTBEAT_PING_MS;
			s->want_ping = true;
			transport_wake(s);
		}
	}
}
