/* The files the agent has read: settings, secrets, certificates. When one of them changes, all are
 * read again. Their folders are watched, not the files: certificates are replaced by rename, in
 * Kubernetes by a symlink's change. */
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent_private.h"

#define FILES_MAX 16 /* more than there are settings that name one */

extern char **environ;

struct watched_file {
	char path[512];
	struct stat seen; /* zeros: not there */
};

struct agent_watch {
	struct agent *agent;
	struct watched_file file[FILES_MAX];
	size_t files;
	struct loop_watch *folder[FILES_MAX];
	size_t folders;
};

static bool look(struct watched_file *f)
{
	struct stat now, was = f->seen;

	if (stat(f->path, &now) < 0)
		now = (struct stat){0};
	f->seen = now;
	return now.st_dev != was.st_dev || now.st_ino != was.st_ino || now.st_size != was.st_size ||
	       now.st_ctim.tv_sec != was.st_ctim.tv_sec ||
	       now.st_ctim.tv_nsec != was.st_ctim.tv_nsec;
}

static void on_folder(void *arg)
{
	struct agent_watch *w = arg;
	bool changed = false;
	size_t i;

	for (i = 0; i < w->files; i++)
		changed |= look(&w->file[i]);
	if (changed)
		agent_reload(w->agent);
}

static void add_file(void *arg, const char *path)
{
	struct agent_watch *w = arg;
	struct watched_file *f = &w->file[w->files];
	size_t i;

	if (!path || w->files == FILES_MAX ||
	    (size_t)snprintf(f->path, sizeof f->path, "%s", path) >= sizeof f->path)
		return;
	for (i = 0; i < w->files; i++) {
		if (strcmp(w->file[i].path, path) == 0)
			return;
	}
	(void)look(f);
	w->files++;
}

static void folder_of(const char *path, char out[512])
{
	char copy[512];

	(void)snprintf(copy, sizeof copy, "%s", path);
	(void)snprintf(out, 512, "%s", dirname(copy));
}

static void watch_folder(struct agent_watch *w, size_t file)
{
	char dir[512], other[512];
	size_t i;
	int r;

	folder_of(w->file[file].path, dir);
	for (i = 0; i < file; i++) {
		folder_of(w->file[i].path, other);
		if (strcmp(dir, other) == 0)
			return;
	}
	r = loop_watch_new(w->agent->loop, dir, on_folder, w, &w->folder[w->folders]);
	if (r == 0)
		w->folders++;
	else if (r != -ENOENT) /* the default settings file's, mostly */
		LOG_WARN(FIELDS(.event = "watch_failed", .error = strerror(-r)),
			 "%s is not watched; send SIGHUP after a change", dir);
}

void agent_watch_close(struct agent_watch *w)
{
	size_t i;

	if (!w)
		return;
	for (i = 0; i < w->folders; i++)
		loop_watch_close(w->folder[i]);
	free(w);
}

void agent_watch_files(struct agent *a)
{
	struct agent_watch *w = calloc(1, sizeof *w);
	size_t i;

	if (!w || settings_files(&agent_settings_spec, environ, add_file, w) < 0) {
		LOG_ERROR(FIELDS(.event = "watch_failed"),
			  "out of memory; send SIGHUP after a change of a file");
		free(w);
		return;
	}
	w->agent = a;
	add_file(w, a->cfg->cert_path);
	add_file(w, a->cfg->key_path);
	add_file(w, a->cfg->trust_bundle);
	for (i = 0; i < w->files; i++)
		watch_folder(w, i);
	agent_watch_close(a->watch);
	a->watch = w;
}
