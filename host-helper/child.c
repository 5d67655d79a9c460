/* The first process of a run: gives up everything a script must not have, then becomes it. */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sandbox.h"
#include "verbs_program.h"

#define SETTINGS_STRUCT host_helper_settings
static const struct setting handed_on[] = {
#define SETTING SETTING_ROW
#include "verbs_settings.def"
#undef SETTING
};

static _Noreturn void give_up(const struct child_fds *fds, const char *step, int error)
{
	struct child_fault f = {.error = error};

	snprintf(f.step, sizeof f.step, "%s", step);
	if (write(fds->fault, &f, sizeof f) < 0)
		_exit(127);
	_exit(127);
}

static const struct verb_param *find_param(const struct verb *v, const char *name, size_t n,
					   size_t *ret_i)
{
	for (size_t i = 0; i < v->params; i++)
		if (strlen(v->param[i].name) == n && memcmp(v->param[i].name, name, n) == 0) {
			*ret_i = i;
			return &v->param[i];
		}
	return NULL;
}

/* One template; an absent optional parameter is the empty text. */
static char *fill(const struct verb *v, const struct verb_args *a, const char *t)
{
	struct buf out;
	size_t i;
	int r = 0;

	buf_init(&out, 131072);
	for (const char *p = t; r == 0 && *p;) {
		const char *end = *p == '{' ? strchr(p, '}') : NULL;
		if (end && find_param(v, p + 1, (size_t)(end - p) - 1, &i)) {
			r = a->value[i] ? buf_append_str(&out, a->value[i]) : 0;
			p = end + 1;
		} else {
			r = buf_append_char(&out, *p++);
		}
	}
	if (r == 0 && !out.data)
		return strdup("");
	if (r < 0)
		buf_fini(&out);
	return out.data;
}

char **child_build_argv(const struct verb *v, const struct verb_args *a)
{
	size_t n = 0;

	while (v->argv && v->argv[n])
		n++;
	char **argv = calloc(n + 2, sizeof *argv);
	if (!argv)
		return NULL;
	argv[0] = v->exec;
	for (size_t i = 0; i < n; i++) {
		argv[i + 1] = fill(v, a, v->argv[i]);
		if (!argv[i + 1])
			return NULL; /* the process ends right after; nothing to free */
	}
	return argv;
}

static char *env_text(const char *name, const char *value)
{
	char *s = NULL;

	return asprintf(&s, "%s=%s", name, value) < 0 ? NULL : s;
}

static char *param_env(const struct verb_param *p, const char *value)
{
	char name[64];
	int n = snprintf(name, sizeof name, "VIW_%s", p->name);

	for (int i = 4; i < n && name[i]; i++)
		if (name[i] >= 'a' && name[i] <= 'z')
			name[i] = (char)(name[i] - 'a' + 'A');
	return env_text(name, value);
}

/* What the program of the built-in verbs has of our settings, and the sample it starts from. */
static size_t add_settings(const struct job *job, char **env)
{
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_LEN(handed_on); i++) {
		const struct setting *s = &handed_on[i];
		const char *at = (const char *)job->cfg + s->offset;
		const char *text = *(char *const *)(const void *)at;
		char name[64], number[24];
		if (s->kind == SETTING_KIND_INT) {
			snprintf(number, sizeof number, "%lld",
				 (long long)*(const int64_t *)(const void *)at);
			text = number;
		}
		snprintf(name, sizeof name, "HOST_HELPER_%s", s->name);
		if (text)
			env[n++] = env_text(name, text);
	}
	char *cpu = verbs_program_put_cpu(&job->cpu_before);
	env[n++] = cpu ? env_text(VERBS_CPU_ENV, cpu) : NULL;
	free(cpu);
	return n;
}

