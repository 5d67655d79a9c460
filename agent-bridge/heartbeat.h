/* The rules of time for sockets: pings, silence, half a frame for a minute, a reader that does
 * not read, too long a pause. One walk over all sessions a second; no timers per socket. */
#pragma once

#include "sessions.h"

struct metrics;

#define HEARTBEAT_PING_MS     20000
#define HEARTBEAT_SILENT_MS   40000
#define HEARTBEAT_PARTIAL_MS  60000
#define HEARTBEAT_STUCK_MS    60000
#define HEARTBEAT_PRESSURE_MS 120000 /* longer than Redis takes to restart and load its AOF */

/* Called every second. After a longer gap it was this process that stood still (stopped, its
 * machine moved or asleep): what the sockets did meanwhile is not known, so it does not count. */
void heartbeat_tick(struct sessions *all, struct metrics *m, int64_t boot_ms);
