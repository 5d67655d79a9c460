/* The journal of commands on disk. States: absent → running → done | unknown, or absent → void. */
#include "journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "crypto/crypto.h"

#define MAX_FILE_BYTES (1 << 20)
#define TEMP_PREFIX    ".new-"
#define SEEN_LEN       21 /* 20 digits and a newline: one size, written in place */
#define SEEN_EVERY_MS  60000

const char *journal_state_word(enum journal_state s)
{
	static const char *const words[] = {"absent", "running", "done", "void", "unknown"};

	return words[s];
}

void journal_name(const char *correlation_id, char *out)
{
	uint8_t hash[SHA256_BYTES];

	crypto_sha256(correlation_id, strlen(correlation_id), hash);
	crypto_hex(hash, sizeof hash, out);
}

/* ---- opening ---- */

static int machine_hash(char *out)
{
	uint8_t hash[SHA256_BYTES];
	struct buf text;

	buf_init(&text, 4096);
	int r = file_read("/etc/machine-id", &text);
	if (r == -ENOENT)
		r = 0; /* no machine-id: clones are not told apart by it */
	if (r == 0) {
		crypto_sha256(text.data ? text.data : "", text.len, hash);
		crypto_hex(hash, sizeof hash, out);
	}
	buf_fini(&text);
	return r;
}

/* state_dir/journal.id: "<uuid> <sha256 of machine-id>\n". */
static int load_id(struct journal *j, const char *state_dir, bool *ret_new)
{
	char path[4096], machine[SHA256_HEX_LEN + 1], line[128];
	struct buf text;

	int r = machine_hash(machine);
	if (r < 0)
		return r;
	if (snprintf(path, sizeof path, "%s/journal.id", state_dir) >= (int)sizeof path)
		return -ENAMETOOLONG;
	buf_init(&text, 4096);
	r = file_read(path, &text);
	*ret_new = r == -ENOENT;
	if (r == 0 &&
	    (text.len < UUID_LEN + 1 + SHA256_HEX_LEN || !ident_is_uuid4(text.data, UUID_LEN)))
		r = -EBADMSG;
	if (r == 0 && memcmp(text.data + UUID_LEN + 1, machine, SHA256_HEX_LEN) != 0)
		*ret_new = true;
	if (r == 0 && !*ret_new)
		memcpy(j->id, text.data, UUID_LEN);
	buf_fini(&text);
	if (!*ret_new)
		return r;
	ident_uuid4(j->id);
	snprintf(line, sizeof line, "%s %s\n", j->id, machine);
	return file_write_atomic(path, line, strlen(line), 0600);
}

static void remove_temps(int dir)
{
	int fd = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	for (struct dirent *e; d && (e = readdir(d));)
		if (strncmp(e->d_name, TEMP_PREFIX, strlen(TEMP_PREFIX)) == 0)
			(void)unlinkat(dir, e->d_name, 0);
	if (d)
		closedir(d);
}

/* ---- time seen ---- */

static int64_t seen_ms(const struct journal *j)
{
	return j->seen_before_ms + clock_boot_ms() - j->opened_boot_ms;
}

/* A count that is missing or damaged begins anew: what is there then only stays the longer. Where
 * there is no room for it, it is kept in memory: outcomes are told from a full disk, too. */
static int load_seen(struct journal *j, const char *state_dir)
{
	char path[4096], text[SEEN_LEN + 1] = {0};

	if (snprintf(path, sizeof path, "%s/journal.seen", state_dir) >= (int)sizeof path)
		return -ENAMETOOLONG;
	j->opened_boot_ms = clock_boot_ms();
	j->seen_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->seen_fd < 0)
		return errno == ENOSPC || errno == EDQUOT ? 0 : -errno;
	if (pread(j->seen_fd, text, SEEN_LEN, 0) < 0) {
		int r = -errno;
		closep(&j->seen_fd);
		j->seen_fd = -1; /* or closing would write what was never counted */
		return r;
	}
	if (strspn(text, "0123456789") == SEEN_LEN - 1 && text[0] == '0' && text[1] == '0' &&
	    text[SEEN_LEN - 1] == '\n')
		j->seen_before_ms = strtoll(text, NULL, 10);
	j->kept_seen_ms = j->seen_before_ms;
	return 0;
}

