#include "unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "base/program.h"
#include "base/settings.h"
#include "base/settings_file.h"

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

static bool validated, inverted;
static void validate(const void *cfg, struct settings_faults *f)
{
	const struct sample *s = cfg;
	validated = true;
	if (inverted && s->max_conn > 10)
		settings_fault_add(f, "SAMPLE_MAX_CONN", "must be at most 10 here");
}

static struct settings_spec spec = {
    .program = "sample",
    .summary = "a sample",
    .prefix = "SAMPLE",
    .file_env = "SAMPLE_CONFIG",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct sample),
    .validate = validate,
};

static char dir[] = "/tmp/viw-set-XXXXXX";
static char file[64], secret_file[64], file_env[96], token_file_env[96];
static struct sample cfg;
static struct settings_faults faults;

static int make_dir(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(file, sizeof file, "%s/c.toml", dir);
	snprintf(secret_file, sizeof secret_file, "%s/token", dir);
	snprintf(file_env, sizeof file_env, "SAMPLE_CONFIG=%s", file);
	snprintf(token_file_env, sizeof token_file_env, "SAMPLE_TOKEN_FILE=%s", secret_file);
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	unlink(file);
	unlink(secret_file);
	return rmdir(dir);
}

static int setup(void **state)
{
	(void)state;
	validated = inverted = false;
	memset(&faults, 0, sizeof faults);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	settings_free(&spec, &cfg);
	settings_free(&spec, &cfg);
	settings_faults_fini(&faults);
	return 0;
}

static void write_file(const char *path, const char *text, unsigned mode)
{
	assert_ok(file_write_atomic(path, text, strlen(text), mode));
}

#define LOAD(...) settings_load(&spec, (char *const[]){__VA_ARGS__, NULL}, &cfg, &faults)
#define TOKEN	  "SAMPLE_TOKEN=tok-en"

/* Exactly one fault, of this setting, with this in its text. */
static void expect_fault(int r, const char *setting, const char *text)
{
	assert_int_equal(r, -EINVAL);
	for (size_t i = 0; i < faults.n; i++)
		if (faults.n > 1)
			print_message("fault: %s %s\n", faults.item[i].setting,
				      faults.item[i].text);
	assert_int_equal(faults.n, 1);
	if (!strstr(faults.item[0].setting, setting) || !strstr(faults.item[0].text, text))
		fail_msg("%s %s", faults.item[0].setting, faults.item[0].text);
	settings_free(&spec, &cfg);
	settings_faults_fini(&faults);
}

static void expect_file_fault(const char *text, unsigned line, const char *why)
{
	char where[96];
	snprintf(where, sizeof where, "%s:%u", file, line);
	write_file(file, text, 0644);
	expect_fault(LOAD(TOKEN, file_env), where, why);
}

static void test_defaults(void **state)
{
	(void)state;
	assert_ok(LOAD(TOKEN));
	assert_true(cfg.enabled && cfg.log_json);
	assert_int_equal(cfg.max_conn, 100);
	assert_int_equal(cfg.any, -5);
	assert_null(cfg.id);
	assert_null(cfg.list);
	assert_string_equal(cfg.dir, "/var/lib/x");
	assert_string_equal(cfg.log_level, "info");
	assert_string_equal(cfg.bind, "0.0.0.0:8082");
	assert_string_equal(cfg.token, "tok-en");
	assert_string_equal(cfg.prefix, "viw");
	assert_true(validated);
}

static void test_every_kind_from_the_environment(void **state)
{
	(void)state;
	assert_ok(LOAD(TOKEN, "SAMPLE_ENABLED=No", "SAMPLE_MAX_CONN=20000",
		       "SAMPLE_ANY=-9223372036854775808", "SAMPLE_ID=gw=1", "SAMPLE_DIR=/x",
		       "SAMPLE_LIST=a,b", "SAMPLE_LOG_LEVEL=warn", "SAMPLE_BIND=[::1]:1",
		       "SAMPLE_REDIS_URL=unix:///run/r.sock", "UNRELATED=1"));
	assert_false(cfg.enabled);
	assert_int_equal(cfg.max_conn, 20000);
	assert_true(cfg.any == INT64_MIN);
	assert_string_equal(cfg.id, "gw=1");
	assert_string_equal(cfg.dir, "/x");
	assert_string_equal(cfg.list, "a,b");
	assert_string_equal(cfg.log_level, "warn");
	assert_string_equal(cfg.bind, "[::1]:1");
	assert_string_equal(cfg.redis_url, "unix:///run/r.sock");
}

