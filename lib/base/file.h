/* Small files: settings, secrets, PEM. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* Reads all of path into out (appended). -EFBIG over out's cap, -errno. O_CLOEXEC, regular files
 * only. */
int file_read(const char *path, struct buf *out) MUST_CHECK;
/*
 * Same, one trailing newline dropped; -EACCES when others or the group may write it or others may
 * read it; -ENODATA when empty. Container platforms mount secrets 0444 below /run/secrets: there,
 * and only there, a file of root that nobody else may write may be readable by all.
 */
int file_read_secret(const char *path, struct buf *out) MUST_CHECK;
/* What to do about an error of file_read_secret, in words; static text. */
const char *file_secret_remedy(int error);
/* All of it, on from where a short write or a signal left it; for files and blocking pipes. */
int file_write_all(int fd, const void *bytes, size_t n) MUST_CHECK;
/* Temporary file in the same folder, fsync, rename, fsync of the folder. mode as open(2). */
int file_write_atomic(const char *path, const void *bytes, size_t n, unsigned mode) MUST_CHECK;
/* Can so many files more be opened (at most 16)? False: errno says why not. For libraries that
 * break when they cannot: libwebsockets goes on with half a context, and dies when that is
 * destroyed. */
#define FILE_SPARE_FOR_LWS 8
bool file_descriptors_to_spare(int n) MUST_CHECK;