static void write_seen(struct journal *j)
{
	char text[SEEN_LEN + 1];
	int64_t seen = seen_ms(j);

	snprintf(text, sizeof text, "%020lld\n", (long long)seen);
	if (pwrite(j->seen_fd, text, SEEN_LEN, 0) == SEEN_LEN)
		j->kept_seen_ms = seen;
}

void journal_keep_seen(struct journal *j)
{
	if (j->seen_fd >= 0 && seen_ms(j) - j->kept_seen_ms >= SEEN_EVERY_MS)
		write_seen(j);
}

int journal_open(struct journal *j, const char *state_dir, bool *ret_new)
{
	char path[4096];

	*j = (struct journal){.dir = -1, .seen_fd = -1};
	if (snprintf(path, sizeof path, "%s/journal", state_dir) >= (int)sizeof path)
		return -ENAMETOOLONG;
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return -errno;
	j->dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (j->dir < 0)
		return -errno;
	remove_temps(j->dir);
	int r = load_id(j, state_dir, ret_new);
	if (r == 0)
		r = load_seen(j, state_dir);
	if (r < 0)
		journal_close(j);
	return r;
}

void journal_close(struct journal *j)
{
	if (j->seen_fd >= 0)
		write_seen(j);
	closep(&j->seen_fd);
	closep(&j->dir);
	j->dir = j->seen_fd = -1;
}

/* ---- writing ---- */

/* Reserves blocks behind the end of the file; writes NULs where fallocate(2) is not supported. */
static int reserve(int fd, size_t at, size_t bytes)
{
	static const char zeros[4096];

	if (bytes == 0 || fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes) == 0)
		return 0;
	if (errno != EOPNOTSUPP)
		return -errno;
	for (size_t done = 0; done < bytes;) {
		size_t n = bytes - done < sizeof zeros ? bytes - done : sizeof zeros;
		ssize_t w = pwrite(fd, zeros, n, (off_t)(at + done));
		if (w <= 0)
			return w < 0 ? -errno : -EIO;
		done += (size_t)w;
	}
	return 0;
}

/* The file, whole and synced, under a temporary name; then under its own unless there is one. */
static int publish(const struct journal *j, const char *correlation_id, const struct buf *text,
		   size_t reserve_bytes, int *ret_fd)
{
	char name[JOURNAL_NAME_LEN + 1], temp[48];
	int fd, r;

	journal_name(correlation_id, name);
	snprintf(temp, sizeof temp, TEMP_PREFIX "%016llx%016llx",
		 (unsigned long long)ident_random_u64(), (unsigned long long)ident_random_u64());
	fd = openat(j->dir, temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	r = flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
	CRASH_POINT("supervisor.after_lock");
	if (r == 0)
		r = reserve(fd, text->len, reserve_bytes);
	if (r == 0)
		r = file_write_all(fd, text->data, text->len);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	CRASH_POINT("helper.before_intent");
	if (r == 0 &&
	    renameat2(j->dir, temp, j->dir, name, CRASH_OFF("journal") ? 0 : RENAME_NOREPLACE) < 0)
		r = -errno;
	CRASH_POINT("helper.after_intent");
	if (r < 0) {
		(void)unlinkat(j->dir, temp, 0);
		close(fd);
		return r;
	}
	/* The name must outlive a power cut before anything starts; if that cannot be had, the file
	 * goes again and nothing starts. */
	if (fsync(j->dir) < 0) {
		r = -errno;
		(void)unlinkat(j->dir, name, 0);
		close(fd);
		return r;
	}
	CRASH_POINT("helper.intent_synced");
	*ret_fd = fd;
	return 0;
}

static int intent_encode(const struct intent *in, int64_t seen, struct buf *out)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "correlation_id", in->correlation_id);
	jsonw_str(&w, "agent_id", in->agent_id);
	jsonw_str(&w, "verb", in->verb);
	jsonw_str(&w, "digest", in->digest);
	jsonw_str(&w, "nonce", in->nonce);
	jsonw_str(&w, "run_id", in->run_id);
	jsonw_str(&w, "boot_id", in->boot_id);
	jsonw_int(&w, "deadline_ms", in->deadline_ms);
	jsonw_int(&w, "created_ms", in->created_ms);
	jsonw_int(&w, "seen_ms", seen);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

