/* The journal of host-helper on a real folder: dedupe, liveness, torn files, ageing, who holds a
 * file; and output cleaning. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "journal.h"
#include "supervisor.h"
#include "tree.h"
#include "unit.h"

static char dir[64];
static struct journal j;

static int setup(void **state)
{
	bool fresh;

	(void)state;
	snprintf(dir, sizeof dir, "/tmp/viw-journal-XXXXXX");
	assert_non_null(mkdtemp(dir));
	assert_ok(journal_open(&j, dir, &fresh));
	assert_true(fresh);
	return 0;
}

static int teardown(void **state)
{
	char *const argv[] = {"rm", "-rf", dir, NULL};
	int status;

	(void)state;
	clock_test_shift(0, 0);
	journal_close(&j);
	pid_t pid = fork();
	if (pid == 0) {
		execvp("rm", argv);
		_exit(127);
	}
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : -1;
}

static void begin(const char *cid, int *fd)
{
	struct intent in = {.deadline_ms = 5, .created_ms = 6};

	snprintf(in.correlation_id, sizeof in.correlation_id, "%s", cid);
	snprintf(in.agent_id, sizeof in.agent_id, "a");
	snprintf(in.verb, sizeof in.verb, "v");
	snprintf(in.digest, sizeof in.digest, "d");
	assert_ok(journal_begin(&j, &in, 10000, fd));
}

static enum journal_state state_of(const char *cid, struct journal_entry *ret)
{
	struct journal_entry e;

	assert_ok(journal_look(&j, cid, &e));
	enum journal_state s = e.state;
	if (ret)
		*ret = e;
	else
		journal_entry_fini(&e);
	return s;
}

static void finish(int fd, const char *out)
{
	struct outcome o;

	outcome_init(&o, 10000);
	o.started = o.has_rc = true;
	o.rc = 3;
	assert_ok(buf_append_str(&o.out, out));
	assert_ok(journal_done(fd, &o));
	outcome_fini(&o);
}

static void test_life_of_a_file(void **state)
{
	struct journal_entry e;
	int fd;

	(void)state;
	assert_int_equal(state_of("c", NULL), JOURNAL_ABSENT);
	begin("c", &fd);
	assert_int_equal(state_of("c", NULL), JOURNAL_RUNNING);
	assert_ok(journal_start(fd, 42, 77));
	finish(fd, "hello");
	/* Written, but its writer still holds it: it may not have been synced. */
	assert_int_equal(state_of("c", NULL), JOURNAL_RUNNING);
	close(fd);
	assert_int_equal(state_of("c", &e), JOURNAL_DONE);
	assert_int_equal(e.child, 42);
	assert_int_equal(e.child_start, 77);
	assert_int_equal(e.outcome.rc, 3);
	assert_string_equal(e.outcome.out.data, "hello");
	assert_string_equal(e.intent.verb, "v");
	assert_int_equal(e.intent.deadline_ms, 5);
	journal_entry_fini(&e);
}

static void test_second_creation_is_refused(void **state)
{
	struct intent in = {.correlation_id = "c"};
	int fd, second;

	(void)state;
	begin("c", &fd);
	assert_int_equal(journal_begin(&j, &in, 100, &second), -EEXIST);
	assert_int_equal(journal_void(&j, "c", "a"), -EEXIST);
	close(fd);
	assert_ok(journal_void(&j, "v", "a"));
	assert_int_equal(journal_begin(&j, &(struct intent){.correlation_id = "v"}, 100, &second),
			 -EEXIST);
	assert_int_equal(state_of("v", NULL), JOURNAL_VOID);
}

static void test_no_holder_and_no_outcome_is_unknown(void **state)
{
	int fd;

	(void)state;
	begin("c", &fd);
	close(fd);
	assert_int_equal(state_of("c", NULL), JOURNAL_UNKNOWN);
}

static void path_of(const char *cid, char *out, size_t cap)
{
	char name[JOURNAL_NAME_LEN + 1];

	journal_name(cid, name);
	snprintf(out, cap, "%s/journal/%s", dir, name);
}

static size_t slurp(const char *path, char *out, size_t cap)
{
	FILE *f = fopen(path, "r");

	assert_non_null(f);
	size_t n = fread(out, 1, cap, f);
	fclose(f);
	return n;
}

