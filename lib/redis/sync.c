/* The blocking connection of workers and tools: one command, one reply, every wait bounded. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "redis_internal.h"

#define REQUEST_MAX_BYTES ((size_t)512 << 20) /* Redis' own limit of one value */
#define KEEP_OUT_BYTES	  ((size_t)1 << 20)
#define READ_BYTES	  65536

struct redis_sync {
	struct redis_url url;
	int64_t default_timeout_ms, timeout_ms;
	int fd;
	struct buf out;
	struct redis_reader *reader;
	size_t reply_max; /* 0: no limit */
	size_t taken;	  /* bytes of the reply that is being read */
	bool bears_misconf;
	char error[200];
};

static int fail(struct redis_sync *r, int error, const char *what, const char *text)
{
	(void)snprintf(r->error, sizeof(r->error), "%s: %s", what, text);
	if (r->fd >= 0)
		(void)close(r->fd);
	r->fd = -1;
	buf_wipe(&r->out);
	buf_trim(&r->out, KEEP_OUT_BYTES);
	return error;
}

static int fail_errno(struct redis_sync *r, int error, const char *what)
{
	char text[64];

	/* One code for "the server has gone", however it shows. */
	return fail(r, error == EPIPE || error == ECONNRESET ? -ENOTCONN : -error, what,
		    strerror_r(error, text, sizeof(text)));
}

int redis_sync_new(const char *url, int64_t timeout_ms, struct redis_sync **ret)
{
	struct redis_sync *r = calloc(1, sizeof(*r));
	char msg[160];
	int error;

	if (!r)
		return -ENOMEM;
	r->fd = -1;
	r->default_timeout_ms = r->timeout_ms = timeout_ms > 0 ? timeout_ms : 5000;
	buf_init(&r->out, REQUEST_MAX_BYTES);
	error = redis_url_parse(url, &r->url, msg, sizeof(msg));
	if (error == 0)
		error = redis_reader_new(&r->reader);
	if (error < 0) {
		redis_sync_free(r);
		return error;
	}
	*ret = r;
	return 0;
}

void redis_sync_free(struct redis_sync *r)
{
	if (!r)
		return;
	if (r->fd >= 0)
		(void)close(r->fd);
	buf_wipe(&r->out);
	buf_fini(&r->out);
	redis_reader_free(r->reader);
	redis_url_wipe(&r->url);
	free(r);
}

void redis_sync_set_timeout(struct redis_sync *r, int64_t timeout_ms)
{
	r->timeout_ms = timeout_ms > 0 ? timeout_ms : r->default_timeout_ms;
}

void redis_sync_set_reply_max(struct redis_sync *r, size_t bytes)
{
	r->reply_max = bytes;
}

void redis_sync_bear_misconf(struct redis_sync *r)
{
	r->bears_misconf = true;
}

const char *redis_sync_error(const struct redis_sync *r)
{
	return r->error;
}

/* 0 ready, -ETIMEDOUT. Signals do not shorten the wait: a command is never left half done. */
static int wait_for(struct redis_sync *r, short events, int64_t deadline_ms)
{
	struct pollfd p = {.fd = r->fd, .events = events};

	for (;;) {
		int64_t left = deadline_ms - clock_boot_ms();
		int n = left > 0 ? poll(&p, 1, left > 60000 ? 60000 : (int)left) : 0;

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (left <= 0)
			return -ETIMEDOUT;
	}
}

static int try_connect(struct redis_sync *r, const struct sockaddr *sa, socklen_t len,
		       int64_t deadline)
{
	int one = 1, error = 0;
	socklen_t n = sizeof(error);

	r->fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (r->fd < 0)
		return fail_errno(r, errno, "socket");
	if (!r->url.is_unix)
		(void)setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(r->fd, sa, len) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return fail_errno(r, errno, "connect");
	error = wait_for(r, POLLOUT, deadline);
	if (error < 0)
		return fail_errno(r, -error, "connect");
	if (getsockopt(r->fd, SOL_SOCKET, SO_ERROR, &error, &n) < 0)
		error = errno;
	return error ? fail_errno(r, error, "connect") : 0;
}

static int connect_tcp(struct redis_sync *r, int64_t deadline)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list;
	char port[8];
	int error;

	(void)snprintf(port, sizeof(port), "%u", (unsigned)r->url.port);
	error = getaddrinfo(r->url.host, port, &hints, &list);
	if (error)
		return fail(r, -EHOSTUNREACH, "name resolution", gai_strerror(error));
	error = -EHOSTUNREACH;
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		error = try_connect(r, a->ai_addr, a->ai_addrlen, deadline);
		if (error == 0)
			break;
	}
	freeaddrinfo(list);
	return error;
}

static int write_out(struct redis_sync *r, int64_t deadline)
{
	size_t sent = 0;

	while (sent < r->out.len) {
		ssize_t n = send(r->fd, r->out.data + sent, r->out.len - sent, MSG_NOSIGNAL);
		int error = n < 0 ? errno : 0;

		if (n >= 0) {
			sent += (size_t)n;
		} else if (error == EAGAIN || error == EWOULDBLOCK) {
			error = wait_for(r, POLLOUT, deadline);
			if (error < 0)
				return fail_errno(r, -error, "write");
		} else if (error != EINTR) {
			return fail_errno(r, error, "write");
		}
	}
	buf_clear(&r->out);
	buf_trim(&r->out, KEEP_OUT_BYTES);
	return 0;
}

