/* One connection: connect, TLS, upgrade, frames in, frames out. See load.h. */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

static char shared_in[65536], shared_out[LOAD_BURST_MAX * LOAD_FRAME_MAX];

void load_failure_add(struct load *l, const char *what)
{
	for (size_t i = 0; i < ARRAY_LEN(l->failure); i++) {
		struct load_failure *f = &l->failure[i];
		if (f->n == 0)
			snprintf(f->what, sizeof f->what, "%s", what);
		if (strcmp(f->what, what) == 0 || i + 1 == ARRAY_LEN(l->failure)) {
			f->n++;
			return;
		}
	}
}

static void epoll_set(struct load *l, struct load_conn *c, int op, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = c};
	if (epoll_ctl(l->epoll, op, c->fd, &e) < 0)
		abort();
}

void load_conn_want_out(struct load *l, struct load_conn *c, bool on)
{
	if (c->want_out == on || c->fd < 0)
		return;
	c->want_out = on;
	epoll_set(l, c, EPOLL_CTL_MOD, EPOLLIN | (on ? (uint32_t)EPOLLOUT : 0));
}

/* Source addresses 127.0.1.1, 127.0.1.2, …: each brings its own port range. */
static int bind_source(const struct load *l, const struct load_conn *c, int fd)
{
	int on = 1;
	if (l->o.sources < 1)
		return 0;
	uint32_t host = 0x7f000100u + 1 + c->index % l->o.sources;
	struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
	return bind(fd, (struct sockaddr *)&from, sizeof from) < 0 ? -errno : 0;
}

static int fail_start(struct load *l, int fd, const char *what, int error)
{
	char text[64];
	snprintf(text, sizeof text, "%s: %s", what, strerror(error));
	load_failure_add(l, text);
	if (fd >= 0)
		close(fd);
	return -error;
}