static void spit(const char *path, const char *bytes, size_t n)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	fclose(f);
}

/* A file cut anywhere is DONE only when whole; a changed byte never gives another outcome. */
static void test_torn_and_changed_at_every_byte(void **state)
{
	char path[256], bytes[4096];
	struct journal_entry e;
	int fd;

	(void)state;
	begin("c", &fd);
	assert_ok(journal_start(fd, 42, 77));
	finish(fd, "hello");
	close(fd);
	path_of("c", path, sizeof path);
	size_t n = slurp(path, bytes, sizeof bytes);
	for (size_t i = 0; i < n; i++) {
		spit(path, bytes, i);
		assert_int_equal(state_of("c", NULL), JOURNAL_UNKNOWN);
	}
	for (size_t i = 0; i < n; i++) {
		bytes[i] ^= 0x20;
		spit(path, bytes, n);
		bytes[i] ^= 0x20;
		enum journal_state s = state_of("c", &e);
		/* A digit of a hash in the other case is the same hash. */
		if (s == JOURNAL_DONE)
			assert_true(e.outcome.rc == 3 && strcmp(e.outcome.out.data, "hello") == 0);
		else
			assert_int_equal(s, JOURNAL_UNKNOWN);
		journal_entry_fini(&e);
	}
	spit(path, bytes, n);
	assert_int_equal(state_of("c", NULL), JOURNAL_DONE);
}

static void test_foreign_file_is_refused(void **state)
{
	char path[256], bytes[4096];
	struct journal_entry e;
	int fd;

	(void)state;
	begin("other", &fd);
	finish(fd, "x");
	close(fd);
	path_of("other", path, sizeof path);
	size_t n = slurp(path, bytes, sizeof bytes);
	path_of("mine", path, sizeof path);
	spit(path, bytes, n);
	assert_int_equal(state_of("mine", &e), JOURNAL_UNKNOWN);
	assert_non_null(e.corrupt);
	journal_entry_fini(&e);
}

static void make_old(const char *cid)
{
	struct timespec times[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
	char path[256];

	path_of(cid, path, sizeof path);
	assert_ok(utimensat(AT_FDCWD, path, times, 0));
}

static void test_ageing_spares_the_young_and_the_running(void **state)
{
	size_t removed;
	int running, fd;

	(void)state;
	begin("old", &fd);
	close(fd);
	begin("young", &fd);
	close(fd);
	begin("running", &running);
	make_old("old");
	make_old("running");
	clock_test_shift(0, JOURNAL_KEEP_MS + 1000);
	assert_ok(journal_age(&j, clock_wall_ms(), &removed));
	assert_int_equal(removed, 1);
	assert_int_equal(state_of("old", NULL), JOURNAL_ABSENT);
	assert_int_equal(state_of("young", NULL), JOURNAL_UNKNOWN);
	assert_int_equal(state_of("running", NULL), JOURNAL_RUNNING);
	close(running);
}

static size_t age_at(int64_t wall_ms)
{
	size_t removed;

	assert_ok(journal_age(&j, wall_ms, &removed));
	return removed;
}

/* Another helper, and perhaps another boot. After a kill only what was kept is known. */
static void next_helper(bool killed, int64_t boot_shift_ms)
{
	bool fresh;

	if (killed) {
		close(j.dir);
		close(j.seen_fd);
	} else {
		journal_close(&j);
	}
	clock_test_shift(0, boot_shift_ms);
	assert_ok(journal_open(&j, dir, &fresh));
}

#define YEARS_AHEAD (clock_wall_ms() + 1000 * JOURNAL_KEEP_MS)

static void test_ageing_takes_time_that_was_seen(void **state)
{
	const int64_t half = JOURNAL_KEEP_MS / 2;
	int fd;

	(void)state;
	begin("c", &fd);
	finish(fd, "x");
	close(fd);
	assert_ok(journal_void(&j, "v", "a"));
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	clock_test_shift(0, half);
	journal_keep_seen(&j);
	next_helper(true, 5 * half); /* the host was asleep, off, or nobody ran: not seen */
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	clock_test_shift(0, 6 * half - 5000);
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	next_helper(true, 0); /* another boot, and what it had seen was not kept */
	clock_test_shift(0, half - 10000);
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	next_helper(false, 0); /* stopped: kept */
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	clock_test_shift(0, 11000);
	assert_int_equal(age_at(clock_wall_ms()), 0);
	assert_int_equal(age_at(YEARS_AHEAD), 2);
	assert_int_equal(state_of("c", NULL), JOURNAL_ABSENT);
}

/* A count that is lost, torn or no number lets nothing go early. */
static void test_a_lost_count_keeps_files_longer(void **state)
{
	static const char *const bad[] = {"", "7", "99999999999999999999\n",
					  "000000000000x0000000\n", "00000000999999999999 "};
	char path[256];
	int fd;

	(void)state;
	begin("c", &fd);
	close(fd);
	snprintf(path, sizeof path, "%s/journal.seen", dir);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		spit(path, bad[i], strlen(bad[i]));
		next_helper(true, 0);
		clock_test_shift(0, JOURNAL_KEEP_MS - 1000);
		assert_int_equal(age_at(YEARS_AHEAD), 0);
	}
	clock_test_shift(0, JOURNAL_KEEP_MS + 2000);
	assert_int_equal(age_at(YEARS_AHEAD), 1);
}

