/* See program.h. */
#include "base/program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"

const char *const program_version = VIW_VERSION;

extern char **environ;

enum action { RUN, HELP, VERSION, CHECK, DUMP, MARKDOWN, MARKDOWN_METRICS, USAGE };

static const struct {
	const char *word;
	enum action action;
} options[] = {
    {"--help", HELP},
    {"-h", HELP},
    {"--version", VERSION},
    {"--check-config", CHECK},
    {"--dump-config", DUMP},
    {"--markdown", MARKDOWN},
    {"--markdown-metrics", MARKDOWN_METRICS},
};

static int usage_error(const struct settings_spec *spec, const char *what, const char *word)
{
	fprintf(stderr, "%s: %s `%s`; see %s --help\n", spec->program, what, word, spec->program);
	return PROGRAM_CONFIG;
}

static bool find_option(const char *word, enum action *ret)
{
	for (size_t i = 0; i < ARRAY_LEN(options); i++) {
		if (strcmp(word, options[i].word) == 0) {
			*ret = options[i].action;
			return true;
		}
	}
	return false;
}

/* The common options, up to the first word. -1, or the exit code. */
static int parse_options(const struct settings_spec *spec, int argc, char **argv, enum action *ret,
			 char ***ret_words)
{
	int i = 1;
	for (; i < argc && argv[i][0] == '-'; i++) {
		const char *path = NULL;
		if (find_option(argv[i], ret))
			continue;
		if (strncmp(argv[i], "--config=", 9) == 0)
			path = argv[i] + 9;
		else if (strcmp(argv[i], "--config") != 0)
			return usage_error(spec, "unknown option", argv[i]);
		else if (i + 1 == argc)
			return usage_error(spec, "a file must follow", argv[i]);
		else
			path = argv[++i];
		if (!spec->file_env || !*path || setenv(spec->file_env, path, 1) < 0)
			return usage_error(spec, "not a settings file:", path);
	}
	if (i < argc && !spec->usage)
		return usage_error(spec, "unknown word", argv[i]);
	*ret_words = argv + i;
	return -1;
}

static const struct setting *find_row(const struct settings_spec *spec, const char *name,
				      enum setting_kind kind)
{
	for (size_t i = 0; i < spec->rows; i++)
		if (spec->row[i].kind == kind && strcmp(spec->row[i].name, name) == 0)
			return &spec->row[i];
	return NULL;
}

static void setup_log(const struct settings_spec *spec, const char *cfg)
{
	bool json = true;
	enum log_level level = LOG_LEVEL_INFO;
	const struct setting *row = find_row(spec, "LOG_JSON", SETTING_KIND_BOOL);
	if (row)
		json = *(const bool *)(cfg + row->offset);
	row = find_row(spec, "LOG_LEVEL", SETTING_KIND_ENUM);
	if (row) {
		const char *word = *(char *const *)(const void *)(cfg + row->offset);
		if (word && log_level_parse(word, &level) < 0)
			level = LOG_LEVEL_INFO;
	}
	log_setup(json, level);
}

static void print_faults(const struct settings_spec *spec, const struct settings_faults *f)
{
	for (size_t i = 0; i < f->warnings; i++)
		fprintf(stderr, "%s: warning: %s %s\n", spec->program, f->warning[i].setting,
			f->warning[i].text);
	for (size_t i = 0; i < f->n; i++)
		fprintf(stderr, "%s: %s %s\n", spec->program, f->item[i].setting, f->item[i].text);
}

static void log_faults(const struct settings_faults *f)
{
	for (size_t i = 0; i < f->warnings; i++)
		LOG_WARN(FIELDS(.event = "config_warning", .setting = f->warning[i].setting),
			 "%s %s", f->warning[i].setting, f->warning[i].text);
	for (size_t i = 0; i < f->n; i++)
		LOG_ERROR(FIELDS(.event = "config_fault", .setting = f->item[i].setting), "%s %s",
			  f->item[i].setting, f->item[i].text);
}

static int load(const struct settings_spec *spec, enum action action, void *cfg)
{
	struct settings_faults faults = {0};
	int r = settings_load(spec, environ, cfg, &faults);
	int code = r == 0 ? -1 : r == -EINVAL ? PROGRAM_CONFIG : PROGRAM_SYSTEM;
	setup_log(spec, cfg);
	if (code < 0 && action == CHECK && spec->check_files) {
		spec->check_files(cfg, &faults);
		code = faults.n ? PROGRAM_CONFIG : -1;
	}
	if (action == RUN)
		log_faults(&faults);
	else
		print_faults(spec, &faults);
	settings_faults_fini(&faults);
	if (code < 0 && action == DUMP)
		settings_dump(spec, cfg, stdout);
	if (code < 0 && action == CHECK)
		printf("%s: configuration is valid\n", spec->program);
	if (code < 0 && action != RUN)
		code = PROGRAM_OK;
	if (code >= 0)
		settings_free(spec, cfg);
	return code;
}