static void test_empty_is_unset(void **state)
{
	(void)state;
	write_file(file, "id = \"fromfile\"\nlog_level = \"\"\n", 0644);
	assert_ok(LOAD(TOKEN, file_env, "SAMPLE_ID=", "SAMPLE_MAX_CONN=", "SAMPLE_TOKEN_FILE="));
	assert_string_equal(cfg.id, "fromfile");
	assert_string_equal(cfg.log_level, "info");
	assert_int_equal(cfg.max_conn, 100);
}

static void test_faults_of_every_kind(void **state)
{
	static const struct {
		const char *env, *setting, *text;
	} t[] = {
	    {"SAMPLE_ENABLED=maybe", "SAMPLE_ENABLED", "must be true or false, not \"maybe\""},
	    {"SAMPLE_MAX_CONN=0", "SAMPLE_MAX_CONN", "from 1 to 20000 connections, not \"0\""},
	    {"SAMPLE_MAX_CONN=20001", "SAMPLE_MAX_CONN", "from 1 to 20000"},
	    {"SAMPLE_MAX_CONN=12x", "SAMPLE_MAX_CONN", "whole number"},
	    {"SAMPLE_MAX_CONN= 12", "SAMPLE_MAX_CONN", "whole number"},
	    {"SAMPLE_ANY=9223372036854775808", "SAMPLE_ANY", "whole number"},
	    {"SAMPLE_ID=ninechars", "SAMPLE_ID", "is 9 bytes long; at most 8"},
	    {"SAMPLE_ID=a\nb", "SAMPLE_ID", "control"},
	    {"SAMPLE_ID=\xff", "SAMPLE_ID", "UTF-8"},
	    {"SAMPLE_LOG_LEVEL=inf", "SAMPLE_LOG_LEVEL", "debug|info|warn|error"},
	    {"SAMPLE_BIND=localhost:80", "SAMPLE_BIND", "address:port"},
	    {"SAMPLE_REDIS_URL=hunter2", "SAMPLE_REDIS_URL", "must be a URL"},
	    {"SAMPLE_MAX_CON=1", "SAMPLE_MAX_CON", "is no setting of sample"},
	    {"SAMPLE_ID_FILE=/x", "SAMPLE_ID_FILE", "is no setting"},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(t); i++)
		expect_fault(LOAD(TOKEN, (char *)(uintptr_t)t[i].env), t[i].setting, t[i].text);
	expect_fault(LOAD("SAMPLE_ID=x"), "SAMPLE_TOKEN", "must be set: The token.");
}

static void test_faults_are_gathered_and_fields_keep_defaults(void **state)
{
	(void)state;
	assert_int_equal(
	    LOAD("SAMPLE_MAX_CONN=0", "SAMPLE_LOG_LEVEL=x", "SAMPLE_FOO=1", "SAMPLE_BAR=1"),
	    -EINVAL);
	assert_int_equal(faults.n, 5);
	assert_int_equal(cfg.max_conn, 100);
	assert_string_equal(cfg.log_level, "info");
	assert_false(validated); /* a required one is missing */
}

static void test_validate_adds_faults(void **state)
{
	(void)state;
	inverted = true;
	expect_fault(LOAD(TOKEN), "SAMPLE_MAX_CONN", "at most 10 here");
}

static void test_kubernetes_names_are_let_pass(void **state)
{
	(void)state;
	assert_ok(LOAD(TOKEN, "SAMPLE_SERVICE_HOST=10.0.0.1", "SAMPLE_SERVICE_PORT=80",
		       "SAMPLE_SERVICE_PORT_HTTP=80", "SAMPLE_PORT=tcp://10.0.0.1:80",
		       "SAMPLE_PORT_80_TCP_ADDR=10.0.0.1", "SAMPLE_X_SERVICE_HOST=1"));
	settings_free(&spec, &cfg);
	expect_fault(LOAD(TOKEN, "SAMPLE_SUPPORT=1"), "SAMPLE_SUPPORT", "is no setting");
}