static int create(const struct journal *j, const struct intent *in, const char *kind,
		  size_t reserve_bytes, int *ret_fd)
{
	struct buf payload, text;

	buf_init(&payload, 4096);
	buf_init(&text, 8192);
	int r = intent_encode(in, seen_ms(j), &payload);
	if (r == 0)
		r = record_append(&text, kind, payload.data, payload.len);
	if (r == 0)
		r = publish(j, in->correlation_id, &text, reserve_bytes, ret_fd);
	buf_fini(&payload);
	buf_fini(&text);
	return r;
}

int journal_begin(const struct journal *j, const struct intent *in, size_t reserve_bytes,
		  int *ret_fd)
{
	return create(j, in, "intent", reserve_bytes, ret_fd);
}

int journal_void(const struct journal *j, const char *correlation_id, const char *agent_id)
{
	struct intent in = {.created_ms = clock_wall_ms()};
	int fd = -1;

	snprintf(in.correlation_id, sizeof in.correlation_id, "%s", correlation_id);
	snprintf(in.agent_id, sizeof in.agent_id, "%s", agent_id);
	int r = create(j, &in, "void", 0, &fd);
	CRASH_POINT("helper.void_created");
	if (r == 0)
		close(fd);
	return r;
}

static int append_record(int fd, const char *kind, const struct buf *payload)
{
	struct buf text;

	buf_init(&text, MAX_FILE_BYTES);
	int r = record_append(&text, kind, payload->data, payload->len);
	if (r == 0)
		r = file_write_all(fd, text.data, text.len);
	buf_fini(&text);
	return r;
}

int journal_start(int fd, pid_t child, uint64_t child_start)
{
	struct buf payload;

	buf_init(&payload, 256);
	int r = buf_appendf(&payload, "{\"pid\":%d,\"start\":%llu}", (int)child,
			    (unsigned long long)child_start);
	if (r == 0)
		r = append_record(fd, "start", &payload);
	buf_fini(&payload);
	return r;
}

int journal_done(int fd, const struct outcome *o)
{
	struct buf payload;

	buf_init(&payload, MAX_FILE_BYTES);
	int r = outcome_encode(o, &payload);
	if (r == 0)
		r = append_record(fd, "done", &payload);
	buf_fini(&payload);
	CRASH_POINT("supervisor.done_written");
	if (r == 0 && fdatasync(fd) < 0)
		r = -errno;
	CRASH_POINT("supervisor.done_synced");
	off_t end = lseek(fd, 0, SEEK_CUR);
	if (r == 0 && end > 0 && ftruncate(fd, end) < 0) {
		/* The reserved space stays taken until the file ages out; the outcome is safe. */
	}
	return r;
}

/* ---- reading ---- */

static void get_text(struct span obj, const char *key, char *out, size_t cap)
{
	struct json_member m;

	out[0] = 0;
	if (json_find(obj, key, &m) && m.type == JSON_T_STR && span_copy(m.raw, out, cap) < 0)
		out[0] = 0;
}

static int64_t get_num(struct span obj, const char *key)
{
	struct json_member m;
	int64_t v = 0;

	if (json_find(obj, key, &m) && m.type == JSON_T_INT && json_int(m.raw, &v) < 0)
		v = 0;
	return v;
}

static bool plain_object(struct span s)
{
	struct json_fault fault;

	return s.n >= 2 && s.p[0] == '{' && json_validate(s.p, s.n, 4, &fault) == 0;
}

static const char *read_intent(struct span s, const char *name, struct intent *ret)
{
	char own[JOURNAL_NAME_LEN + 1];

	if (!plain_object(s))
		return "its first record is not an object";
	get_text(s, "correlation_id", ret->correlation_id, sizeof ret->correlation_id);
	get_text(s, "agent_id", ret->agent_id, sizeof ret->agent_id);
	get_text(s, "verb", ret->verb, sizeof ret->verb);
	get_text(s, "digest", ret->digest, sizeof ret->digest);
	get_text(s, "nonce", ret->nonce, sizeof ret->nonce);
	get_text(s, "run_id", ret->run_id, sizeof ret->run_id);
	get_text(s, "boot_id", ret->boot_id, sizeof ret->boot_id);
	ret->deadline_ms = get_num(s, "deadline_ms");
	ret->created_ms = get_num(s, "created_ms");
	ret->seen_ms = get_num(s, "seen_ms");
	journal_name(ret->correlation_id, own);
	return strcmp(own, name) == 0 ? NULL : "it belongs to another command";
}

