/*
 * Watched descriptors and unix byte streams. Both are one allocation, freed in the close callback;
 * after *_close no callback of the owner's runs (but `closed`).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "loop/loop.h"
#include "loop_internal.h"

#define STREAM_MAX_QUEUED_BYTES (1024 * 1024)
#define STREAM_READ_BYTES	65536

struct loop_poll {
	uv_poll_t handle;
	struct loop *loop;
	int fd;
	void (*cb)(void *arg, int events);
	void *arg;
	loop_cb closed;
	void *closed_arg;
};

static void on_poll(uv_poll_t *h, int status, int events)
{
	struct loop_poll *p = h->data;
	int seen = 0;

	/* An error has no event of its own: the owner's read or write must meet it (else it would
	 * never learn of a refused connect or a reset). */
	if (status < 0)
		seen = LOOP_READ | LOOP_WRITE;
	if (events & (UV_READABLE | UV_DISCONNECT))
		seen |= LOOP_READ;
	if (events & UV_WRITABLE)
		seen |= LOOP_WRITE;
	p->cb(p->arg, seen);
}

int loop_poll_new(struct loop *l, int fd, void (*cb)(void *arg, int events), void *arg,
		  struct loop_poll **ret)
{
	struct loop_poll *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	r = uv_poll_init(&l->uv, &p->handle, fd);
	if (r < 0) {
		free(p);
		return r;
	}
	p->handle.data = p;
	p->loop = l;
	p->fd = fd;
	p->cb = cb;
	p->arg = arg;
	*ret = p;
	return 0;
}

void loop_poll_urgent(struct loop_poll *p, bool is)
{
	struct pollfd *free_one = NULL;

	for (struct pollfd *u = p->loop->urgent; u < p->loop->urgent + LOOP_URGENT_MAX; u++) {
		if (u->fd == p->fd)
			u->fd = -1;
		if (u->fd < 0)
			free_one = u;
	}
	if (is && free_one)
		free_one->fd = p->fd;
}

int loop_poll_set(struct loop_poll *p, int events)
{
	int uv = 0;

	if (events & LOOP_READ)
		uv |= UV_READABLE;
	if (events & LOOP_WRITE)
		uv |= UV_WRITABLE;
	return uv ? uv_poll_start(&p->handle, uv, on_poll) : uv_poll_stop(&p->handle);
}

static void on_poll_closed(uv_handle_t *h)
{
	struct loop_poll *p = h->data;

	if (p->closed)
		p->closed(p->closed_arg);
	free(p);
}

void loop_poll_close(struct loop_poll *p, loop_cb closed, void *arg)
{
	if (!p)
		return;
	loop_poll_urgent(p, false);
	(void)uv_poll_stop(&p->handle); /* no event between here and the close callback */
	p->closed = closed;
	p->closed_arg = arg;
	uv_close((uv_handle_t *)&p->handle, on_poll_closed);
}

/* ---- streams ---- */

struct loop_stream {
	uv_pipe_t handle;
	uv_connect_t connecting;
	const struct loop_stream_ops *ops;
	void *arg;
	bool connected, ended, closing;
	char in[STREAM_READ_BYTES];
};

struct stream_write {
	uv_write_t req;
	struct loop_stream *s;
	char bytes[];
};

static void stream_end(struct loop_stream *s, int error)
{
	if (s->ended || s->closing)
		return;
	s->ended = true;
	(void)uv_read_stop((uv_stream_t *)&s->handle);
	s->ops->on_end(s->arg, error);
}

static void on_stream_alloc(uv_handle_t *h, size_t hint, uv_buf_t *buf)
{
	struct loop_stream *s = h->data;

	(void)hint;
	*buf = uv_buf_init(s->in, sizeof(s->in));
}

static void on_stream_read(uv_stream_t *h, ssize_t n, const uv_buf_t *buf)
{
	struct loop_stream *s = h->data;

	if (n > 0)
		s->ops->on_bytes(s->arg, buf->base, (size_t)n);
	else if (n < 0)
		stream_end(s, n == UV_EOF ? 0 : (int)n);
}

static void on_stream_connect(uv_connect_t *req, int status)
{
	struct loop_stream *s = req->data;

	if (s->closing)
		return;
	if (status == 0)
		status = uv_read_start((uv_stream_t *)&s->handle, on_stream_alloc, on_stream_read);
	s->connected = status == 0;
	s->ended = status != 0; /* on_connect has told; on_end would tell it twice */
	s->ops->on_connect(s->arg, status);
}

int loop_stream_connect_unix(struct loop *l, const char *path, const struct loop_stream_ops *ops,
			     void *arg, struct loop_stream **ret)
{
	struct loop_stream *s;

	if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return -ENAMETOOLONG; /* libuv would cut it silently */
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	(void)uv_pipe_init(&l->uv, &s->handle, 0);
	s->handle.data = s;
	s->connecting.data = s;
	s->ops = ops;
	s->arg = arg;
	uv_pipe_connect(&s->connecting, &s->handle, path, on_stream_connect);
	*ret = s;
	return 0;
}

static void on_stream_written(uv_write_t *req, int status)
{
	struct stream_write *w = req->data;
	struct loop_stream *s = w->s;

	free(w);
	if (status < 0)
		stream_end(s, status);
}

int loop_stream_write(struct loop_stream *s, const void *bytes, size_t n)
{
	struct stream_write *w;
	uv_buf_t buf;
	int r;

	if (!s->connected || s->ended || s->closing)
		return -ENOTCONN;
	if (uv_stream_get_write_queue_size((uv_stream_t *)&s->handle) + n > STREAM_MAX_QUEUED_BYTES)
		return -ENOBUFS;
	w = malloc(sizeof(*w) + n);
	if (!w)
		return -ENOMEM;
	w->req.data = w;
	w->s = s;
	memcpy(w->bytes, bytes, n);
	buf = uv_buf_init(w->bytes, (unsigned)n);
	r = uv_write(&w->req, (uv_stream_t *)&s->handle, &buf, 1, on_stream_written);
	if (r < 0)
		free(w);
	return r;
}

void loop_stream_close(struct loop_stream *s)
{
	if (!s)
		return;
	s->closing = true;
	loop_close_and_free((uv_handle_t *)&s->handle);
}