static void test_precedence(void **state)
{
	(void)state;
	write_file(file, "max_conn = 7\nid = 'f'\nstream_prefix = \"f\"\n", 0644);
	assert_ok(LOAD(TOKEN, file_env, "SAMPLE_ID=e"));
	assert_int_equal(cfg.max_conn, 7);
	assert_string_equal(cfg.id, "e");
	assert_string_equal(cfg.prefix, "f");
	settings_free(&spec, &cfg);
	assert_ok(LOAD(TOKEN, file_env, "VIW_STREAM_PREFIX=alias"));
	assert_string_equal(cfg.prefix, "alias");
	settings_free(&spec, &cfg);
	assert_ok(LOAD(TOKEN, "VIW_STREAM_PREFIX=alias", "SAMPLE_STREAM_PREFIX=own"));
	assert_string_equal(cfg.prefix, "own");
}

static void test_secret_files(void **state)
{
	char line[128];
	(void)state;
	write_file(secret_file, "from-file\n", 0400);
	assert_ok(LOAD(token_file_env));
	assert_string_equal(cfg.token, "from-file");
	settings_free(&spec, &cfg);
	expect_fault(LOAD(token_file_env, TOKEN), "SAMPLE_TOKEN_FILE", "keep one of the two");
	snprintf(line, sizeof line, "token_file = \"%s\"\n", secret_file);
	write_file(file, line, 0644);
	assert_ok(LOAD(file_env));
	assert_string_equal(cfg.token, "from-file");
	settings_free(&spec, &cfg);
	/* the environment wins over the file, in either form */
	assert_ok(LOAD(file_env, TOKEN));
	assert_string_equal(cfg.token, "tok-en");
	settings_free(&spec, &cfg);
	write_file(secret_file, "s", 0644);
	expect_fault(LOAD(token_file_env), "SAMPLE_TOKEN_FILE", "make it mode 0400");
	write_file(secret_file, "\n", 0400);
	expect_fault(LOAD(token_file_env), "SAMPLE_TOKEN_FILE", "is empty");
	expect_fault(LOAD("SAMPLE_TOKEN_FILE=/nonexistent/t"), "SAMPLE_TOKEN_FILE", "no such file");
	write_file(secret_file, "redis://:pw@h:1/0\n", 0400);
	snprintf(line, sizeof line, "SAMPLE_REDIS_URL_FILE=%s", secret_file);
	assert_ok(LOAD(TOKEN, line));
	assert_string_equal(cfg.redis_url, "redis://:pw@h:1/0");
}

static char told[512];
static void on_file(void *arg, const char *path)
{
	size_t n = strlen(told);
	(void)arg;
	snprintf(told + n, sizeof told - n, "%s ", path);
}

static void test_files_are_told_there_or_not(void **state)
{
	char line[128];
	(void)state;
	snprintf(line, sizeof line, "token_file = \"%s\"\n", secret_file);
	write_file(file, line, 0644);
	unlink(secret_file);
	told[0] = '\0';
	assert_ok(settings_files(
	    &spec, (char *const[]){file_env, "SAMPLE_REDIS_URL_FILE=/x/url", NULL}, on_file, NULL));
	assert_non_null(strstr(told, file));
	assert_non_null(strstr(told, secret_file));
	assert_non_null(strstr(told, "/x/url"));
	told[0] = '\0';
	assert_ok(settings_files(&spec, (char *const[]){TOKEN, NULL}, on_file, NULL));
	assert_string_equal(told, "");
}

static void test_secrets_are_never_in_faults(void **state)
{
	char big[128];
	(void)state;
	snprintf(big, sizeof big, "SAMPLE_TOKEN=%s",
		 "hunter2hunter2hunter2hunter2hunter2hunter2hunter2"
		 "hunter2hunter2hunter2");
	assert_int_equal(LOAD(big, "SAMPLE_REDIS_URL=:hunter2@host"), -EINVAL);
	assert_int_equal(faults.n, 2);
	for (size_t i = 0; i < faults.n; i++)
		assert_null(strstr(faults.item[i].text, "hunter2"));
}