/* One read at most, without waiting: 1 a reply, 0 some bytes, -EAGAIN none there. */
static int read_some(struct redis_sync *r, const struct redis_reply **ret)
{
	char bytes[READ_BYTES];
	int error = redis_reader_next(r->reader, ret);
	ssize_t n;

	if (error < 0)
		return fail(r, -EPROTO, "read", "not a Redis answer");
	if (error > 0) {
		r->taken = 0;
		return 1;
	}
	/* Many tiny words take ten times their bytes. */
	if (r->reply_max && redis_reader_held(r->reader) / 2 > r->reply_max)
		return fail_errno(r, EMSGSIZE, "read");
	n = recv(r->fd, bytes, sizeof(bytes), 0);
	if (n > 0) {
		r->taken += (size_t)n;
		if (r->reply_max && r->taken > r->reply_max)
			return fail_errno(r, EMSGSIZE, "read");
		if (redis_reader_feed(r->reader, bytes, (size_t)n) < 0)
			return fail_errno(r, ENOMEM, "read");
		return 0;
	}
	if (n == 0)
		return fail(r, -ENOTCONN, "read", "closed by the server");
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return -EAGAIN;
	return errno == EINTR ? 0 : fail_errno(r, errno, "read");
}

static int read_reply(struct redis_sync *r, int64_t deadline, const struct redis_reply **ret)
{
	for (;;) {
		int error = read_some(r, ret);

		if (error > 0)
			return 0;
		if (error == -EAGAIN) {
			error = wait_for(r, POLLIN, deadline);
			if (error < 0)
				return fail_errno(r, -error, "read");
		}
		if (error < 0)
			return error;
	}
}

static int greet(struct redis_sync *r, int64_t deadline)
{
	const struct redis_reply *reply;
	unsigned due;
	int error = resp_append_greeting(&r->out, &r->url, &due);

	if (error == 0)
		error = write_out(r, deadline);
	while (error == 0 && due--) {
		error = read_reply(r, deadline, &reply);
		if (error == 0 && redis_type(reply) == REDIS_ERR &&
		    !(r->bears_misconf && redis_error_class(reply) == REDIS_E_MISCONF))
			error = fail(r, -ENOTCONN, "greeting", redis_str(reply).p);
	}
	return error;
}

static int ensure_connected(struct redis_sync *r)
{
	int64_t deadline = clock_boot_ms() + r->default_timeout_ms;
	int error;

	if (r->fd >= 0)
		return 0;
	buf_clear(&r->out);
	r->taken = 0;
	error = redis_reader_reset(r->reader);
	if (error < 0)
		return error;
	if (r->url.is_unix) {
		struct sockaddr_un un = {.sun_family = AF_UNIX};

		memcpy(un.sun_path, r->url.path, sizeof(r->url.path));
		error = try_connect(r, (const struct sockaddr *)&un, sizeof(un), deadline);
	} else {
		error = connect_tcp(r, deadline);
	}
	return error < 0 ? error : greet(r, deadline);
}

int redis_sync_send(struct redis_sync *r, size_t argc, const struct span *argv)
{
	int error = ensure_connected(r);

	if (error == 0)
		error = resp_append(&r->out, argc, argv);
	return error < 0 ? error : write_out(r, clock_boot_ms() + r->timeout_ms);
}

const struct redis_reply *redis_sync_receive(struct redis_sync *r, int *ret_error)
{
	const struct redis_reply *reply = NULL;

	*ret_error = read_reply(r, clock_boot_ms() + r->timeout_ms, &reply);
	return *ret_error < 0 ? NULL : reply;
}

int redis_sync_take(struct redis_sync *r, const struct redis_reply **ret)
{
	return r->fd < 0 ? -ENOTCONN : read_some(r, ret);
}

int redis_sync_fd(const struct redis_sync *r)
{
	return r->fd;
}

const struct redis_reply *redis_sync_cmd(struct redis_sync *r, int *ret_error, size_t argc,
					 const struct span *argv)
{
	*ret_error = redis_sync_send(r, argc, argv);
	return *ret_error < 0 ? NULL : redis_sync_receive(r, ret_error);
}

const struct redis_reply *redis_sync_cmdf(struct redis_sync *r, int *ret_error, const char *fmt,
					  ...)
{
	const struct redis_reply *reply = NULL;
	struct span argv[REDIS_FMT_WORDS_MAX];
	struct buf text;
	size_t argc;
	va_list ap;

	buf_init(&text, REQUEST_MAX_BYTES);
	va_start(ap, fmt);
	*ret_error = resp_vformat(&text, fmt, ap, &argc, argv);
	va_end(ap);
	if (*ret_error == 0)
		reply = redis_sync_cmd(r, ret_error, argc, argv);
	buf_fini(&text);
	return reply;
}
