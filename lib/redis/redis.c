/*
 * One Redis connection on the loop. Socket, output buffer and the ring of unanswered commands are
 * our own; hiredis only parses replies (reply.c).
 *
 * States: WAITING (backoff timer) → RESOLVING → CONNECTING → GREETING (AUTH, SELECT, PING
 * unanswered) → UP; any failure → WAITING. Commands are taken in UP only. redis_fail and go_up are
 * the only places that leave and enter UP.
 *
 * The owner may close the connection inside any callback: `busy` counts our own frames on the
 * stack, the memory goes with the last of them.
 */
#include "redis/redis.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/backoff.h"
#include "base/log.h"
#include "loop/loop.h"
#include "redis_internal.h"

#define MAX_IN_FLIGHT_DEFAULT 16384
#define MAX_BYTES_DEFAULT     ((size_t)64 << 20)
#define TIMEOUT_MS_DEFAULT    5000
#define CONNECT_TIMEOUT_MS    1500
#define HELD_MS		      20
/* With the connect itself well under 2 s from server back to connection up. */
#define BACKOFF_BASE_MS 50
#define BACKOFF_CAP_MS	1000
#define READ_BYTES	65536
#define READS_A_TURN	4
#define GATHER_BYTES	((size_t)128 << 10)
#define HURRY_MAX	16
#define KEEP_OUT_BYTES	((size_t)256 << 10)

enum state { WAITING, RESOLVING, CONNECTING, GREETING, UP };

struct pending {
	redis_cb cb;
	void *arg;
	int64_t sent_ms;
	size_t bytes;
	bool urgent;
};

struct redis {
	struct loop *loop;
	struct redis_url url;
	struct redis_limits limits;
	const struct redis_ops *ops;
	void *arg;

	enum state state;
	int fd;
	struct loop_poll *poll;
	int events;			/* what poll watches for */
	struct loop_resolve *resolving; /* NULL: not */
	struct loop_timer *timer;	/* backoff, connect deadline or oldest command */
	struct loop_later *flush;
	struct loop_timer *gather; /* commands of redis_commit leave together */
	struct backoff backoff;
	unsigned greetings_due;

	struct buf out;
	size_t out_sent; /* bytes of out that have left */
	struct redis_reader *reader;
	struct pending *ring; /* ring_cap is a power of two */
	size_t ring_cap, head, count, bytes;
	size_t urgent; /* of them, where others gather */
	bool hurried;

	unsigned busy;
	bool closed;
	char why[160];
};

static void redis_fail(struct redis *r, const char *why);
static void start_connect(struct redis *r);
static void handle_io(struct redis *r, int events);

/* ---- ring of unanswered commands ---- */

static int ring_grow(struct redis *r)
{
	size_t cap = r->ring_cap ? r->ring_cap * 2 : 64;
	struct pending *ring = malloc(cap * sizeof(*ring));

	if (!ring)
		return -ENOMEM;
	for (size_t i = 0; i < r->count; i++)
		ring[i] = r->ring[(r->head + i) & (r->ring_cap - 1)];
	free(r->ring);
	r->ring = ring;
	r->ring_cap = cap;
	r->head = 0;
	return 0;
}

/* Many at once are a storm: they gain more from company than from haste. What the socket did not
 * take should leave as soon as it does. */
static void hurry(struct redis *r)
{
	bool hurried = (r->urgent > 0 && r->urgent <= HURRY_MAX) || r->events & LOOP_WRITE;

	if (hurried == r->hurried)
		return;
	r->hurried = hurried;
	loop_hurry(r->loop, hurried ? 1 : -1);
	if (r->poll)
		loop_poll_urgent(r->poll, hurried || r->limits.urgent);
}

static void ring_push(struct redis *r, redis_cb cb, void *arg, size_t bytes, bool urgent)
{
	assert(r->count < r->ring_cap);
	r->ring[(r->head + r->count++) & (r->ring_cap - 1)] =
	    (struct pending){cb, arg, loop_now_ms(r->loop), bytes, urgent};
	r->bytes += bytes;
	if (urgent) {
		r->urgent++;
		hurry(r);
	}
}

