#include "pace.h"

/* Turns are so far apart from so many frames a window on. The loop hurries (lib/loop) while a
 * command is with its agent, somebody comes, or commands, results and handshakes, but not many,
 * wait for Redis. */
#define WINDOW_MS  32
#define FRAME_HEAD 8 /* of most: two bytes, two of length, four of mask */

#define BUSY_FRAMES  8 /* 250 a second */
#define BUSY_US	     16000
#define THICK_FRAMES 640 /* 20,000 */
#define THICK_US     8000

/* While it hurries; from 2,000 a second on it is dear to take each at once. */
#define DEAR_FRAMES 64
#define HURRIED_US  500

unsigned pace_on_frame(struct pace *p, int64_t now_ms)
{
	if (now_ms / WINDOW_MS != p->window) {
		p->us = p->frames < THICK_FRAMES ? BUSY_US : THICK_US;
		p->hurried_us = p->frames < DEAR_FRAMES ? 0 : HURRIED_US;
		p->window = now_ms / WINDOW_MS;
		p->frames = 0;
	}
	return ++p->frames == BUSY_FRAMES ? p->us : 0;
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