/* Fills e from the file's bytes; gives what is wrong with them, or NULL. */
static const char *read_records(struct span rest, const char *name, struct journal_entry *e,
				bool *ret_done, bool *ret_void)
{
	struct record rec;
	int r = record_next(&rest, &rec);

	if (r <= 0)
		return r == 0 ? "it is empty" : "its first record is torn";
	*ret_void = span_eq(rec.kind, "void");
	if (!*ret_void && !span_eq(rec.kind, "intent"))
		return "it does not begin with an intent";
	const char *bad = read_intent(rec.payload, name, &e->intent);
	/* A record torn by the death of its writer is one that was not written. */
	while (!bad && record_next(&rest, &rec) == 1) {
		if (span_eq(rec.kind, "start") && plain_object(rec.payload)) {
			e->child = (pid_t)get_num(rec.payload, "pid");
			e->child_start = (uint64_t)get_num(rec.payload, "start");
		} else if (span_eq(rec.kind, "done") && !*ret_void && !*ret_done) {
			*ret_done = true;
			if (outcome_decode(rec.payload, &e->outcome) < 0)
				bad = "its outcome cannot be read";
		} else {
			bad = "it holds a record that does not belong there";
		}
	}
	return bad;
}

static int read_file(int fd, struct buf *text)
{
	for (;;) {
		char *at;
		int r = buf_reserve(text, 65536, &at);
		if (r < 0)
			return r;
		ssize_t n = read(fd, at, 65536);
		if (n < 0)
			return -errno;
		if (n == 0)
			return 0;
		buf_commit(text, (size_t)n);
	}
}

int journal_look_file(const struct journal *j, const char *name, struct journal_entry *ret)
{
	bool done = false, is_void = false;
	struct buf text;

	*ret = (struct journal_entry){.state = JOURNAL_ABSENT};
	outcome_init(&ret->outcome, MAX_FILE_BYTES);
	int fd = openat(j->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	/* The lock is looked at first: whoever lets go of it has written all it ever will. */
	bool held = flock(fd, LOCK_SH | LOCK_NB) < 0;
	buf_init(&text, 2 * MAX_FILE_BYTES);
	int r = read_file(fd, &text);
	struct span bytes = {text.data ? text.data : "", text.len};
	if (r == 0)
		ret->corrupt = read_records(bytes, name, ret, &done, &is_void);
	buf_fini(&text);
	close(fd);
	if (ret->corrupt)
		ret->state = JOURNAL_UNKNOWN;
	else if (is_void)
		ret->state = JOURNAL_VOID;
	else if (held)
		ret->state = JOURNAL_RUNNING; /* even with DONE: it may not have been synced yet */
	else
		ret->state = done ? JOURNAL_DONE : JOURNAL_UNKNOWN;
	return r;
}

int journal_look(const struct journal *j, const char *correlation_id, struct journal_entry *ret)
{
	char name[JOURNAL_NAME_LEN + 1];

	journal_name(correlation_id, name);
	return journal_look_file(j, name, ret);
}

bool journal_is_of(const struct journal_entry *e, const char *digest)
{
	return e->corrupt || !e->intent.digest[0] || strcmp(e->intent.digest, digest) == 0;
}

void journal_entry_fini(struct journal_entry *e)
{
	outcome_fini(&e->outcome);
}

/* ---- ageing ---- */

/* The time of day only spares us reading the young. */
static bool is_old(const struct journal *j, const char *name, int64_t now_ms)
{
	struct journal_entry e;
	struct stat st;

	if (strlen(name) != JOURNAL_NAME_LEN ||
	    fstatat(j->dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
	    (int64_t)st.st_mtim.tv_sec * 1000 + JOURNAL_KEEP_MS >= now_ms)
		return false;
	bool old = journal_look_file(j, name, &e) == 0 && !e.corrupt &&
		   e.state != JOURNAL_RUNNING && e.state != JOURNAL_ABSENT &&
		   e.intent.seen_ms + JOURNAL_KEEP_MS < seen_ms(j);
	journal_entry_fini(&e);
	return old;
}

int journal_age(const struct journal *j, int64_t now_ms, size_t *ret_removed)
{
	int fd = openat(j->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	*ret_removed = 0;
	if (!d)
		return -errno;
	for (struct dirent *e; (e = readdir(d));) {
		if (is_old(j, e->d_name, now_ms) && unlinkat(j->dir, e->d_name, 0) == 0)
			(*ret_removed)++;
	}
	closedir(d);
	return 0;
}