static struct pending ring_pop(struct redis *r)
{
	struct pending p = r->ring[r->head];

	r->head = (r->head + 1) & (r->ring_cap - 1);
	r->count--;
	r->bytes -= p.bytes;
	if (p.urgent) {
		r->urgent--;
		hurry(r);
	}
	return p;
}

/* ---- life ---- */

static void release(struct redis *r)
{
	if (r->busy || !r->closed)
		return;
	if (r->resolving)
		loop_resolve_forget(r->resolving);
	buf_wipe(&r->out); /* may hold AUTH or commands' parameters */
	buf_fini(&r->out);
	redis_reader_free(r->reader);
	redis_url_wipe(&r->url);
	free(r->ring);
	free(r);
}

static void enter(struct redis *r)
{
	r->busy++;
}

static void leave(struct redis *r)
{
	r->busy--;
	release(r);
}

static void on_fd_free(void *arg)
{
	(void)close((int)(intptr_t)arg);
}

static void drop_socket(struct redis *r)
{
	if (r->poll)
		loop_poll_close(r->poll, on_fd_free, (void *)(intptr_t)r->fd);
	else if (r->fd >= 0)
		(void)close(r->fd);
	r->poll = NULL;
	r->fd = -1;
	r->events = 0;
	hurry(r);
	if (r->resolving)
		loop_resolve_forget(TAKE(r->resolving));
	buf_wipe(&r->out);
	r->out_sent = 0;
	buf_trim(&r->out, KEEP_OUT_BYTES);
}

/* Everyone who waits learns that the outcome is unknown. */
static void drain(struct redis *r)
{
	while (r->count) {
		struct pending p = ring_pop(r);

		if (p.cb)
			p.cb(p.arg, NULL);
	}
}

static void redis_fail(struct redis *r, const char *why)
{
	enter(r);
	(void)snprintf(r->why, sizeof(r->why), "%s", why);
	r->state = WAITING;
	drop_socket(r);
	drain(r);
	if (redis_reader_reset(r->reader) < 0)
		LOG_DEBUG(FIELDS(.event = "redis"), "no memory for a fresh reader");
	if (!r->closed)
		loop_timer_start(r->timer, backoff_next_ms(&r->backoff), 0);
	if (!r->closed && r->ops && r->ops->on_down)
		r->ops->on_down(r->arg, r->why);
	leave(r);
}

static void fail_errno(struct redis *r, const char *what, int error)
{
	char why[128], text[64];

	(void)snprintf(why, sizeof(why), "%s: %s", what, strerror_r(error, text, sizeof(text)));
	redis_fail(r, why);
}

/* ---- output ---- */

static int watch(struct redis *r, int events)
{
	if (r->events == events)
		return 0;
	r->events = events;
	hurry(r);
	return loop_poll_set(r->poll, events);
}