static void test_deprecated_warns(void **state)
{
	(void)state;
	assert_ok(LOAD(TOKEN, "SAMPLE_OLD=x"));
	assert_int_equal(faults.warnings, 1);
	assert_string_equal(faults.warning[0].setting, "SAMPLE_OLD");
	assert_non_null(strstr(faults.warning[0].text, "use SAMPLE_ID instead"));
	assert_string_equal(cfg.old, "x");
}

static void test_file_of_every_form(void **state)
{
	(void)state;
	write_file(file,
		   "# comment \xc3\xa4\r\n"
		   "\n"
		   "enabled=false # off\n"
		   "max_conn = 1_000\n"
		   "any\t=\t-12\n"
		   "id = \"a\\t\\\"\\u20ac\"\n",
		   0644);
	expect_fault(LOAD(TOKEN, file_env), "(id)", "control");
	write_file(file,
		   "enabled=false # off\r\n"
		   "id = \"\\\"\\\\\\u20ac\\U0001F600\"\n"
		   "dir = 'C:\\x # y'\n"
		   "list = [ 'a' , # one\n\n  \"b c\",\n]\n"
		   "token = \"t#k\"\n"
		   "log_level=\"error\"",
		   0644);
	int r = LOAD(file_env);
	expect_fault(r, "(id)", "is 9 bytes long");
	write_file(file,
		   "enabled=false # off\r\nid = \"\\\"\\\\\\u20ac\"\ndir = 'C:\\x # y'\n"
		   "list = [ 'a' , # one\n\n  \"b c\",\n]\ntoken = \"t#k\"\nlog_level=\"error\"",
		   0644);
	assert_ok(LOAD(file_env));
	assert_false(cfg.enabled);
	assert_string_equal(cfg.id, "\"\\\xe2\x82\xac");
	assert_string_equal(cfg.dir, "C:\\x # y");
	assert_string_equal(cfg.list, "a,b c");
	assert_string_equal(cfg.token, "t#k");
	assert_string_equal(cfg.log_level, "error");
}

static void test_file_faults_name_the_line(void **state)
{
	(void)state;
	expect_file_fault("id = \"a\"\n\n[table]\n", 3, "tables are not supported");
	expect_file_fault("a.b = 1\n", 1, "dotted");
	expect_file_fault("\"id\" = 1\n", 1, "quoted names");
	expect_file_fault("id = \"a\"\nid = \"b\"\n", 2, "was set before");
	expect_file_fault("id\n", 1, "expected `name = value`");
	expect_file_fault("id = \n", 1, "the value must be");
	expect_file_fault("id = bare\n", 1, "the value must be");
	expect_file_fault("max_conn = 1.5\n", 1, "the value must be");
	expect_file_fault("max_conn = 0x10\n", 1, "must not begin with 0");
	expect_file_fault("max_conn = 1__0\n", 1, "the value must be");
	expect_file_fault("max_conn = 1_\n", 1, "the value must be");
	expect_file_fault("id = \"a\" b\n", 1, "something follows");
	expect_file_fault("id = \"a\n", 1, "not closed on its line");
	expect_file_fault("id = \"\"\"a\"\"\"\n", 1, "multi-line");
	expect_file_fault("id = \"\\x\"\n", 1, "unknown escape");
	expect_file_fault("id = \"\\u00\"\n", 1, "hex digits");
	expect_file_fault("id = \"\\ud800\"\n", 1, "must name a Unicode character");
	expect_file_fault("id = \"\\u0000\"\n", 1, "must name a Unicode character");
	expect_file_fault("\nlist = [1, 2]\n", 2, "strings only");
	expect_file_fault("list = [\"a,b\"]\n", 1, "must not hold a comma");
	expect_file_fault("list = [\"a\"\n", 1, "not closed with ]");
	expect_file_fault("id = [\"a\"]\n", 1, "not an array");
	expect_file_fault("id = \"\xff\"\n", 1, "UTF-8");
	expect_file_fault("id = \"a\x01\"\n", 1, "control byte");
	expect_file_fault("id = \"a\" # \x01\n", 1, "control byte");
	expect_file_fault("\x01\n", 1, "expected");
	expect_file_fault("\xef\xbb\xbfid = \"a\"\n", 1, "expected");
	expect_file_fault("a = \"b\"\r", 1, "something follows");
	expect_file_fault("id = \"a\"\nnope = 1\n", 2, "`nope` is no setting of sample");
	expect_file_fault("\n\nmax_conn = 0\n", 3, "from 1 to 20000");
	expect_file_fault("max_conn = true\n", 1, "whole number");
	expect_file_fault("enabled = 2\n", 1, "true or false");
}