static char **build_env(const struct job *job)
{
	const struct verb *v = job->verb;
	char **env = calloc(v->params + ARRAY_LEN(handed_on) + 8, sizeof *env);
	size_t n = 0;

	if (!env)
		return NULL;
	env[n++] = env_text("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	env[n++] = env_text("LANG", "C.UTF-8");
	env[n++] = env_text("HOME", "/");
	env[n++] = env_text("VIW_RUN_ID", job->intent.run_id);
	env[n++] = env_text("VIW_CORRELATION_ID", job->intent.correlation_id);
	env[n++] = env_text("VIW_AGENT_ID", job->intent.agent_id);
	if (v->builtin)
		n += add_settings(job, env + n);
	for (size_t i = 0; i < v->params; i++)
		if (v->param[i].via == PARAM_VIA_ENV && job->args.value[i])
			env[n++] = param_env(&v->param[i], job->args.value[i]);
	for (size_t i = 0; i < n; i++)
		if (!env[i])
			return NULL;
	return env;
}

static void set_limits(void)
{
	const struct {
		int what;
		rlim_t soft, hard;
	} limits[] = {
	    {RLIMIT_CORE, 0, 0},
	    {RLIMIT_NOFILE, 1024, 4096},
	    {RLIMIT_FSIZE, 1ULL << 30, 1ULL << 30},
	    {RLIMIT_STACK, 8ULL << 20, 64ULL << 20},
	    {RLIMIT_MEMLOCK, 8ULL << 20, 8ULL << 20},
	};

	for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
		struct rlimit now, l = {limits[i].soft, limits[i].hard};
		if (getrlimit((__rlimit_resource_t)limits[i].what, &now) < 0)
			continue;
		l.rlim_max = l.rlim_max < now.rlim_max ? l.rlim_max : now.rlim_max;
		l.rlim_cur = l.rlim_cur < l.rlim_max ? l.rlim_cur : l.rlim_max;
		(void)setrlimit((__rlimit_resource_t)limits[i].what, &l);
	}
}

static void default_signals(void)
{
	struct sigaction sa = {.sa_handler = SIG_DFL};
	sigset_t none;

	for (int s = 1; s < NSIG; s++)
		(void)sigaction(s, &sa, NULL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static int become(const char *user)
{
	struct passwd nobody = {.pw_uid = 65534, .pw_gid = 65534}, *pw = &nobody;

	if (strcmp(user, "root") == 0)
		return setgroups(0, NULL) < 0 && errno != EPERM ? -errno : 0;
	if (strcmp(user, "nobody") != 0 && !(pw = getpwnam(user)))
		return -ESRCH;
	if ((pw == &nobody ? setgroups(0, NULL) : initgroups(user, pw->pw_gid)) < 0 ||
	    setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) < 0 ||
	    prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ||
	    setresuid(pw->pw_uid, pw->pw_uid, pw->pw_uid) < 0)
		return -errno;
	return 0;
}

static void place_fds(const struct child_fds *fds)
{
	const int from[] = {fds->in, fds->out, fds->err};

	for (int i = 0; i < 3; i++)
		if (dup2(from[i], i) < 0)
			give_up(fds, "dup2", errno);
	/* 3 and above go, except the fault pipe, which goes by itself at execve. */
	if (fds->fault > 3)
		(void)close_range(3, (unsigned)fds->fault - 1, 0);
	(void)close_range((unsigned)fds->fault + 1, ~0U, 0);
}

static _Noreturn void run_script(const struct job *job, const struct child_fds *fds)
{
	static char *const none[] = {NULL};
	const struct verb *v = job->verb;
	char why[256], **argv, **env;
	int r;

	if (!(argv = child_build_argv(v, &job->args)) || !(env = build_env(job)))
		give_up(fds, "memory", ENOMEM);
	if ((r = trust_check_path(v->exec, TRUST_EXECUTABLE, why, sizeof why)) < 0)
		give_up(fds, "check of the path", -r);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		give_up(fds, "no_new_privs", errno);
	if (!v->network && (r = sandbox_deny_network()) < 0)
		give_up(fds, "network filter", -r);
	/* Without Landlock the unit's ReadWritePaths is all there is; said at the start. */
	if (v->writable_paths && (r = sandbox_limit_writes(v->writable_paths)) < 0 &&
	    r != -EOPNOTSUPP)
		give_up(fds, "writable paths", -r);
	if ((r = become(v->run_as)) < 0)
		give_up(fds, "run_as", -r);
	/* Who is not root has none but those of the manifest. */
	if ((v->capabilities || getuid() != 0) &&
	    (r = sandbox_keep_capabilities(v->capabilities ? v->capabilities : none)) < 0)
		give_up(fds, "capabilities", -r);
	execve(v->exec, argv, env);
	give_up(fds, "execve", errno);
}

_Noreturn void child_main(const struct job *job, const struct child_fds *fds)
{
	char go;

	if (setsid() < 0)
		give_up(fds, "setsid", errno);
	/* End of file means the supervisor died before it could record us: then nothing may start.
	 */
	if (read(fds->go, &go, 1) != 1)
		_exit(127);
	place_fds(fds);
	umask(077);
	if (chdir("/") < 0)
		give_up(fds, "chdir", errno);
	default_signals();
	set_limits();
	run_script(job, fds);
}