static void flush_out(struct redis *r)
{
	while (r->out_sent < r->out.len) {
		ssize_t n =
		    send(r->fd, r->out.data + r->out_sent, r->out.len - r->out_sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		if (n < 0) {
			fail_errno(r, "write", errno);
			return;
		}
		r->out_sent += (size_t)n;
	}
	if (r->out_sent == r->out.len) {
		buf_clear(&r->out);
		r->out_sent = 0;
		buf_trim(&r->out, KEEP_OUT_BYTES);
		(void)watch(r, LOOP_READ);
		return;
	}
	/* Moving bytes down is linear: only when at least half of the buffer is dead. */
	if (r->out_sent > r->out.len / 2) {
		buf_consume(&r->out, r->out_sent);
		r->out_sent = 0;
	}
	(void)watch(r, LOOP_READ | LOOP_WRITE);
}

/* The buffer is worth a write now, or once the gathering time is over. Turns that are kept apart
 * half as long gather by themselves. */
static void flush_soon(struct redis *r)
{
	if (loop_pace_us(r->loop) * 2 >= r->limits.gather_ms * 1000 ||
	    r->out.len - r->out_sent >= GATHER_BYTES)
		loop_later_ask(r->flush);
	else if (!loop_timer_active(r->gather))
		loop_timer_start(r->gather, r->limits.gather_ms, 0);
}

static void on_flush(void *arg)
{
	struct redis *r = arg;

	enter(r);
	if (!r->closed && r->state >= GREETING)
		flush_out(r);
	leave(r);
}

/* ---- timer: backoff, connect deadline, oldest command ---- */

static void arm_oldest(struct redis *r)
{
	int64_t age;

	if (r->state != UP || !r->count || loop_timer_active(r->timer))
		return;
	age = loop_now_ms(r->loop) - r->ring[r->head].sent_ms;
	loop_timer_start(r->timer, age < r->limits.timeout_ms ? r->limits.timeout_ms - age + 1 : 0,
			 0);
}

static void on_oldest(struct redis *r)
{
	/* When it was we who were stopped, the answer may be in the socket already. */
	if (redis_oldest_ms(r) >= r->limits.timeout_ms)
		handle_io(r, LOOP_READ);
	if (r->closed || r->state != UP)
		return;
	if (redis_oldest_ms(r) >= r->limits.timeout_ms)
		redis_fail(r, "no answer in time");
	else
		arm_oldest(r);
}

static void on_timer(void *arg)
{
	struct redis *r = arg;

	enter(r);
	if (r->state == WAITING)
		start_connect(r);
	else if (r->state == UP)
		on_oldest(r);
	else
		redis_fail(r, r->state == RESOLVING ? "name resolution took too long"
						    : "connecting took too long");
	leave(r);
}

/* ---- input ---- */

static void go_up(struct redis *r)
{
	r->state = UP;
	backoff_reset(&r->backoff);
	loop_timer_stop(r->timer);
	if (r->ops && r->ops->on_up)
		r->ops->on_up(r->arg);
}

static void on_greeting(struct redis *r, const struct redis_reply *reply)
{
	char why[160];
	struct span text = redis_str(reply);

	if (redis_type(reply) == REDIS_ERR) {
		(void)snprintf(why, sizeof(why), SPAN_FMT, SPAN_ARG(text));
		redis_fail(r, why);
		return;
	}
	if (--r->greetings_due == 0)
		go_up(r);
}

static void on_reply(struct redis *r, const struct redis_reply *reply)
{
	struct pending p;

	if (r->state == GREETING) {
		on_greeting(r, reply);
		return;
	}
	if (!r->count) {
		redis_fail(r, "an answer nobody asked for");
		return;
	}
	p = ring_pop(r);
	if (p.cb)
		p.cb(p.arg, reply);
}

static bool connected(const struct redis *r, int fd)
{
	return !r->closed && r->state >= GREETING && r->fd == fd;
}

static void deliver(struct redis *r, int fd)
{
	const struct redis_reply *reply;
	int n = 1;

	while (connected(r, fd) && (n = redis_reader_next(r->reader, &reply)) > 0)
		on_reply(r, reply);
	if (n < 0 && connected(r, fd))
		redis_fail(r, "not a Redis answer");
}

static void read_in(struct redis *r)
{
	char bytes[READ_BYTES];
	int fd = r->fd;

	for (int i = 0; i < READS_A_TURN && connected(r, fd); i++) {
		ssize_t n = recv(fd, bytes, sizeof(bytes), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n < 0) {
			fail_errno(r, "read", errno);
			return;
		}
		if (n == 0) {
			redis_fail(r, "closed by the server");
			return;
		}
		if (redis_reader_feed(r->reader, bytes, (size_t)n) < 0) {
			redis_fail(r, "no memory for an answer");
			return;
		}
		deliver(r, fd);
		if ((size_t)n < sizeof(bytes))
			return;
	}
}

static void greet(struct redis *r)
{
	int error = 0;
	socklen_t n = sizeof(error);

	if (getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &n) < 0)
		error = errno;
	if (error) {
		fail_errno(r, "connect", error);
		return;
	}
	r->state = GREETING;
	if (resp_append_greeting(&r->out, &r->url, &r->greetings_due) < 0) {
		redis_fail(r, "no memory");
		return;
	}
	flush_out(r);
}