int load_conn_start(struct load *l, struct load_conn *c)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)l->o.port)};
	int on = 1;
	l->attempts++;
	inet_pton(AF_INET, l->o.host, &to.sin_addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail_start(l, -1, "socket", errno);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	int r = bind_source(l, c, fd);
	if (r < 0)
		return fail_start(l, fd, "bind", -r);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
		return fail_start(l, fd, "connect", errno);
	c->fd = fd;
	c->state = LOAD_CONNECTING;
	c->began_us = clock_boot_us();
	c->want_out = true;
	c->unacked = 0;
	l->pending++;
	epoll_set(l, c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
	return 0;
}

static void forget(struct load *l, struct load_conn *c, bool reset, unsigned code)
{
	enum load_state was = c->state;
	if (reset && c->fd >= 0) {
		struct linger none = {.l_onoff = 1};
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
	}
	load_tls_free(c->ssl, !reset && was == LOAD_UP);
	close(c->fd);
	free(c->in);
	free(c->out);
	c->fd = -1;
	c->ssl = NULL;
	c->in = c->out = NULL;
	c->in_n = c->out_n = c->out_at = 0;
	c->want_out = false;
	c->state = LOAD_IDLE;
	if (was == LOAD_UP)
		l->up--;
	else if (was != LOAD_IDLE)
		l->pending--;
	load_on_down(l, c, was, code);
}

void load_conn_close(struct load *l, struct load_conn *c, bool reset)
{
	forget(l, c, reset, 0);
}

static void fail(struct load *l, struct load_conn *c, const char *what)
{
	load_failure_add(l, what);
	forget(l, c, false, 0);
}

/* ---- out ---- */

/* Bytes taken, -EAGAIN, or another error. */
static long put(struct load_conn *c, const char *p, size_t n)
{
	if (c->ssl)
		return load_tls_write(c->ssl, p, n);
	ssize_t r = send(c->fd, p, n, MSG_NOSIGNAL);
	return r < 0 ? -errno : r;
}

/* Writes p, or keeps what the socket does not take. false: the connection is gone. */
static bool write_or_keep(struct load *l, struct load_conn *c, const char *p, size_t n)
{
	while (n && !c->out) {
		long r = put(c, p, n);
		if (r == -EAGAIN)
			break;
		if (r <= 0) {
			fail(l, c, "write failed");
			return false;
		}
		p += r;
		n -= (size_t)r;
	}
	if (n == 0)
		return true;
	char *out = realloc(c->out, c->out_n + n);
	if (!out)
		abort();
	memcpy(out + c->out_n, p, n);
	c->out = out;
	c->out_n += (uint32_t)n;
	load_conn_want_out(l, c, true);
	return true;
}

/* What was kept. true: all is out. */
static bool flush(struct load *l, struct load_conn *c)
{
	while (c->out_at < c->out_n) {
		long r = put(c, c->out + c->out_at, c->out_n - c->out_at);
		if (r == -EAGAIN)
			return false;
		if (r <= 0) {
			fail(l, c, "write failed");
			return false;
		}
		c->out_at += (uint32_t)r;
	}
	free(c->out);
	c->out = NULL;
	c->out_n = c->out_at = 0;
	return true;
}

unsigned load_conn_send(struct load *l, struct load_conn *c, unsigned frames)
{
	size_t n = 0;
	unsigned made = 0;
	if (c->out || c->state != LOAD_UP)
		return 0;
	if (frames > LOAD_BURST_MAX)
		frames = LOAD_BURST_MAX;
	for (; made < frames; made++) {
		if (l->o.target == LOAD_MQTT && c->unacked++ >= l->o.window) {
			c->unacked--;
			break;
		}
		n += load_frames_data(&l->o, c, shared_out + n);
	}
	l->sent += made;
	if (n && !write_or_keep(l, c, shared_out, n))
		return made;
	return made;
}

/* ---- in ---- */

static void came_up(struct load *l, struct load_conn *c)
{
	c->state = LOAD_UP;
	l->pending--;
	l->up++;
	l->connected++;
	load_sample(&l->handshake, clock_boot_us() - c->began_us);
	if (l->o.target == LOAD_BRIDGE && l->o.hello) {
		size_t n = load_frames_hello(&l->o, c->index, shared_out);
		if (!write_or_keep(l, c, shared_out, n))
			return;
	}
	load_on_up(l, c);
}

/* The answer to the upgrade; bytes used, 0: more is needed, -1: the connection is gone. */
static long on_upgrade(struct load *l, struct load_conn *c, const char *p, size_t n)
{
	const char *end = memmem(p, n, "\r\n\r\n", 4);
	if (!end) {
		if (n < 8192)
			return 0;
		fail(l, c, "endless answer");
		return -1;
	}
	if (n < 12 || memcmp(p, "HTTP/1.1 101", 12) != 0) {
		char what[32];
		snprintf(what, sizeof what, "status %.3s", n > 12 ? p + 9 : "?");
		fail(l, c, what);
		return -1;
	}
	c->state = LOAD_OPENING;
	size_t open = load_frames_open(&l->o, c->index, shared_out);
	if (open && !write_or_keep(l, c, shared_out, open))
		return -1;
	return end + 4 - p;
}

static void on_mqtt(struct load *l, struct load_conn *c, const unsigned char *p, size_t n)
{
	if (c->state == LOAD_OPENING && n >= 4 && p[0] == 0x20 && p[3] == 0) {
		came_up(l, c);
		return;
	}
	for (; n >= 4 && p[0] == 0x40 && c->unacked; p += 4, n -= 4) { /* PUBACK */
		unsigned id = (unsigned)p[2] << 8 | p[3];
		uint32_t now = (uint32_t)clock_boot_us();
		load_sample(&l->ack, now - c->sent_at[id % ARRAY_LEN(c->sent_at)]);
		c->unacked--;
		l->acked++;
	}
	if (l->sending && l->o.rate == 0 && c->state == LOAD_UP)
		load_conn_want_out(l, c, true);
}

/* Every command is answered as an agent without a helper answers ECHO. */
static void on_command(struct load *l, struct load_conn *c, const char *p, size_t n)
{
	static const char mark[] = "\"correlation_id\":\"";
	const char *id = memmem(p, n, mark, sizeof mark - 1), *end;
	if (!id)
		return;
	id += sizeof mark - 1;
	end = memchr(id, '"', n - (size_t)(id - p));
	if (end)
		(void)write_or_keep(
		    l, c, shared_out,
		    load_frames_answer(&l->o, c->index, id, (size_t)(end - id), shared_out));
}

static void on_payload(struct load *l, struct load_conn *c, const char *p, size_t n)
{
	static const char command[] = "{\"type\":\"COMMAND\"";
	if (l->o.target == LOAD_MQTT)
		on_mqtt(l, c, (const unsigned char *)p, n);
	else if (c->state == LOAD_UP && n > sizeof command &&
		 !memcmp(p, command, sizeof command - 1))
		on_command(l, c, p, n);
	else if (c->state != LOAD_OPENING)
		return;
	else if (memmem(p, n, l->o.target == LOAD_NATS ? "PONG" : "HELLO_ACK",
			l->o.target == LOAD_NATS ? 4 : 9))
		came_up(l, c);
}

/* One frame of the server; the same returns as on_upgrade. */
static long on_frame(struct load *l, struct load_conn *c, const char *text, size_t n)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t head = 2, len;
	if (n < 2)
		return 0;
	len = p[1] & 127;
	if (len == 126)
		head = 4;
	else if (len == 127)
		head = 10;
	if (n < head)
		return 0;
	if (head > 2) {
		len = 0;
		for (size_t i = 2; i < head; i++)
			len = len << 8 | p[i];
	}
	if (n < head + len)
		return 0;
	unsigned opcode = p[0] & 15;
	if (opcode == 8) {
		unsigned code = len >= 2 ? (unsigned)p[head] << 8 | p[head + 1] : 1005;
		char what[32];
		snprintf(what, sizeof what, "closed %u", code);
		load_failure_add(l, what);
		forget(l, c, false, code);
		return -1;
	}
	if (opcode == 9) {
		char pong[160];
		size_t out = load_frames_wrap(10, text + head, len > 125 ? 125 : len, pong);
		if (!write_or_keep(l, c, pong, out))
			return -1;
	} else if (opcode <= 2) {
		int fd = c->fd;
		on_payload(l, c, text + head, len);
		if (c->fd != fd || c->state == LOAD_IDLE)
			return -1;
	}
	return (long)(head + len);
}

