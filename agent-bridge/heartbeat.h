/* The rules of time for sockets: pings, silence, half a frame for a minute, a reader that does
 * not read, too long a pause. One walk over all sessions a second, in parts, that looks at those of
 * whom something may be due; no timers per socket. */
#pragma once

#include "sessions.h"

struct metrics;

#define HEARTBEAT_EVERY_MS    1000
#define HEARTBEAT_PART	      256
#define HEARTBEAT_PING_MS     20000
#define HEARTBEAT_SILENT_MS   40000
#define HEARTBEAT_PARTIAL_MS  60000
#define HEARTBEAT_STUCK_MS    60000
#define HEARTBEAT_PRESSURE_MS 120000 /* longer than Redis takes to restart and load its AOF */

/* When a new session is to be pinged first: not all that came together in the same second. */
int64_t heartbeat_first_ping_ms(const struct session *s);
/* Its socket is read no more, or again: it could not be heard meanwhile. */
void heartbeat_unheard(struct session *s, int64_t now_ms);
/* Looks at the next HEARTBEAT_PART of them, as far as there are; called often enough
 * (loop_part_ms) that all are seen once in HEARTBEAT_EVERY_MS. After a longer gap it was this
 * process that stood still (stopped, its machine moved or asleep): what the sockets did meanwhile
 * is not known, so it does not count. */
void heartbeat_tick(struct sessions *all, struct metrics *m, int64_t boot_ms);
