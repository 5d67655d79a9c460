#include "pace.h"

/* Turns are so far apart from so many frames a window on. The loop hurries (lib/loop) while a
 * command is with its agent, somebody comes, or commands, results and handshakes, but not many,
 * wait for Redis. */
#define WINDOW_MS  32
#define FRAME_HEAD 8 /* of most: two bytes, two of length, four of mask */

#define FEW_FRAMES  8 /* 250 a second */
#define FEW_US	    16000
#define BUSY_FRAMES 64 /* 2,000; while it hurries it is dear to take each at once */
#define BUSY_US	    12000
#define HURRIED_US  500

unsigned pace_on_frame(struct pace *p, int64_t now_ms)
{
	if (now_ms / WINDOW_MS != p->window) {
		bool busy = p->frames >= BUSY_FRAMES;

		p->us = busy ? BUSY_US : FEW_US;
		p->hurried_us = busy ? HURRIED_US : 0;
		p->window = now_ms / WINDOW_MS;
		p->frames = 0;
	}
	return ++p->frames == FEW_FRAMES ? p->us : 0;
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