static void test_what_cannot_be_read_does_not_age(void **state)
{
	char path[256];
	int fd;

	(void)state;
	begin("c", &fd);
	close(fd);
	path_of("c", path, sizeof path);
	spit(path, "VIWJ1 intent", 12);
	clock_test_shift(0, JOURNAL_KEEP_MS + 1000);
	assert_int_equal(age_at(YEARS_AHEAD), 0);
	assert_int_equal(state_of("c", NULL), JOURNAL_UNKNOWN);
}

static void test_id_is_kept_and_new_on_another_machine(void **state)
{
	char path[256], bytes[256], id[UUID_LEN + 1];
	struct journal again;
	bool fresh;

	(void)state;
	memcpy(id, j.id, sizeof id);
	assert_ok(journal_open(&again, dir, &fresh));
	assert_false(fresh);
	assert_string_equal(again.id, id);
	journal_close(&again);
	/* What a cloned disk finds: an id made under another machine-id. */
	snprintf(path, sizeof path, "%s/journal.id", dir);
	size_t n = slurp(path, bytes, sizeof bytes);
	bytes[UUID_LEN + 1] = bytes[UUID_LEN + 1] == '0' ? '1' : '0';
	spit(path, bytes, n);
	assert_ok(journal_open(&again, dir, &fresh));
	assert_true(fresh);
	assert_string_not_equal(again.id, id);
	journal_close(&again);
	spit(path, "garbage", 7);
	assert_int_equal(journal_open(&again, dir, &fresh), -EBADMSG);
}

static void test_temporary_files_are_swept(void **state)
{
	char path[256];
	struct journal again;
	bool fresh;

	(void)state;
	snprintf(path, sizeof path, "%s/journal/.new-1", dir);
	spit(path, "x", 1);
	assert_ok(journal_open(&again, dir, &fresh));
	assert_int_equal(access(path, F_OK), -1);
	journal_close(&again);
}

static void expect_clean(const char *raw, size_t n, bool cut_before, size_t cap, const char *want,
			 bool want_cut)
{
	char *values[] = {"S3cret-Value"};
	struct secret_set s = {.value = values, .n = 1};
	struct buf out;
	bool cut;

	buf_init(&out, cap + 8);
	assert_ok(redact_output(&s, raw, n, cut_before, cap, &out, &cut));
	assert_string_equal(out.data ? out.data : "", want);
	assert_int_equal(cut, want_cut);
	buf_fini(&out);
}

#define CLEAN(raw, cut_before, cap, want, want_cut) \
	expect_clean(raw, sizeof(raw) - 1, cut_before, cap, want, want_cut)

