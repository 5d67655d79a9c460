#include "tls_watch.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "loop/loop.h"

#define FILES_MAX 8

struct stamp {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec changed;
};

struct tls_watch {
	void (*changed)(void *arg);
	void *arg;
	size_t n;
	const char *path[FILES_MAX];
	struct stamp stamp[FILES_MAX];
	struct loop_watch *watch[FILES_MAX];
};

static struct stamp look(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return (struct stamp){0};
	return (struct stamp){st.st_dev, st.st_ino, st.st_size, st.st_ctim};
}

static bool same(const struct stamp *a, const struct stamp *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static void on_change(void *arg)
{
	struct tls_watch *w = arg;
	bool any = false;

	for (size_t i = 0; i < w->n; i++) {
		struct stamp now = look(w->path[i]);

		any |= !same(&now, &w->stamp[i]);
		w->stamp[i] = now;
	}
	if (any)
		w->changed(w->arg);
}

int tls_watch_open(struct loop *l, const char *const *paths, size_t n, void (*changed)(void *arg),
		   void *arg, struct tls_watch **ret)
{
	struct tls_watch *w = calloc(1, sizeof(*w));
	int r = 0;

	if (!w)
		return -ENOMEM;
	w->changed = changed;
	w->arg = arg;
	for (size_t i = 0; r == 0 && i < n && w->n < FILES_MAX; i++) {
		if (!paths[i])
			continue;
		w->path[w->n] = paths[i];
		w->stamp[w->n] = look(paths[i]);
		r = loop_watch_new(l, paths[i], on_change, w, &w->watch[w->n]);
		w->n++;
	}
	if (r < 0) {
		tls_watch_close(w);
		return r;
	}
	*ret = w;
	return 0;
}

void tls_watch_close(struct tls_watch *w)
{
	if (!w)
		return;
	for (size_t i = 0; i < w->n; i++)
		loop_watch_close(w->watch[i]);
	free(w);
}
