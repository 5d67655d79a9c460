#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

static char dir[] = "/tmp/viw-file-XXXXXX";
static char path[128];

static int make_dir(void **state)
{
	(void)state;
	snprintf(path, sizeof path, "%s/f", mkdtemp(dir));
	return 0;
}

static int remove_dir(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir); /* fails when a temporary file was left behind */
}

static void put(const char *text, mode_t mode)
{
	assert_ok(file_write_atomic(path, text, strlen(text), mode));
}

static void test_write_atomic_replaces_and_sets_mode(void **state)
{
	struct buf b;
	struct stat st;
	(void)state;
	umask(077);
	put("one", 0644);
	put("two\n", 0640);
	assert_ok(stat(path, &st));
	assert_int_equal(st.st_mode & 07777, 0640);
	buf_init(&b, 4);
	assert_ok(file_read(path, &b));
	assert_string_equal(b.data, "two\n");
	buf_fini(&b);
	assert_int_equal(file_write_atomic("/nonexistent/f", "x", 1, 0600), -ENOENT);
	assert_int_equal(file_write_atomic(dir, "x", 1, 0600), -EISDIR);
}

static void test_read_caps_and_kinds(void **state)
{
	struct buf b;
	char fifo[160];
	(void)state;
	put("four", 0600);
	buf_init(&b, 3);
	assert_int_equal(file_read(path, &b), -EFBIG);
	buf_fini(&b);
	buf_init(&b, 100);
	assert_int_equal(file_read(dir, &b), -EISDIR);
	assert_int_equal(file_read("/dev/null", &b), -EINVAL);
	assert_int_equal(file_read("/nonexistent", &b), -ENOENT);
	snprintf(fifo, sizeof fifo, "%s.fifo", path);
	assert_ok(mkfifo(fifo, 0600));
	assert_int_equal(file_read(fifo, &b), -EINVAL);
	unlink(fifo);
	assert_ok(file_read("/proc/self/stat", &b) == -EFBIG ? 0 : 1);
	buf_fini(&b);
}

static int secret(const char *text, mode_t mode, struct buf *b)
{
	put(text, mode);
	buf_clear(b);
	return file_read_secret(path, b);
}

static void test_secret_rules(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 64);
	assert_ok(secret("pw\n", 0400, &b));
	assert_string_equal(b.data, "pw");
	assert_ok(secret("pw\r\n", 0440, &b));
	assert_string_equal(b.data, "pw");
	assert_ok(secret("two\n\n", 0600, &b));
	assert_string_equal(b.data, "two\n");
	assert_int_equal(secret("pw", 0404, &b), -EACCES);
	assert_int_equal(secret("pw", 0660, &b), -EACCES);
	assert_int_equal(secret("pw", 0602, &b), -EACCES);
	assert_int_equal(secret("", 0400, &b), -ENODATA);
	assert_int_equal(secret("\n", 0400, &b), -ENODATA);
	assert_non_null(strstr(file_secret_remedy(-EACCES), "0400"));
	buf_fini(&b);
}

static void test_platform_secrets_may_be_world_readable(void **state)
{
	static const char mine[] = "/run/secrets/viw-unit-test";
	struct buf b;
	(void)state;
	if (geteuid() != 0)
		skip();
	bool made = mkdir("/run/secrets", 0755) == 0;
	buf_init(&b, 64);
	assert_ok(file_write_atomic(mine, "s", 1, 0444));
	int r = file_read_secret(mine, &b), write_bit, foreign;
	chmod(mine, 0464);
	write_bit = file_read_secret(mine, &b);
	chmod(mine, 0444);
	assert_ok(chown(mine, 12345, 12345));
	foreign = file_read_secret(mine, &b);
	unlink(mine);
	if (made)
		rmdir("/run/secrets");
	assert_ok(r);
	assert_int_equal(write_bit, -EACCES);
	assert_int_equal(foreign, -EACCES);
	buf_fini(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_write_atomic_replaces_and_sets_mode),
	    cmocka_unit_test(test_read_caps_and_kinds),
	    cmocka_unit_test(test_secret_rules),
	    cmocka_unit_test(test_platform_secrets_may_be_world_readable),
	};
	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
