/*
 * A redis-server of the test's own: on a unix socket in a private folder, ended by pid.
 */
#pragma once

#include "unit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "redis/redis.h"

static char dir[64], sock[96], url[128];
static pid_t server;

static inline void server_start(const char *password)
{
	char log[128];

	(void)snprintf(log, sizeof(log), "%s/log", dir);
	unlink(sock);
	server = fork();
	assert_true(server >= 0);
	if (server == 0) {
		int null = open("/dev/null", O_RDWR);

		/* Never outlive the test, never hold its output open. */
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)dup2(null, 1);
		(void)dup2(null, 2);
		execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", sock, "--dir",
		       dir, "--save", "", "--logfile", log, "--enable-debug-command", "yes",
		       password ? "--requirepass" : NULL, password, (char *)NULL);
		_exit(127);
	}
}

static inline void server_kill(void)
{
	if (server > 0) {
		kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	server = 0;
}

/* Until it answers; a blocking client of ours is the probe. */
static inline void server_wait(const char *at)
{
	struct redis_sync *r;
	int error = -1;

	assert_int_equal(redis_sync_new(at, 1000, &r), 0);
	for (int i = 0; i < 500 && error; i++) {
		(void)redis_sync_cmdf(r, &error, "PING");
		if (error)
			usleep(10000);
	}
	assert_int_equal(error, 0);
	redis_sync_free(r);
}

/* The folder, once for all cases. */
static inline int group_set_up(void **state UNUSED)
{
	(void)snprintf(dir, sizeof(dir), "/tmp/viw-redis-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(sock, sizeof(sock), "%s/s", dir);
	(void)snprintf(url, sizeof(url), "unix://%s", sock);
	return 0;
}

static inline int group_tear_down(void **state UNUSED)
{
	char cmd[128];

	(void)snprintf(cmd, sizeof(cmd), "%s/log", dir);
	unlink(cmd);
	(void)snprintf(cmd, sizeof(cmd), "%s/dump.rdb", dir); /* of DEBUG RELOAD */
	unlink(cmd);
	unlink(sock);
	return rmdir(dir);
}

/* A case of its own with a server that answers. */
static inline int server_set_up(void **state UNUSED)
{
	server_start(NULL);
	server_wait(url);
	return 0;
}

static inline int server_tear_down(void **state UNUSED)
{
	server_kill();
	return 0;
}
