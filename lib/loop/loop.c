/*
 * The loop itself, timers, end-of-turn calls, wakes, signals, the thread pool and name resolution.
 * Every object is one allocation whose first member is its uv handle; closing hands it to libuv and
 * the close callback frees it, so no callback can meet freed memory.
 */
#include "loop/loop.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "loop_internal.h"

#define CLOSE_DEADLINE_MS 2000
#define RESOLVE_ADDRS_MAX 16
#define HURRY_US	  500u /* unless said otherwise */

static void on_close_free(uv_handle_t *h)
{
	free(h);
}

void loop_close_and_free(uv_handle_t *h)
{
	uv_close(h, on_close_free);
}

int loop_new(struct loop **ret)
{
	struct loop *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	r = uv_loop_init(&l->uv);
	if (r < 0) {
		free(l);
		return r;
	}
	for (size_t i = 0; i < LOOP_URGENT_MAX; i++)
		l->urgent[i] = (struct pollfd){.fd = -1, .events = POLLIN};
	l->hurried_us = HURRY_US;
	(void)uv_prepare_init(&l->uv, &l->pace); /* never fails */
	l->pace.data = l;
	uv_unref((uv_handle_t *)&l->pace);
	l->now_boot_ms = clock_boot_ms();
	l->now_uv_ms = uv_now(&l->uv);
	*ret = l;
	return 0;
}

void loop_run(struct loop *l)
{
	(void)uv_run(&l->uv, UV_RUN_DEFAULT);
}

void loop_stop(struct loop *l)
{
	uv_stop(&l->uv);
}

static void close_signals(struct loop *l)
{
	while (l->signals) {
		struct loop_signal *s = l->signals;

		l->signals = s->next;
		loop_close_and_free((uv_handle_t *)&s->handle);
	}
}

static void count_handle(uv_handle_t *h, void *arg)
{
	unsigned *n = arg;

	(void)h;
	(*n)++;
}

static void print_open_handle(uv_handle_t *h, void *arg)
{
	(void)arg;
	fprintf(stderr, "loop: handle of type %s is still open\n",
		uv_handle_type_name(uv_handle_get_type(h)));
}

void loop_free(struct loop *l)
{
	int64_t deadline;
	unsigned open;

	if (!l)
		return;
	close_signals(l);
	uv_close((uv_handle_t *)&l->pace, NULL);
	deadline = clock_boot_ms() + CLOSE_DEADLINE_MS;
	while (uv_loop_close(&l->uv) == UV_EBUSY) {
		open = 0;
		uv_walk(&l->uv, count_handle, &open);
		if (open == 0 && loop_resolver_hangs())
			return; /* its thread still writes into l; the process ends soon */
		if (clock_boot_ms() > deadline) {
			uv_walk(&l->uv, print_open_handle, NULL);
			assert(false && "loop_free: handles left open");
			return;
		}
		(void)uv_run(&l->uv, UV_RUN_NOWAIT);
	}
	free(l);
}

void *loop_native(struct loop *l)
{
	return &l->uv;
}

/* uv_now stands still within a turn, so the kernel is asked at most once a turn. */
int64_t loop_now_ms(const struct loop *l)
{
	struct loop *m = (struct loop *)(uintptr_t)l; /* a cache, not state */
	uint64_t uv_ms = uv_now(&l->uv);

	if (uv_ms != m->now_uv_ms) {
		m->now_uv_ms = uv_ms;
		m->now_boot_ms = clock_boot_ms();
	}
	return m->now_boot_ms;
}

/* ---- pace ---- */

/* Until an urgent descriptor has something. */
static void sleep_ns(struct loop *l, uint64_t ns)
{
	const struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

	(void)ppoll(l->urgent, LOOP_URGENT_MAX, &t, NULL);
}

static void on_pace(uv_prepare_t *h)
{
	struct loop *l = h->data;
	unsigned pace_us = loop_pace_us(l);
	uint64_t us = l->hurry_once && pace_us > l->hurried_us ? l->hurried_us : pace_us;
	uint64_t now_ns = uv_hrtime(), due_ns = l->turn_ns + us * 1000u;

	l->hurry_once = false;

	if (!pace_us) {
		(void)uv_prepare_stop(h);
		return;
	}
	if (now_ns < due_ns) {
		sleep_ns(l, due_ns - now_ns);
		now_ns = uv_hrtime();
	}
	l->turn_ns = now_ns;
}

void loop_pace(struct loop *l, unsigned us, int64_t for_ms)
{
	l->pace_us = us;
	l->pace_until_ms = uv_now(&l->uv) + (uint64_t)for_ms;
	(void)uv_prepare_start(&l->pace, on_pace);
}

