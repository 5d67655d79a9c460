/*
 * One connection: lines in, framed replies out. States: reading → (paused while its replies pile
 * up) → closing (after the reply to a bad MAC) → dropped. Freed when the loop's turn ends.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "helper.h"
#include "line.h"

#define OUT_MAX_BYTES	(8 * WIRE_HELPER_REPLY_MAX)
#define OUT_PAUSE_BYTES (2 * WIRE_HELPER_REPLY_MAX)
#define OUT_ALL_BYTES	(64 << 20) /* over all connections; who asks beyond it is dropped */
#define HALF_OPEN_MS	10000	   /* to send a first authentic request */
#define STUCK_MS	60000	   /* with replies it does not read */

struct conn {
	struct watch watch;
	struct helper *h;
	struct conn *next, **prev;
	uint64_t id;
	struct ucred peer;
	struct buf in, out;
	unsigned in_flight;
	bool authentic, closing;
	int64_t since_ms, stuck_since_ms;
	uint32_t events;
};

uint64_t conn_id(const struct conn *c)
{
	return c->id;
}

const struct ucred *conn_peer(const struct conn *c)
{
	return &c->peer;
}

struct conn *conn_find(struct helper *h, uint64_t id)
{
	for (struct conn *c = h->conns; c; c = c->next)
		if (c->id == id)
			return c;
	return NULL;
}

static void on_conn_free(struct watch *w)
{
	struct conn *c = CONTAINER_OF(w, struct conn, watch);

	buf_wipe(&c->in); /* requests carry secrets */
	buf_fini(&c->in);
	buf_fini(&c->out);
	free(c);
}

static void drop(struct conn *c)
{
	if (c->watch.fd < 0)
		return;
	*c->prev = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->h->conn_count--;
	c->h->queued_bytes -= c->out.len;
	loop_drop(&c->h->loop, &c->watch);
}

static void update_events(struct conn *c)
{
	uint32_t want = 0;

	if (c->watch.fd < 0)
		return;
	if (!c->closing && c->out.len < OUT_PAUSE_BYTES)
		want |= EPOLLIN;
	if (c->out.len)
		want |= EPOLLOUT;
	if (want != c->events && loop_change(&c->h->loop, &c->watch, want) == 0)
		c->events = want;
}

static void flush(struct conn *c)
{
	while (c->out.len) {
		ssize_t n = send(c->watch.fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) {
			drop(c);
			return;
		}
		buf_consume(&c->out, (size_t)n);
		c->h->queued_bytes -= (size_t)n;
		c->stuck_since_ms = clock_boot_ms();
	}
	if (c->out.len == 0) {
		buf_trim(&c->out, 16384);
		c->stuck_since_ms = 0;
		if (c->closing) {
			drop(c);
			return;
		}
	}
	update_events(c);
}

void conn_send(struct helper *h, struct conn *c, const struct buf *json)
{
	if (c->watch.fd < 0)
		return;
	if (c->out.len == 0)
		c->stuck_since_ms = clock_boot_ms();
	size_t before = c->out.len;
	int r = line_append(&h->secret, json, &c->out);
	h->queued_bytes += c->out.len - before;
	if (r < 0 || h->queued_bytes > OUT_ALL_BYTES) {
		drop(c); /* it asks and does not read */
		return;
	}
	flush(c);
}

void conn_close_after_reply(struct conn *c)
{
	c->closing = true;
	if (c->out.len == 0)
		drop(c);
	else
		update_events(c);
}

bool conn_begin(struct conn *c)
{
	c->authentic = true;
	return ++c->in_flight <= HELPER_CONN_IN_FLIGHT;
}

void conn_end(struct conn *c)
{
	if (c->in_flight)
		c->in_flight--;
}

static bool on_line(void *arg, const char *line, size_t n)
{
	struct conn *c = arg;

	request_handle(c->h, c, line, n);
	return c->watch.fd >= 0 && !c->closing;
}

static void read_some(struct conn *c)
{
	char *at;
	size_t want = 16384, room = c->in.max - c->in.len;

	if (room == 0) {
		request_refuse_long(c->h, c);
		return;
	}
	want = want < room ? want : room;
	if (buf_reserve(&c->in, want, &at) < 0) {
		drop(c);
		return;
	}
	ssize_t n = recv(c->watch.fd, at, want, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		drop(c);
		return;
	}
	buf_commit(&c->in, (size_t)n);
	line_take_all(&c->in, on_line, c);
}

static void on_conn_ready(struct watch *w, uint32_t events)
{
	struct conn *c = CONTAINER_OF(w, struct conn, watch);

	if (events & EPOLLOUT)
		flush(c);
	if (c->watch.fd >= 0 && (events & EPOLLIN) && !c->closing)
		read_some(c);
	else if (c->watch.fd >= 0 && (events & (EPOLLERR | EPOLLHUP)))
		drop(c);
}

/* At the cap the oldest connection that never authenticated gives way, so that half-open ones
 * cannot keep the agent out. */
static bool make_room(struct helper *h)
{
	struct conn *oldest = NULL;

	if (h->conn_count < (size_t)h->cfg->max_connections)
		return true;
	for (struct conn *c = h->conns; c; c = c->next)
		if (!c->authentic)
			oldest = c;
	if (!oldest)
		return false;
	drop(oldest);
	return true;
}

void conn_accept(struct helper *h, int fd, const struct ucred *peer)
{
	struct conn *c = make_room(h) ? calloc(1, sizeof *c) : NULL;

	if (!c) {
		close(fd);
		return;
	}
	c->watch = (struct watch){.fd = fd, .on_ready = on_conn_ready, .on_free = on_conn_free};
	c->h = h;
	c->id = ++h->next_conn_id;
	c->peer = *peer;
	c->since_ms = clock_boot_ms();
	c->events = EPOLLIN;
	buf_init(&c->in, LINE_MAX_BYTES + 1);
	buf_init(&c->out, OUT_MAX_BYTES);
	if (loop_add(&h->loop, &c->watch, EPOLLIN) < 0) {
		close(fd);
		free(c);
		return;
	}
	c->next = h->conns;
	c->prev = &h->conns;
	if (c->next)
		c->next->prev = &c->next;
	h->conns = c;
	h->conn_count++;
}

void conn_tick(struct helper *h)
{
	int64_t now = clock_boot_ms();

	for (struct conn *c = h->conns, *next; c; c = next) {
		next = c->next;
		if ((!c->authentic && now - c->since_ms > HALF_OPEN_MS) ||
		    (c->stuck_since_ms && now - c->stuck_since_ms > STUCK_MS))
			drop(c);
	}
}

void conn_drop_refused(struct helper *h)
{
	for (struct conn *c = h->conns, *next; c; c = next) {
		next = c->next;
		if (!listen_uid_allowed(h, c->peer.uid))
			drop(c);
	}
}

void conn_close_all(struct helper *h)
{
	while (h->conns)
		drop(h->conns);
}
