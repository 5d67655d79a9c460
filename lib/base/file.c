/* See file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/ident.h"

static int open_regular(const char *path, struct stat *st)
{
	/* O_NONBLOCK: opening a FIFO must not hang; it is refused below */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	int r = fstat(fd, st) < 0	? -errno
		: S_ISDIR(st->st_mode)	? -EISDIR
		: !S_ISREG(st->st_mode) ? -EINVAL
					: 0;
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

static int read_all(int fd, struct buf *out)
{
	for (;;) {
		char *at;
		size_t room = out->max - out->len;
		if (room == 0) { /* at the cap: is there more? */
			char probe;
			ssize_t more = read(fd, &probe, 1);
			if (more < 0 && errno == EINTR)
				continue;
			return more < 0 ? -errno : more > 0 ? -EFBIG : 0;
		}
		if (room > 4096)
			room = 4096;
		int r = buf_reserve(out, room, &at);
		if (r < 0)
			return r;
		ssize_t got = read(fd, at, room);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0) {
			buf_commit(out, 0);
			return 0;
		}
		buf_commit(out, (size_t)got);
	}
}

int file_read(const char *path, struct buf *out)
{
	struct stat st;
	CLEANUP(closep) int fd = open_regular(path, &st);
	if (fd < 0)
		return fd;
	return read_all(fd, out);
}

static bool is_platform_secret(int fd, const struct stat *st)
{
	static const char folder[] = "/run/secrets/";
	char link[64], real[PATH_MAX];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, real, sizeof real - 1);
	if (n < 0 || st->st_uid != 0)
		return false;
	real[n] = '\0';
	return strncmp(real, folder, sizeof folder - 1) == 0;
}

int file_read_secret(const char *path, struct buf *out)
{
	struct stat st;
	CLEANUP(closep) int fd = open_regular(path, &st);
	if (fd < 0)
		return fd;
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return -EACCES;
	if ((st.st_mode & S_IROTH) && !is_platform_secret(fd, &st))
		return -EACCES;
	size_t before = out->len;
	int r = read_all(fd, out);
	if (r < 0)
		return r;
	if (out->len > before && out->data[out->len - 1] == '\n') {
		out->data[--out->len] = '\0';
		if (out->len > before && out->data[out->len - 1] == '\r')
			out->data[--out->len] = '\0';
	}
	return out->len == before ? -ENODATA : 0;
}

const char *file_secret_remedy(int error)
{
	switch (error) {
	case -EACCES:
		return "not readable, or open to others: make it mode 0400 (or 0440 with the "
		       "service's group; Kubernetes: defaultMode 0440 and fsGroup) and owned by "
		       "root or the service's user";
	case -ENOENT:
		return "no such file: create it or correct the path";
	case -ENODATA:
		return "is empty: write the secret into it";
	case -EFBIG:
		return "is too long for this setting";
	default:
		return strerror(-error);
	}
}

int file_write_all(int fd, const void *bytes, size_t n)
{
	const char *p = bytes;

	while (n) {
		ssize_t put = write(fd, p, n);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put < 0 ? -errno : -EIO;
		p += put;
		n -= (size_t)put;
	}
	return 0;
}

static int sync_folder(const char *path)
{
	char folder[PATH_MAX];
	const char *slash = strrchr(path, '/');
	int len = !slash ? snprintf(folder, sizeof folder, ".")
		  : slash == path
		      ? snprintf(folder, sizeof folder, "/")
		      : snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
	if (len < 0 || (size_t)len >= sizeof folder)
		return -ENAMETOOLONG;
	CLEANUP(closep) int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		return -errno;
	return 0;
}

int file_write_atomic(const char *path, const void *bytes, size_t n, unsigned mode)
{
	char temp[PATH_MAX];
	int len = snprintf(temp, sizeof temp, "%s.%016llx.tmp", path,
			   (unsigned long long)ident_random_u64());
	if (len < 0 || (size_t)len >= sizeof temp)
		return -ENAMETOOLONG;
	CLEANUP(closep)
	int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return -errno;
	int r = fchmod(fd, mode) < 0 ? -errno : 0; /* whatever the umask */
	if (r == 0)
		r = file_write_all(fd, bytes, n);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && rename(temp, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temp);
		return r;
	}
	return sync_folder(path);
}

bool file_descriptors_to_spare(int n)
{
	int fd[16], got = 0;

	while (got < n && got < 16 && (fd[got] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		got++;
	for (int i = 0; i < got; i++)
		close(fd[i]);
	return got == n;
}