unsigned loop_pace_us(const struct loop *l)
{
	uint64_t now_ms = uv_now(&l->uv);
	bool hurry = l->hurry > 0 || now_ms < l->hurry_until_ms;

	if (now_ms > l->pace_until_ms)
		return 0;
	return hurry && l->pace_us > l->hurried_us ? l->hurried_us : l->pace_us;
}

void loop_pace_hurried(struct loop *l, unsigned us)
{
	l->hurried_us = us;
}

void loop_hurry(struct loop *l, int by)
{
	l->hurry += by;
}

void loop_hurry_once(struct loop *l)
{
	l->hurry_once = true;
}

void loop_hurry_for(struct loop *l, int64_t ms)
{
	uint64_t until_ms = uv_now(&l->uv) + (uint64_t)ms;

	if (until_ms > l->hurry_until_ms)
		l->hurry_until_ms = until_ms;
}

void loop_hold_opens(struct loop *l, int by)
{
	l->opens_held += by;
}

bool loop_opens_held(const struct loop *l)
{
	return l->opens_held > 0;
}

/* ---- timers ---- */

struct loop_timer {
	uv_timer_t handle;
	loop_cb cb;
	void *arg;
};

static void on_timer(uv_timer_t *h)
{
	struct loop_timer *t = h->data;

	t->cb(t->arg);
}

int loop_timer_new(struct loop *l, loop_cb cb, void *arg, struct loop_timer **ret)
{
	struct loop_timer *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	(void)uv_timer_init(&l->uv, &t->handle); /* never fails */
	t->handle.data = t;
	t->cb = cb;
	t->arg = arg;
	*ret = t;
	return 0;
}

void loop_timer_start(struct loop_timer *t, int64_t after_ms, int64_t every_ms)
{
	uint64_t after = after_ms > 0 ? (uint64_t)after_ms : 0;
	uint64_t every = every_ms > 0 ? (uint64_t)every_ms : 0;

	assert(!uv_is_closing((uv_handle_t *)&t->handle));
	(void)uv_timer_start(&t->handle, on_timer, after, every);
}

void loop_timer_stop(struct loop_timer *t)
{
	(void)uv_timer_stop(&t->handle);
}

bool loop_timer_active(const struct loop_timer *t)
{
	return uv_is_active((const uv_handle_t *)&t->handle);
}

void loop_timer_close(struct loop_timer *t)
{
	if (t)
		loop_close_and_free((uv_handle_t *)&t->handle);
}

int64_t loop_part_ms(size_t n, size_t part, int64_t every_ms)
{
	size_t parts = (n + part - 1) / part;

	return parts > 1 ? every_ms / (int64_t)parts : every_ms;
}

/* ---- end of turn ----
 *
 * Whoever asks in a timer is served by the prepare handle just before the loop would sleep, whoever
 * asks in an I/O callback by the check handle just after. The idle handle only keeps the loop from
 * sleeping in the one case both have already passed (asked from another check or close callback).
 */

struct loop_later {
	uv_prepare_t prepare; /* first: freed through it */
	uv_check_t check;
	uv_idle_t idle;
	unsigned open;
	bool asked;
	loop_cb cb;
	void *arg;
};

static void later_run(struct loop_later *x)
{
	(void)uv_prepare_stop(&x->prepare);
	(void)uv_check_stop(&x->check);
	(void)uv_idle_stop(&x->idle);
	x->asked = false;
	x->cb(x->arg);
}

static void on_later_prepare(uv_prepare_t *h)
{
	later_run(h->data);
}

static void on_later_check(uv_check_t *h)
{
	later_run(h->data);
}

static void on_later_idle(uv_idle_t *h)
{
	(void)h;
}

int loop_later_new(struct loop *l, loop_cb cb, void *arg, struct loop_later **ret)
{
	struct loop_later *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	(void)uv_prepare_init(&l->uv, &x->prepare);
	(void)uv_check_init(&l->uv, &x->check);
	(void)uv_idle_init(&l->uv, &x->idle);
	x->prepare.data = x->check.data = x->idle.data = x;
	x->open = 3;
	x->cb = cb;
	x->arg = arg;
	*ret = x;
	return 0;
}

void loop_later_ask(struct loop_later *x)
{
	if (x->asked)
		return;
	x->asked = true;
	(void)uv_prepare_start(&x->prepare, on_later_prepare);
	(void)uv_check_start(&x->check, on_later_check);
	(void)uv_idle_start(&x->idle, on_later_idle);
}

static void on_later_closed(uv_handle_t *h)
{
	struct loop_later *x = h->data;

	if (--x->open == 0)
		free(x);
}

void loop_later_close(struct loop_later *x)
{
	if (!x)
		return;
	uv_close((uv_handle_t *)&x->prepare, on_later_closed);
	uv_close((uv_handle_t *)&x->check, on_later_closed);
	uv_close((uv_handle_t *)&x->idle, on_later_closed);
}

