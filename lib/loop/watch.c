/*
 * Watches a file through its folder, so that replacing it by rename (editors, our own atomic
 * writes) or by swapping a link (Kubernetes' ..data) is seen as well as writing into it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "loop/loop.h"
#include "loop_internal.h"

#define DEBOUNCE_MS 200

struct loop_watch {
	uv_fs_event_t handle;
	uv_timer_t quiet;
	unsigned open;
	loop_cb cb;
	void *arg;
	char name[256]; /* "": a folder is watched, every change counts */
};

static void on_quiet(uv_timer_t *h)
{
	struct loop_watch *w = h->data;

	w->cb(w->arg);
}

static void on_fs_event(uv_fs_event_t *h, const char *name, int events, int status)
{
	struct loop_watch *w = h->data;

	(void)events;
	(void)status; /* an overflow is a change too: the owner looks and compares */
	if (name && w->name[0] && strcmp(name, w->name) && strncmp(name, "..", 2))
		return;
	(void)uv_timer_start(&w->quiet, on_quiet, DEBOUNCE_MS, 0);
}

static void on_watch_closed(uv_handle_t *h)
{
	struct loop_watch *w = h->data;

	if (--w->open == 0)
		free(w);
}

static int split_path(struct loop_watch *w, const char *path, char *dir, size_t dir_cap)
{
	struct stat st;
	const char *slash;

	if (strlen(path) >= dir_cap)
		return -ENAMETOOLONG;
	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
		memcpy(dir, path, strlen(path) + 1);
		return 0;
	}
	slash = strrchr(path, '/');
	if (strlen(slash ? slash + 1 : path) >= sizeof(w->name))
		return -ENAMETOOLONG;
	memcpy(w->name, slash ? slash + 1 : path, strlen(slash ? slash + 1 : path) + 1);
	if (!slash) {
		memcpy(dir, ".", 2);
	} else if (slash == path) {
		memcpy(dir, "/", 2);
	} else {
		memcpy(dir, path, (size_t)(slash - path));
		dir[slash - path] = '\0';
	}
	return 0;
}

int loop_watch_new(struct loop *l, const char *path, loop_cb cb, void *arg, struct loop_watch **ret)
{
	struct loop_watch *w = calloc(1, sizeof(*w));
	char dir[4096];
	int r;

	if (!w)
		return -ENOMEM;
	r = split_path(w, path, dir, sizeof(dir));
	if (r < 0) {
		free(w);
		return r;
	}
	(void)uv_fs_event_init(&l->uv, &w->handle);
	(void)uv_timer_init(&l->uv, &w->quiet);
	w->handle.data = w->quiet.data = w;
	w->open = 2;
	w->cb = cb;
	w->arg = arg;
	r = uv_fs_event_start(&w->handle, on_fs_event, dir, 0);
	if (r < 0) {
		loop_watch_close(w);
		return r;
	}
	*ret = w;
	return 0;
}

void loop_watch_close(struct loop_watch *w)
{
	if (!w)
		return;
	uv_close((uv_handle_t *)&w->handle, on_watch_closed);
	uv_close((uv_handle_t *)&w->quiet, on_watch_closed);
}
