/* host-helper-verbs: the verbs that look at the host: /proc, systemd, journald. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "builtin.h"
#include "wire/json_scan.h"
#include "wire/wire.h"

#define METRICS_MAX_BYTES 262144

extern char **environ;

static int system_health(struct builtin_ctx *x)
{
	int r = health_answer(&x->cpu_before, x->w);

	return r < 0 ? builtin_fail(x, "internal", "/proc: %s", strerror(-r)) : 0;
}

/* The other program beside this one, with what this one may do: so it must be as trusted. */
static int ask_containers(struct buf *out)
{
	char path[4096], chunk[4096], *argv[] = {path, (char *)VERBS_CONTAINER_METRICS, NULL};
	posix_spawn_file_actions_t actions;
	char why[256];
	int p[2], status = -1;
	ssize_t n;
	pid_t pid;

	int r = verbs_program_folder(path, sizeof path - sizeof "/" VERBS_CONTAINERS_PROGRAM);
	if (r < 0)
		return r;
	memcpy(path + strlen(path), "/" VERBS_CONTAINERS_PROGRAM,
	       sizeof "/" VERBS_CONTAINERS_PROGRAM);
	r = trust_check_path(path, TRUST_EXECUTABLE, why, sizeof why);
	if (r < 0)
		return r;
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, p[1], 1);
	r = -posix_spawn(&pid, path, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(p[1]);
	while (r == 0 && (n = read(p[0], chunk, sizeof chunk)) > 0)
		r = buf_append(out, chunk, (size_t)n);
	close(p[0]);
	if (r == 0 && (waitpid(pid, &status, 0) < 0 || status != 0))
		r = -EIO;
	return r;
}

/* What cannot be had is left out. An engine nobody has costs no second process. */
static void write_containers(struct builtin_ctx *x)
{
	struct json_member m;
	struct json_iter it;
	struct buf out;
	char key[64];

	if (access(x->cfg->engine_socket, F_OK) < 0)
		return;
	buf_init(&out, METRICS_MAX_BYTES);
	if (ask_containers(&out) == 0 && out.len && out.data[0] == '{' &&
	    json_validate(out.data, out.len, WIRE_MAX_DEPTH - 2, NULL) == 0) {
		json_iter_init(&it, (struct span){out.data, out.len});
		while (json_iter_next(&it, &m))
			if (span_copy(m.key, key, sizeof key) == 0)
				jsonw_raw(x->w, key, m.raw.p, m.raw.n);
	}
	buf_fini(&out);
}

static int monitoring_data(struct builtin_ctx *x)
{
	const char *services = builtin_arg(x, "services");
	struct health h;

	int r = health_read(&x->cpu_before, &h);
	if (r < 0)
		return builtin_fail(x, "internal", "/proc: %s", strerror(-r));
	health_write(&h, x->w);
	write_containers(x);
	if (services)
		services_write(services, x->w);
	return 0;
}

static const struct builtin table[] = {
    {"get_system_health", system_health, false},
    {"get_monitoring_data", monitoring_data, false},
    {"get_service_status", builtin_service_status, false},
    {"tail_logs", builtin_tail_logs, false},
};

int main(int argc, char **argv)
{
	return builtin_main(VERBS_PROGRAM, table, ARRAY_LEN(table), argc, argv);
}