/* ---- wakes from other threads ---- */

struct loop_wake {
	uv_async_t handle;
	loop_cb cb;
	void *arg;
};

static void on_wake(uv_async_t *h)
{
	struct loop_wake *w = h->data;

	w->cb(w->arg);
}

int loop_wake_new(struct loop *l, loop_cb cb, void *arg, struct loop_wake **ret)
{
	struct loop_wake *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	r = uv_async_init(&l->uv, &w->handle, on_wake);
	if (r < 0) {
		free(w);
		return r;
	}
	w->handle.data = w;
	w->cb = cb;
	w->arg = arg;
	*ret = w;
	return 0;
}

void loop_wake_send(struct loop_wake *w)
{
	(void)uv_async_send(&w->handle);
}

void loop_wake_close(struct loop_wake *w)
{
	if (w)
		loop_close_and_free((uv_handle_t *)&w->handle);
}

/* ---- signals ---- */

static void on_signal(uv_signal_t *h, int signum)
{
	struct loop_signal *s = h->data;

	s->cb(s->arg, signum);
}

int loop_on_signal(struct loop *l, int signum, void (*cb)(void *arg, int signum), void *arg)
{
	struct loop_signal *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = uv_signal_init(&l->uv, &s->handle);
	if (r < 0) {
		free(s);
		return r;
	}
	s->handle.data = s;
	s->cb = cb;
	s->arg = arg;
	s->next = l->signals;
	l->signals = s;
	uv_unref((uv_handle_t *)&s->handle); /* waiting for a signal is no reason to go on */
	return uv_signal_start(&s->handle, on_signal, signum);
}

/* ---- thread pool ---- */

struct work {
	uv_work_t req;
	void (*fn)(void *arg);
	void (*done)(void *arg);
	void *arg;
};

static void on_work(uv_work_t *req)
{
	struct work *w = req->data;

	w->fn(w->arg);
}

static void on_work_done(uv_work_t *req, int status)
{
	struct work *w = req->data;

	(void)status; /* never cancelled */
	w->done(w->arg);
	free(w);
}

int loop_work(struct loop *l, void (*fn)(void *arg), void (*done)(void *arg), void *arg)
{
	struct work *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	w->req.data = w;
	w->fn = fn;
	w->done = done;
	w->arg = arg;
	r = uv_queue_work(&l->uv, &w->req, on_work, on_work_done);
	if (r < 0)
		free(w);
	return r;
}

/* ---- name resolution ---- */

struct loop_resolve {
	uv_getaddrinfo_t req;
	void (*cb)(void *arg, int error, const struct netaddr *addr,
		   size_t n); /* NULL: forgotten */
	void *arg;
};

static unsigned forgotten; /* with a thread that goes on; as the pool, one for the process */

static void on_resolved(uv_getaddrinfo_t *req, int status, struct addrinfo *list)
{
	struct loop_resolve *q = req->data;
	struct netaddr addr[RESOLVE_ADDRS_MAX];
	size_t n = 0;

	for (struct addrinfo *a = list; a && n < RESOLVE_ADDRS_MAX; a = a->ai_next) {
		if (a->ai_addrlen > sizeof(addr[n].ss))
			continue;
		memset(&addr[n], 0, sizeof(addr[n]));
		memcpy(&addr[n].ss, a->ai_addr, a->ai_addrlen);
		addr[n++].len = a->ai_addrlen;
	}
	uv_freeaddrinfo(list);
	if (status == 0 && n == 0)
		status = UV_EAI_NONAME;
	/* The resolver's own codes are outside errno: one code stands for "no such host". */
	if (status <= UV_EAI_ADDRFAMILY)
		status = -EHOSTUNREACH;
	if (q->cb)
		q->cb(q->arg, status, addr, status == 0 ? n : 0);
	else
		forgotten--;
	free(q);
}

int loop_resolve(struct loop *l, const char *host, uint16_t port,
		 void (*cb)(void *arg, int error, const struct netaddr *addr, size_t n), void *arg,
		 struct loop_resolve **ret)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct loop_resolve *q = calloc(1, sizeof(*q));
	char service[8];
	int r;

	if (!q)
		return -ENOMEM;
	(void)snprintf(service, sizeof(service), "%u", (unsigned)port);
	q->req.data = q;
	q->cb = cb;
	q->arg = arg;
	r = uv_getaddrinfo(&l->uv, &q->req, on_resolved, host, service, &hints);
	if (r < 0)
		free(q);
	else
		*ret = q;
	return r;
}

void loop_resolve_forget(struct loop_resolve *q)
{
	q->cb = NULL;
	forgotten++;
	(void)uv_cancel((uv_req_t *)&q->req); /* 0: not begun yet, and comes back at once */
}

bool loop_resolver_hangs(void)
{
	return forgotten > 0;
}