static int print_metrics(const struct settings_spec *spec)
{
	struct buf b;
	if (!spec->metrics_markdown)
		return PROGRAM_OK;
	buf_init(&b, 1 << 20);
	int r = spec->metrics_markdown(spec->metric, spec->metrics, &b);
	if (r == 0)
		printf("%s", b.data);
	buf_fini(&b);
	return r < 0 ? PROGRAM_SYSTEM : PROGRAM_OK;
}

/* What is opened must not become descriptor 0, 1 or 2: into the last one goes the log. */
static void fill_standard_descriptors(void)
{
	for (int fd = 0; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
			return; /* none there, or none left: then nothing else gets one */
}

int program_start(const struct settings_spec *spec, int argc, char **argv, void *cfg,
		  char ***ret_words)
{
	enum action action = RUN;
	fill_standard_descriptors();
	memset(cfg, 0, spec->struct_size);
	char **words;
	int code = parse_options(spec, argc, argv, &action, &words);
	if (code >= 0)
		return code;
	if (ret_words)
		*ret_words = words;
	switch (action) {
	case HELP:
		settings_help(spec, stdout);
		return PROGRAM_OK;
	case VERSION:
		printf("%s %s\n", spec->program, program_version);
		return PROGRAM_OK;
	case MARKDOWN:
		settings_markdown(spec, stdout);
		return PROGRAM_OK;
	case MARKDOWN_METRICS:
		return print_metrics(spec);
	default:
		return load(spec, action, cfg);
	}
}

/* LeakSanitizer stops the threads it inspects by ptrace, which an undumpable process refuses. */
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

void program_harden(void)
{
	struct rlimit files, none = {0, 0};
	umask(077);
	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_CORE, &none);
#ifndef SANITIZED
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

void program_notify(const char *state_fmt, ...)
{
	char state[512];
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t n = path ? strlen(path) : 0;
	if (n < 2 || n >= sizeof to.sun_path || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(to.sun_path, path, n);
	if (path[0] == '@')
		to.sun_path[0] = '\0'; /* abstract, see unix(7) */
	va_list ap;
	va_start(ap, state_fmt);
	int len = vsnprintf(state, sizeof state, state_fmt, ap);
	va_end(ap);
	if (len < 0)
		return;
	size_t size = (size_t)len < sizeof state ? (size_t)len : sizeof state - 1;
	CLEANUP(closep) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return;
	ssize_t sent = sendto(fd, state, size, MSG_NOSIGNAL, (const struct sockaddr *)&to,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
	(void)sent; /* nobody to tell */
}

static bool parse_env_number(const char *name, long long *ret)
{
	const char *text = getenv(name);
	if (!text || !*text || text[strspn(text, "0123456789")] || strlen(text) > 18)
		return false;
	*ret = strtoll(text, NULL, 10);
	return true;
}

int64_t program_watchdog_interval_ms(void)
{
	long long usec, pid;
	if (!parse_env_number("WATCHDOG_USEC", &usec) || usec <= 0)
		return 0;
	if (parse_env_number("WATCHDOG_PID", &pid) && pid != getpid())
		return 0;
	return usec / 2000 > 0 ? usec / 2000 : 1;
}

static volatile sig_atomic_t stop_asked, reload_asked;
static int signal_pipe[2] = {-1, -1};

static void on_signal(int signum)
{
	int saved = errno;
	if (signum == SIGHUP)
		reload_asked = 1;
	else
		stop_asked = 1;
	ssize_t put = write(signal_pipe[1], "", 1); /* full: it is awake already */
	(void)put;
	errno = saved;
}

int program_catch_signals(void)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
	struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	if (signal_pipe[0] < 0 && pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	sigemptyset(&act.sa_mask);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		if (sigaction(signals[i], &act, NULL) < 0)
			return -errno;
	return signal_pipe[0];
}

bool program_should_stop(void)
{
	return stop_asked;
}

bool program_take_reload(void)
{
	bool asked = reload_asked;
	reload_asked = 0;
	return asked;
}
