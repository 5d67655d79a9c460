#include "pace.h"

/* From 2,000 frames a second on, turns are eight milliseconds apart, from 20,000 on four. While a
 * command is with its agent, or agents come, two and one; half of one while commands, results or
 * handshakes, but not many, wait for Redis (lib/redis). */
#define WINDOW_MS    8
#define BUSY_FRAMES  16 /* in a window */
#define THICK_FRAMES 160
#define BUSY_US	     8000
#define THICK_US     4000
#define BRISK_PART   4 /* of these, while it is brisk */
#define BRISK_MS     100
#define FRAME_HEAD   8 /* of most: two bytes, two of length, four of mask */

unsigned pace_on_frame(struct pace *p, int64_t now_ms)
{
	if (now_ms / WINDOW_MS != p->window) {
		p->us = p->frames < THICK_FRAMES ? BUSY_US : THICK_US;
		if (now_ms < p->brisk_until_ms)
			p->us /= BRISK_PART;
		p->window = now_ms / WINDOW_MS;
		p->frames = 0;
	}
	if (++p->frames != BUSY_FRAMES)
		return 0;
	p->until_ms = now_ms + PACE_FOR_MS;
	return p->us;
}

unsigned pace_be_brisk(struct pace *p, int64_t now_ms)
{
	p->brisk_until_ms = now_ms + BRISK_MS;
	if (now_ms >= p->until_ms || p->us <= BUSY_US / BRISK_PART)
		return 0;
	p->us = BUSY_US / BRISK_PART;
	return p->us;
}

bool pace_on_read(struct pace *p, const void *socket, size_t n, int64_t now_ms)
{
	if (socket != p->socket || now_ms != p->read_ms)
		p->read = 0;
	p->socket = socket;
	p->read_ms = now_ms;
	p->read += n + FRAME_HEAD;
	return p->read >= PACE_READ_BYTES;
}