static void test_faulty_lines_do_not_hide_others(void **state)
{
	(void)state;
	write_file(file, "id = bad\nmax_conn = 7\n[x]\nlog_level = \"warn\"\n", 0644);
	assert_int_equal(LOAD(TOKEN, file_env), -EINVAL);
	assert_int_equal(faults.n, 2);
	assert_int_equal(cfg.max_conn, 7);
	assert_string_equal(cfg.log_level, "warn");
}

static void test_named_file_must_exist_default_need_not(void **state)
{
	(void)state;
	expect_fault(LOAD(TOKEN, "SAMPLE_CONFIG=/nonexistent.toml"), "/nonexistent.toml",
		     "cannot be read");
	spec.default_file = "/nonexistent.toml";
	assert_ok(LOAD(TOKEN));
	settings_free(&spec, &cfg);
	spec.default_file = file;
	write_file(file, "max_conn = 9\n", 0644);
	assert_ok(LOAD(TOKEN));
	assert_int_equal(cfg.max_conn, 9);
	spec.default_file = NULL;
}

static char printed[16384];
static void capture(void (*print)(FILE *))
{
	FILE *f = tmpfile();
	assert_non_null(f);
	print(f);
	rewind(f);
	size_t n = fread(printed, 1, sizeof printed - 1, f);
	printed[n] = '\0';
	fclose(f);
}
static void dump(FILE *f)
{
	settings_dump(&spec, &cfg, f);
}
static void help(FILE *f)
{
	settings_help(&spec, f);
}
static void markdown(FILE *f)
{
	settings_markdown(&spec, f);
}
static void expect_printed(const char *text)
{
	if (!strstr(printed, text))
		fail_msg("missing: %s\nin:\n%s", text, printed);
}

static void test_dump_masks_and_reads_back(void **state)
{
	(void)state;
	assert_ok(LOAD(TOKEN, "SAMPLE_ID=a\"b\\", "SAMPLE_LIST=x,y",
		       "SAMPLE_REDIS_URL=redis://user:hunter2:@@h:6379/0?password=hunter2&db=1"));
	capture(dump);
	assert_null(strstr(printed, "hunter2"));
	assert_null(strstr(printed, "tok-en"));
	expect_printed("token = \"***\"\n");
	expect_printed("redis_url = \"redis://user:***@h:6379/0?password=***&db=1\"\n");
	expect_printed("id = \"a\\\"b\\\\\"\n");
	expect_printed("old = \"\"\n");
	expect_printed("max_conn = 100\nany = -5\n");
	expect_printed("enabled = true\n");
	settings_free(&spec, &cfg);
	write_file(file, printed, 0644);
	assert_ok(LOAD(file_env));
	assert_string_equal(cfg.id, "a\"b\\");
	assert_string_equal(cfg.list, "x,y");
}

static void test_dump_masks_urls_of_all_shapes(void **state)
{
	static const char *const url[][2] = {
	    {"SAMPLE_REDIS_URL=redis://:hunter2@h/0", "\"redis://:***@h/0\""},
	    {"SAMPLE_REDIS_URL=postgresql://u:hunter/2@a:1,b:2/db",
	     "\"postgresql://u:***@a:1,b:2/db\""},
	    {"SAMPLE_REDIS_URL=postgresql://u@h/db?sslpassword=hunter2",
	     "\"postgresql://u@h/db?sslpassword=***\""},
	    {"SAMPLE_REDIS_URL=unix:///run/r.sock?db=1", "\"unix:///run/r.sock?db=1\""},
	    {"SAMPLE_REDIS_URL=redis://h:1/0", "\"redis://h:1/0\""},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(url); i++) {
		assert_ok(LOAD(TOKEN, (char *)(uintptr_t)url[i][0]));
		capture(dump);
		expect_printed(url[i][1]);
		settings_free(&spec, &cfg);
	}
}