static void handle_io(struct redis *r, int events)
{
	enter(r);
	if (r->state == CONNECTING) {
		greet(r);
	} else if (r->state >= GREETING) {
		int fd = r->fd;

		if (events & LOOP_READ)
			read_in(r);
		if ((events & LOOP_WRITE) && connected(r, fd) && r->out.len)
			flush_out(r);
		if (!r->closed)
			arm_oldest(r);
	}
	leave(r);
}

static void on_poll(void *arg, int events)
{
	handle_io(arg, events);
}

/* ---- connecting ---- */

static void connect_to(struct redis *r, const struct sockaddr *sa, socklen_t len)
{
	int one = 1, error;

	r->fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->fd < 0) {
		fail_errno(r, "socket", errno);
		return;
	}
	if (!r->url.is_unix) {
		(void)setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		(void)setsockopt(r->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	}
	if (connect(r->fd, sa, len) < 0 && errno != EINPROGRESS) {
		fail_errno(r, "connect", errno);
		return;
	}
	r->state = CONNECTING;
	error = loop_poll_new(r->loop, r->fd, on_poll, r, &r->poll);
	if (error == 0 && r->limits.urgent)
		loop_poll_urgent(r->poll, true);
	if (error == 0)
		error = watch(r, LOOP_READ | LOOP_WRITE);
	if (error < 0)
		fail_errno(r, "poll", -error);
}

static bool held_up(struct redis *r)
{
	if (!loop_opens_held(r->loop))
		return false;
	r->state = WAITING;
	loop_timer_start(r->timer, HELD_MS, 0);
	return true;
}

static void on_resolved(void *arg, int error, const struct netaddr *addr, size_t n)
{
	struct redis *r = arg;

	enter(r);
	r->resolving = NULL;
	if (error < 0)
		fail_errno(r, "name resolution", -error);
	else if (!held_up(r)) /* not always the same of several addresses */
		connect_to(r, (const struct sockaddr *)&addr[r->backoff.last_ms % (int64_t)n].ss,
			   addr[r->backoff.last_ms % (int64_t)n].len);
	leave(r);
}

static void start_connect(struct redis *r)
{
	int error;

	if (held_up(r))
		return;
	loop_timer_start(r->timer, CONNECT_TIMEOUT_MS, 0);
	if (r->url.is_unix) {
		struct sockaddr_un un = {.sun_family = AF_UNIX};

		memcpy(un.sun_path, r->url.path, sizeof(r->url.path));
		connect_to(r, (const struct sockaddr *)&un, sizeof(un));
		return;
	}
	r->state = RESOLVING;
	error = loop_resolve(r->loop, r->url.host, r->url.port, on_resolved, r, &r->resolving);
	if (error < 0)
		fail_errno(r, "name resolution", -error);
}

int redis_open(struct loop *l, const char *url, const struct redis_limits *limits,
	       const struct redis_ops *ops, void *arg, struct redis **ret)
{
	struct redis *r = calloc(1, sizeof(*r));
	char msg[160];
	int error;

	if (!r)
		return -ENOMEM;
	r->loop = l;
	r->fd = -1;
	r->ops = ops;
	r->arg = arg;
	if (limits)
		r->limits = *limits;
	if (!r->limits.max_in_flight)
		r->limits.max_in_flight = MAX_IN_FLIGHT_DEFAULT;
	if (!r->limits.max_in_flight_bytes)
		r->limits.max_in_flight_bytes = MAX_BYTES_DEFAULT;
	if (!r->limits.timeout_ms)
		r->limits.timeout_ms = TIMEOUT_MS_DEFAULT;
	/* The caps are kept by counting; the buffer's own cap is only the last resort. */
	buf_init(&r->out, 4 * r->limits.max_in_flight_bytes);
	backoff_init(&r->backoff, BACKOFF_BASE_MS, BACKOFF_CAP_MS);
	error = redis_url_parse(url, &r->url, msg, sizeof(msg));
	if (error == 0)
		error = redis_reader_new(&r->reader);
	if (error == 0)
		error = loop_timer_new(l, on_timer, r, &r->timer);
	if (error == 0)
		error = loop_later_new(l, on_flush, r, &r->flush);
	if (error == 0)
		error = loop_timer_new(l, on_flush, r, &r->gather);
	if (error < 0) {
		redis_close(r);
		return error;
	}
	loop_timer_start(r->timer, 0, 0);
	*ret = r;
	return 0;
}