static void test_clean_output(void **state)
{
	(void)state;
	CLEAN("", false, 10, "", false);
	CLEAN("plain", false, 10, "plain", false);
	CLEAN("plain", false, 5, "plain", false);
	CLEAN("plain", false, 4, "plai", true);
	CLEAN("a\xff\0z", false, 20, "a\\xff\\x00z", false);
	CLEAN("\xff", false, 3, "", true);
	CLEAN("\xc3\xa9\xc3", false, 20, "\xc3\xa9\\xc3", false);
	CLEAN("\xc3\xa9", false, 1, "", true); /* never half a character */
	CLEAN("\xed\xa0\x80", false, 20, "\\xed\\xa0\\x80", false);
	CLEAN("a S3cret-Value b", false, 20, "a *** b", false);
	CLEAN("a S3cret-Value b", false, 4, "a **", true);
	CLEAN("a S3cret-Va", true, 20, "a ", true); /* the beginning of one at the cut */
	CLEAN("a S3cret-Va", false, 20, "a S3cret-Va", false);
}

static void test_record_sizes_never_lie(void **state)
{
	struct span rest =
	    SPAN("VIWJ1 done e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 "
		 "999999999\n\n");
	struct record rec;

	(void)state;
	assert_int_equal(record_next(&rest, &rec), -EBADMSG);
	rest = SPAN(
	    "VIWJ1 done e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0\n\n");
	assert_int_equal(record_next(&rest, &rec), 1);
	assert_int_equal(rec.payload.n, 0);
	assert_int_equal(record_next(&rest, &rec), 0);
}

static void on_locked(void *arg, const char *name, pid_t holder)
{
	pid_t *ret = arg;
	char own[JOURNAL_NAME_LEN + 1];

	journal_name("c-1", own);
	assert_string_equal(name, own);
	*ret = holder;
}

/* Whether a child with this uid is named as holder of c-1 when it has its lock. */
static bool is_named(uid_t uid)
{
	char path[256], name[JOURNAL_NAME_LEN + 1], byte;
	int ready[2], status;
	pid_t seen = 0;

	journal_name("c-1", name);
	snprintf(path, sizeof path, "%s/journal/%s", dir, name);
	assert_ok(pipe2(ready, O_CLOEXEC));
	pid_t child = fork();
	if (child == 0) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (setresuid(uid, uid, uid) == 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 &&
		    write(ready[1], "y", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	assert_ok(tree_each_locked(j.dir, on_locked, &seen));
	assert_ok(kill(child, SIGKILL));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(seen == 0 || seen == child);
	return seen == child;
}

/* A file of the same inode number on another device is all it takes to look like one. */
static void test_only_root_passes_for_a_supervisor(void **state)
{
	int fd;

	(void)state;
	if (geteuid() != 0)
		skip();
	begin("c-1", &fd);
	close(fd);
	assert_true(is_named(0));
	assert_false(is_named(65534));
}

/* The kernel gives the list of children a page at a time. */
static void test_all_of_many_children_are_found(void **state)
{
	enum { MANY = 900 };
	char *const argv[] = {"sleep", "60", NULL};
	pid_t child[MANY];
	int status;

	(void)state;
	for (size_t i = 0; i < MANY; i++) /* fork(2) is dear with AddressSanitizer */
		assert_ok(posix_spawnp(&child[i], "sleep", NULL, NULL, argv, NULL));
	ssize_t seen = tree_signal(getpid(), 0);
	int r = tree_kill(getpid());
	size_t killed = 0;
	for (size_t i = 0; i < MANY; i++) { /* whoever was not found is ended all the same */
		(void)kill(child[i], SIGTERM);
		assert_int_equal(waitpid(child[i], &status, 0), child[i]);
		killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
	}
	assert_ok(r);
	assert_int_equal(seen, MANY);
	assert_int_equal(killed, MANY);
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    CASE(test_life_of_a_file),
	    CASE(test_second_creation_is_refused),
	    CASE(test_no_holder_and_no_outcome_is_unknown),
	    CASE(test_torn_and_changed_at_every_byte),
	    CASE(test_foreign_file_is_refused),
	    CASE(test_ageing_spares_the_young_and_the_running),
	    CASE(test_ageing_takes_time_that_was_seen),
	    CASE(test_a_lost_count_keeps_files_longer),
	    CASE(test_what_cannot_be_read_does_not_age),
	    CASE(test_id_is_kept_and_new_on_another_machine),
	    CASE(test_temporary_files_are_swept),
	    CASE(test_only_root_passes_for_a_supervisor),
	    cmocka_unit_test(test_all_of_many_children_are_found),
	    cmocka_unit_test(test_clean_output),
	    cmocka_unit_test(test_record_sizes_never_lie),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
