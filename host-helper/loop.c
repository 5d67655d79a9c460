/* The epoll loop. Dropped watches wait in a list until the turn ends, so no event finds freed
 * memory. */
#include "loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"

int loop_init(struct loop *l)
{
	*l = (struct loop){.epoll = epoll_create1(EPOLL_CLOEXEC)};
	return l->epoll < 0 ? -errno : 0;
}

static void bury(struct loop *l)
{
	while (l->dead) {
		struct watch *w = l->dead;
		l->dead = w->next_dead;
		if (w->on_free)
			w->on_free(w);
	}
}

void loop_fini(struct loop *l)
{
	bury(l);
	closep(&l->epoll);
}

static int control(struct loop *l, int op, struct watch *w, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = w};

	return epoll_ctl(l->epoll, op, w->fd, &e) < 0 ? -errno : 0;
}

int loop_add(struct loop *l, struct watch *w, uint32_t events)
{
	return control(l, EPOLL_CTL_ADD, w, events);
}

int loop_change(struct loop *l, struct watch *w, uint32_t events)
{
	return control(l, EPOLL_CTL_MOD, w, events);
}

void loop_drop(struct loop *l, struct watch *w)
{
	if (w->fd < 0)
		return;
	(void)control(l, EPOLL_CTL_DEL, w, 0);
	close(w->fd);
	w->fd = -1;
	w->next_dead = l->dead;
	l->dead = w;
}

int loop_run(struct loop *l, int tick_ms, void (*on_tick)(void *arg), void *arg)
{
	struct epoll_event e[64];
	int64_t next = clock_boot_ms() + tick_ms;

	while (!l->stop) {
		int64_t left = next - clock_boot_ms();
		int n = epoll_wait(l->epoll, e, ARRAY_LEN(e), left < 0 ? 0 : (int)left);
		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++) {
			struct watch *w = e[i].data.ptr;
			if (w->fd >= 0)
				w->on_ready(w, e[i].events);
		}
		bury(l);
		if (clock_boot_ms() >= next) {
			on_tick(arg);
			bury(l);
			next = clock_boot_ms() + tick_ms;
		}
	}
	return 0;
}