static void test_help_and_markdown(void **state)
{
	(void)state;
	capture(help);
	expect_printed(
	    "SAMPLE_MAX_CONN  (int, 1 to 20000 connections, default 100, reloaded on SIGHUP)\n"
	    "      Most | at once.\n");
	expect_printed(
	    "SAMPLE_TOKEN  (secret, at most 64 bytes, required)\n  SAMPLE_TOKEN_FILE  (");
	expect_printed("SAMPLE_LOG_LEVEL  (word, debug|info|warn|error, default info");
	expect_printed("  VIW_STREAM_PREFIX  (another name of it)\n");
	expect_printed("SAMPLE_OLD  (text, unset by default, deprecated)");
	capture(markdown);
	expect_printed(
	    "| `SAMPLE_MAX_CONN` | int | `100` | 1 to 20000 connections | Most \\| at once. "
	    "Reloaded on SIGHUP. |\n");
	expect_printed(
	    "| `SAMPLE_TOKEN`, `…_FILE` | secret | required | at most 64 bytes | The token. |\n");
	expect_printed("debug\\|info\\|warn\\|error");
}

static char ignored[256];
static void on_ignored(const char *name)
{
	snprintf(ignored + strlen(ignored), sizeof ignored - strlen(ignored), "%s ", name);
}

static void test_reload_takes_what_may_change(void **state)
{
	struct sample fresh;
	struct settings_faults f = {0};
	(void)state;
	assert_ok(LOAD(TOKEN, "SAMPLE_LIST=a", "SAMPLE_ID=one"));
	char *const envp[] = {"SAMPLE_TOKEN=other", "SAMPLE_MAX_CONN=5", "SAMPLE_LOG_LEVEL=debug",
			      "SAMPLE_ID=two", NULL};
	assert_ok(settings_load(&spec, envp, &fresh, &f));
	assert_int_equal(settings_apply_reload(&spec, &cfg, &fresh, on_ignored), 3);
	assert_int_equal(cfg.max_conn, 5);
	assert_string_equal(cfg.log_level, "debug");
	assert_null(cfg.list);
	assert_string_equal(cfg.id, "one");
	assert_string_equal(cfg.token, "tok-en");
	assert_string_equal(ignored, "SAMPLE_ID SAMPLE_TOKEN ");
	settings_free(&spec, &fresh);
}

static void test_parser_survives_any_cut(void **state)
{
	static const char text[] =
	    "id = \"a\\u20ac\" # c\r\nlist = ['a', \"b\",\n]\nmax_conn = -1_0\nx='y'\n";
	(void)state;
	for (size_t n = 0; n < sizeof text; n++) {
		struct settings_pairs pairs;
		struct settings_faults f = {0};
		char *copy = malloc(n ? n : 1); /* exact size: a byte too far is caught */
		memcpy(copy, text, n);
		assert_ok(settings_file_parse("t", copy, n, &pairs, &f));
		settings_pairs_fini(&pairs);
		settings_faults_fini(&f);
		free(copy);
	}
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	    T(test_defaults),
	    T(test_every_kind_from_the_environment),
	    T(test_empty_is_unset),
	    T(test_faults_of_every_kind),
	    T(test_faults_are_gathered_and_fields_keep_defaults),
	    T(test_validate_adds_faults),
	    T(test_kubernetes_names_are_let_pass),
	    T(test_precedence),
	    T(test_secret_files),
	    T(test_files_are_told_there_or_not),
	    T(test_secrets_are_never_in_faults),
	    T(test_deprecated_warns),
	    T(test_file_of_every_form),
	    T(test_file_faults_name_the_line),
	    T(test_faulty_lines_do_not_hide_others),
	    T(test_named_file_must_exist_default_need_not),
	    T(test_dump_masks_and_reads_back),
	    T(test_dump_masks_urls_of_all_shapes),
	    T(test_help_and_markdown),
	    T(test_reload_takes_what_may_change),
	    T(test_parser_survives_any_cut),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