void redis_close(struct redis *r)
{
	if (!r || r->closed)
		return;
	enter(r);
	if (r->state == UP && r->out_sent < r->out.len) /* a last word, if the socket takes it */
		(void)!send(r->fd, r->out.data + r->out_sent, r->out.len - r->out_sent,
			    MSG_NOSIGNAL);
	r->closed = true;
	r->state = WAITING;
	loop_timer_close(r->timer);
	loop_later_close(r->flush);
	loop_timer_close(r->gather);
	drop_socket(r);
	drain(r);
	leave(r);
}

void redis_reconnect(struct redis *r, const char *why)
{
	if (!r->closed && r->state != WAITING)
		redis_fail(r, why);
}

bool redis_is_up(const struct redis *r)
{
	return r->state == UP && !r->closed;
}

size_t redis_in_flight(const struct redis *r)
{
	return r->count;
}

size_t redis_in_flight_bytes(const struct redis *r)
{
	return r->bytes;
}

int64_t redis_oldest_ms(const struct redis *r)
{
	return r->count ? loop_now_ms(r->loop) - r->ring[r->head].sent_ms : 0;
}

/* ---- commands ---- */

static int room(struct redis *r, size_t bytes)
{
	if (!redis_is_up(r))
		return -ENOTCONN;
	if (r->count >= r->limits.max_in_flight || r->bytes + bytes > r->limits.max_in_flight_bytes)
		return -ENOBUFS;
	if (r->count == r->ring_cap)
		return ring_grow(r);
	return 0;
}

int redis_reserve(struct redis *r, size_t max_bytes, char **ret_at)
{
	int error = room(r, max_bytes);

	return error < 0 ? error : buf_reserve(&r->out, max_bytes, ret_at);
}

void redis_commit(struct redis *r, size_t n, redis_cb cb, void *arg)
{
	if (!n)
		return;
	buf_commit(&r->out, n);
	ring_push(r, cb, arg, n, false);
	flush_soon(r);
	arm_oldest(r);
}

int redis_cmd(struct redis *r, redis_cb cb, void *arg, size_t argc, const struct span *argv)
{
	size_t bytes = 0, before = r->out.len;
	int error;

	for (size_t i = 0; i < argc; i++)
		bytes += argv[i].n;
	error = room(r, bytes);
	if (error == 0)
		error = resp_append(&r->out, argc, argv);
	if (error < 0)
		return error;
	ring_push(r, cb, arg, r->out.len - before, r->limits.gather_ms > 0);
	loop_later_ask(r->flush);
	arm_oldest(r);
	return 0;
}

int redis_cmdf(struct redis *r, redis_cb cb, void *arg, const char *fmt, ...)
{
	struct span argv[REDIS_FMT_WORDS_MAX];
	struct buf text;
	size_t argc;
	va_list ap;
	int error;

	buf_init(&text, r->limits.max_in_flight_bytes);
	va_start(ap, fmt);
	error = resp_vformat(&text, fmt, ap, &argc, argv);
	va_end(ap);
	if (error == 0)
		error = redis_cmd(r, cb, arg, argc, argv);
	buf_fini(&text);
	return error;
}
