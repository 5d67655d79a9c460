/* See crash.h. Everything is opened before main, since a program may close its doors later. */
#include "base/crash.h"

#ifdef VIW_CRASH_POINTS

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POINTS_MAX 256

static char armed[128];
static long armed_passing = 1;
static _Atomic long passings_alone, *passings = &passings_alone; /* shared with children */
struct arm {							 /* VIW_CRASH_ARM */
	_Atomic int64_t to_go;
	char name[120];
};
static struct arm *arm;
static const char *log_path;
static const char *off_words;
static const _Atomic int64_t *clock_shift;
static _Atomic(const char *) passed[POINTS_MAX];

/* NULL when there is no such file. */
static void *map_file(const char *path, size_t n, bool writable)
{
	int fd = path ? open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC) : -1;
	void *p = MAP_FAILED;

	if (fd >= 0) {
		p = mmap(NULL, n, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
		close(fd);
	}
	return p == MAP_FAILED ? NULL : p;
}

__attribute__((constructor)) static void crash_open(void)
{
	const char *point = getenv("VIW_CRASH_POINT");

	log_path = getenv("VIW_CRASH_LOG");

	if (point) {
		char *colon;

		(void)snprintf(armed, sizeof armed, "%s", point);
		colon = strchr(armed, ':');
		if (colon) {
			*colon = '\0';
			armed_passing = strtol(colon + 1, NULL, 10);
		}
	}
	if (point) {
		void *p = mmap(NULL, sizeof *passings, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		if (p != MAP_FAILED)
			passings = p;
	}
	off_words = getenv("VIW_CRASH_OFF");
	clock_shift = map_file(getenv("VIW_CLOCK_FILE"), sizeof *clock_shift, false);
	arm = map_file(getenv("VIW_CRASH_ARM"), sizeof *arm, true);
}

/* Opened anew each time: a supervisor closes what it did not open, and its numbers are used again.
 */
static void tell(const char *what, const char *name)
{
	char line[192];
	int n = snprintf(line, sizeof line, "%s %s %d\n", what, name, (int)getpid());
	int fd = log_path ? open(log_path, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	if (n > 0 && write(fd, line, (size_t)n) < 0)
		errno = 0; /* a lost line is no harm */
	close(fd);
}

/* True at the first passing of this point. Points are literals, told apart by address. */
static bool first_passing(const char *name)
{
	for (int i = 0; i < POINTS_MAX; i++) {
		const char *none = NULL;

		if (atomic_load(&passed[i]) == name)
			return false;
		if (atomic_compare_exchange_strong(&passed[i], &none, name))
			return true;
		if (none == name)
			return false;
	}
	return false;
}

static bool is_my_turn(const char *name)
{
	if (armed[0] && !strcmp(armed, name) && atomic_fetch_add(passings, 1) + 1 == armed_passing)
		return true;
	return arm && atomic_load(&arm->to_go) > 0 && !strncmp(arm->name, name, sizeof arm->name) &&
	       atomic_fetch_sub(&arm->to_go, 1) == 1;
}

void crash_point(const char *name)
{
	int saved = errno;

	if (first_passing(name))
		tell("pass", name);
	if (is_my_turn(name)) {
		tell("crash", name);
		(void)kill(getpid(), SIGKILL);
	}
	errno = saved;
}

bool crash_off(const char *word)
{
	size_t n = strlen(word);

	for (const char *p = off_words; p && *p;) {
		size_t len = strcspn(p, ",");

		if (len == n && !memcmp(p, word, n))
			return true;
		p += len + (p[len] == ',');
	}
	return false;
}

int64_t crash_clock_shift_ms(void)
{
	return clock_shift ? atomic_load(clock_shift) : 0;
}

#endif
