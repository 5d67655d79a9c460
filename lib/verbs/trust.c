/* Who could change a file behind our back: only root may, for anything the helper runs or reads. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "verbs/verbs.h"

static int refuse(char *msg, size_t cap, const char *path, const char *why)
{
	snprintf(msg, cap, "%.150s: %s", path, why);
	return -EACCES;
}

static int check_one(const char *path, mode_t type, char *msg, size_t cap)
{
	struct stat st;

	if (lstat(path, &st) < 0) {
		int r = -errno;
		snprintf(msg, cap, "%.150s: %s", path, strerror(-r));
		return r;
	}
	if (S_ISLNK(st.st_mode))
		return refuse(msg, cap, path, "is a symlink; give the real path");
	if ((st.st_mode & S_IFMT) != type)
		return refuse(msg, cap, path,
			      type == S_IFDIR ? "is not a folder" : "is not a regular file");
	if (st.st_uid != 0)
		return refuse(msg, cap, path, "does not belong to root; chown root it");
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return refuse(msg, cap, path, "is group- or world-writable; chmod go-w it");
	return 0;
}

static bool plain_path(const char *path)
{
	for (const char *p = path; *p; p++) {
		if (p[0] != '/')
			continue;
		if (p[1] == '/' || p[1] == 0)
			return false;
		if (p[1] == '.' &&
		    (p[2] == 0 || p[2] == '/' || (p[2] == '.' && (p[3] == 0 || p[3] == '/'))))
			return false;
	}
	return true;
}

int trust_check_path(const char *path, enum trust_kind kind, char *msg, size_t msg_cap)
{
	char part[PATH_MAX];
	size_t n = strlen(path);

	if (path[0] != '/' || n >= sizeof part || !plain_path(path))
		return refuse(msg, msg_cap, path, "is not a plain absolute path");
	int r = check_one("/", S_IFDIR, msg, msg_cap);
	for (size_t i = 1; r == 0 && i < n; i++) {
		if (path[i] != '/')
			continue;
		memcpy(part, path, i);
		part[i] = 0;
		r = check_one(part, S_IFDIR, msg, msg_cap);
	}
	if (r == 0)
		r = check_one(path, kind == TRUST_DIR ? S_IFDIR : S_IFREG, msg, msg_cap);
	if (r == 0 && kind == TRUST_EXECUTABLE) {
		struct stat st;
		if (lstat(path, &st) < 0 || !(st.st_mode & S_IXUSR))
			return refuse(msg, msg_cap, path, "is not executable; chmod u+x it");
	}
	return r;
}
