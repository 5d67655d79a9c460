/* program_start writes to stdout and stderr and reads environ: each case runs in a child. */
#include "unit.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/metrics.h"
#include "base/program.h"

struct sample {
#define SETTING SETTING_FIELD
#include "sample_settings.def"
#undef SETTING
};
#define SETTINGS_STRUCT sample
static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "sample_settings.def"
#undef SETTING
};
static const struct metric_family metric[] = {
    METRIC_ROW(COUNTER, a, "viw_a_total", NULL, NULL, "As.")};
static struct settings_spec spec = {
    .program = "sample",
    .summary = "a sample",
    .prefix = "SAMPLE",
    .file_env = "SAMPLE_CONFIG",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct sample),
    .metric = metric,
    .metrics = 1,
    .metrics_markdown = metrics_markdown,
};

static char out[16384];

/* Runs program_start in a child; its exit code (99: go on), its output of both kinds in out. */
static int start(char **argv)
{
	int ends[2], argc = 0, status;
	while (argv[argc])
		argc++;
	assert_ok(pipe(ends));
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		struct sample cfg;
		char **words;
		dup2(ends[1], 1);
		dup2(ends[1], 2);
		int code = program_start(&spec, argc, argv, &cfg, &words);
		if (code < 0) {
			printf("words:");
			for (; *words; words++)
				printf(" %s", *words);
			printf(" id=%s\n", cfg.id ? cfg.id : "");
			settings_free(&spec, &cfg);
		}
		fflush(NULL);
		_exit(code < 0 ? 99 : code);
	}
	close(ends[1]);
	size_t n = 0;
	for (ssize_t got; (got = read(ends[0], out + n, sizeof out - 1 - n)) > 0;)
		n += (size_t)got;
	out[n] = '\0';
	close(ends[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#define START(...) start((char *[]){(char *)"sample", __VA_ARGS__ __VA_OPT__(, ) NULL})

static void expect_out(const char *text)
{
	if (!strstr(out, text))
		fail_msg("missing: %s\nin:\n%s", text, out);
}

static int setup(void **state)
{
	(void)state;
	spec.usage = NULL;
	setenv("SAMPLE_TOKEN", "hunter2", 1);
	unsetenv("SAMPLE_MAX_CONN");
	return 0;
}

static void test_documents(void **state)
{
	(void)state;
	setenv("SAMPLE_MAX_CONN", "bad", 1); /* these need no valid settings */
	assert_int_equal(START("--help"), 0);
	expect_out("Usage: sample");
	assert_int_equal(START("--version"), 0);
	expect_out("sample " VIW_VERSION "\n");
	assert_int_equal(START("--markdown"), 0);
	expect_out("| `SAMPLE_ID` |");
	assert_int_equal(START("--markdown-metrics"), 0);
	expect_out("| `viw_a_total` | counter |");
}

static void test_check_and_dump(void **state)
{
	(void)state;
	assert_int_equal(START("--check-config"), 0);
	expect_out("valid");
	assert_int_equal(START("--dump-config"), 0);
	expect_out("token = \"***\"\n");
	assert_null(strstr(out, "hunter2"));
	setenv("SAMPLE_MAX_CONN", "0", 1);
	unsetenv("SAMPLE_TOKEN");
	assert_int_equal(START("--check-config"), 78);
	expect_out("sample: SAMPLE_MAX_CONN must be a whole number from 1 to 20000 connections, "
		   "not \"0\"\n");
	expect_out("sample: SAMPLE_TOKEN must be set");
	assert_int_equal(START("--dump-config"), 78);
}

static void test_run_logs_faults_and_exits_78(void **state)
{
	(void)state;
	setenv("SAMPLE_MAX_CONN", "0", 1);
	assert_int_equal(START(), 78);
	expect_out("\"event\":\"config_fault\",\"setting\":\"SAMPLE_MAX_CONN\"");
}

static void test_options_and_words(void **state)
{
	(void)state;
	assert_int_equal(START(), 99);
	expect_out("words: id=\n");
	assert_int_equal(START("--nope"), 78);
	expect_out("unknown option `--nope`");
	assert_int_equal(START("word"), 78);
	assert_int_equal(START("--config"), 78);
	assert_int_equal(START("--config", "/nonexistent"), 78);
	expect_out("/nonexistent");
	spec.usage = "       sample status [--json]";
	assert_int_equal(START("status", "--json", "--help"), 99);
	expect_out("words: status --json --help id=\n");
	assert_int_equal(START("--nope", "status"), 78);
}

static void test_config_option_names_the_file(void **state)
{
	char path[] = "/tmp/viw-prog-XXXXXX", option[64];
	(void)state;
	int fd = mkstemp(path);
	assert_int_equal(write(fd, "id = \"file\"\n", 12), 12);
	close(fd);
	assert_int_equal(START("--config", path), 99);
	expect_out("id=file");
	snprintf(option, sizeof option, "--config=%s", path);
	assert_int_equal(START(option), 99);
	expect_out("id=file");
	unlink(path);
}

static void test_notify(void **state)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char got[64];
	(void)state;
	snprintf(a.sun_path, sizeof a.sun_path, "/tmp/viw-notify-%d", (int)getpid());
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_ok(bind(fd, (struct sockaddr *)&a, sizeof a));
	setenv("NOTIFY_SOCKET", a.sun_path, 1);
	program_notify("STATUS=%d agents", 7);
	ssize_t n = recv(fd, got, sizeof got, MSG_DONTWAIT);
	assert_int_equal(n, 15);
	assert_memory_equal(got, "STATUS=7 agents", 15);
	unlink(a.sun_path);
	close(fd);
	program_notify("READY=1"); /* nobody there: no harm */
	unsetenv("NOTIFY_SOCKET");
	program_notify("READY=1");
}

static void test_watchdog(void **state)
{
	char pid[16];
	(void)state;
	unsetenv("WATCHDOG_PID");
	unsetenv("WATCHDOG_USEC");
	assert_int_equal(program_watchdog_interval_ms(), 0);
	setenv("WATCHDOG_USEC", "30000000", 1);
	assert_int_equal(program_watchdog_interval_ms(), 15000);
	setenv("WATCHDOG_PID", "1", 1);
	assert_int_equal(program_watchdog_interval_ms(), 0);
	snprintf(pid, sizeof pid, "%d", (int)getpid());
	setenv("WATCHDOG_PID", pid, 1);
	assert_int_equal(program_watchdog_interval_ms(), 15000);
	setenv("WATCHDOG_USEC", "-5", 1);
	assert_int_equal(program_watchdog_interval_ms(), 0);
}

static void test_signals_wake_poll(void **state)
{
	(void)state;
	int fd = program_catch_signals();
	assert_true(fd >= 0);
	assert_false(program_should_stop());
	raise(SIGHUP);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 1);
	assert_true(program_take_reload());
	assert_false(program_take_reload());
	assert_false(program_should_stop());
	raise(SIGTERM);
	assert_true(program_should_stop());
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
}

static void test_harden(void **state)
{
	(void)state;
	struct rlimit l;
	program_harden();
	mode_t mask = umask(077);
	assert_int_equal(mask, 077);
	assert_ok(getrlimit(RLIMIT_CORE, &l));
	assert_int_equal(l.rlim_cur, 0);
	assert_ok(getrlimit(RLIMIT_NOFILE, &l));
	assert_true(l.rlim_cur == l.rlim_max);
	raise(SIGPIPE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup(test_documents, setup),
	    cmocka_unit_test_setup(test_check_and_dump, setup),
	    cmocka_unit_test_setup(test_run_logs_faults_and_exits_78, setup),
	    cmocka_unit_test_setup(test_options_and_words, setup),
	    cmocka_unit_test_setup(test_config_option_names_the_file, setup),
	    cmocka_unit_test(test_notify),
	    cmocka_unit_test(test_watchdog),
	    cmocka_unit_test(test_signals_wake_poll),
	    cmocka_unit_test(test_harden),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