static bool consume(struct load *l, struct load_conn *c, const char *p, size_t n)
{
	while (n) {
		long used =
		    c->state == LOAD_UPGRADE ? on_upgrade(l, c, p, n) : on_frame(l, c, p, n);
		if (used < 0)
			return false;
		if (used == 0)
			break;
		p += used;
		n -= (size_t)used;
	}
	char *rest = NULL;
	if (n) {
		rest = malloc(n);
		if (!rest)
			abort();
		memcpy(rest, p, n);
	}
	free(c->in);
	c->in = rest;
	c->in_n = (uint32_t)n;
	return true;
}

static void read_some(struct load *l, struct load_conn *c)
{
	size_t kept = c->in_n;
	if (kept >= sizeof shared_in) {
		fail(l, c, "frame too big");
		return;
	}
	memcpy(shared_in, c->in ? c->in : "", kept);
	long r;
	if (c->ssl) {
		r = load_tls_read(c->ssl, shared_in + kept, sizeof shared_in - kept);
	} else {
		ssize_t got = recv(c->fd, shared_in + kept, sizeof shared_in - kept, 0);
		r = got < 0 ? -errno : got;
	}
	if (r == -EAGAIN)
		return;
	if (r <= 0) {
		fail(l, c,
		     r == 0		   ? "closed by peer"
		     : c->state == LOAD_UP ? "reset"
					   : "reset in handshake");
		return;
	}
	consume(l, c, shared_in, kept + (size_t)r);
}

/* ---- the way up ---- */

static void send_upgrade(struct load *l, struct load_conn *c)
{
	c->state = LOAD_UPGRADE;
	size_t n = load_frames_upgrade(&l->o, c->index, shared_out);
	if (write_or_keep(l, c, shared_out, n) && !c->out)
		load_conn_want_out(l, c, false);
}

static void on_tls(struct load *l, struct load_conn *c)
{
	int r = load_tls_handshake(c->ssl);
	if (r == 0)
		send_upgrade(l, c);
	else if (r != -EAGAIN)
		fail(l, c, "TLS refused");
	else
		load_conn_want_out(l, c, false);
}

static void on_connected(struct load *l, struct load_conn *c)
{
	int error = 0;
	socklen_t n = sizeof error;
	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
	if (error) {
		char what[64];
		snprintf(what, sizeof what, "connect: %s", strerror(error));
		fail(l, c, what);
		return;
	}
	if (!l->o.tls) {
		send_upgrade(l, c);
		return;
	}
	c->ssl = load_tls_new(&l->o, c->index, c->fd);
	if (!c->ssl)
		abort();
	c->state = LOAD_TLS;
	on_tls(l, c);
}

void load_conn_event(struct load *l, struct load_conn *c, uint32_t events)
{
	int fd = c->fd;
	if (fd < 0)
		return;
	if (c->state == LOAD_CONNECTING) {
		if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
			on_connected(l, c);
		return;
	}
	if (c->state == LOAD_TLS) {
		on_tls(l, c);
		return;
	}
	if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
		read_some(l, c);
		if (c->fd != fd)
			return;
	}
	if ((events & EPOLLOUT) && flush(l, c)) {
		if (c->state == LOAD_UP)
			load_on_writable(l, c);
		else
			load_conn_want_out(l, c, false);
	}
}
