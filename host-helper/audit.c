/* The hash-chained audit log, and its copy to the systemd journal by field. */
#include "audit.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/jsonw.h"
#include "wire/json_scan.h"

#define LINE_MAX_BYTES	 4096
#define TAIL_BYTES	 65536
#define CHECKPOINT_EVERY 1000 /* records */
#define NAME_LEN	 30   /* audit-<20 digits>.log */
#define LOOK_EVERY_MS	 1000 /* for a journald that is away */

/* CRC-32 of IEEE 802.3 (as zlib's), four bits a step. */
uint32_t audit_crc32(const void *bytes, size_t n)
{
	static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac,
					   0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
					   0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
					   0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
	const uint8_t *p = bytes;
	uint32_t c = ~0u;

	for (size_t i = 0; i < n; i++) {
		c = table[(c ^ p[i]) & 15] ^ (c >> 4);
		c = table[(c ^ (p[i] >> 4)) & 15] ^ (c >> 4);
	}
	return ~c;
}

void audit_hash_line(const char *line, size_t n, char *out)
{
	uint8_t hash[SHA256_BYTES];

	crypto_sha256(line, n, hash);
	crypto_hex(hash, sizeof hash, out);
}

int audit_line_parse(const char *p, size_t n, struct audit_mark *ret_with_prev_hash)
{
	struct json_fault fault;
	struct json_member m;
	struct span obj = {p, n};
	int64_t seq;

	if (n < 2 || p[0] != '{' || json_validate(p, n, 4, &fault) < 0)
		return -EBADMSG;
	if (!json_find(obj, "seq", &m) || m.type != JSON_T_INT || json_int(m.raw, &seq) < 0 ||
	    seq < 1)
		return -EBADMSG;
	ret_with_prev_hash->seq = (uint64_t)seq;
	if (!json_find(obj, "prev", &m) || m.type != JSON_T_STR || m.raw.n != SHA256_HEX_LEN)
		return -EBADMSG;
	return span_copy(m.raw, ret_with_prev_hash->hash, sizeof ret_with_prev_hash->hash);
}

/* ---- files ---- */

static int open_at(int dir, const char *name, int flags)
{
	int fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd < 0 ? -errno : fd;
}

static int is_put_aside(const struct dirent *e)
{
	return strlen(e->d_name) == NAME_LEN && strncmp(e->d_name, "audit-", 6) == 0 &&
	       strspn(e->d_name + 6, "0123456789") == 20 && strcmp(e->d_name + 26, ".log") == 0;
}

void audit_free_files(char **names, int n)
{
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
}

int audit_list_files(int dir, char ***ret)
{
	struct dirent **found;

	*ret = NULL;
	int n = scandirat(dir, ".", &found, is_put_aside, alphasort);

	if (n < 0)
		return -errno;
	char **names = calloc((size_t)n + 1, sizeof *names);
	for (int i = 0; i < n; i++) {
		if (names)
			names[i] = strdup(found[i]->d_name);
		free(found[i]);
	}
	free(found);
	for (int i = 0; names && i < n; i++)
		if (!names[i]) {
			audit_free_files(names, n);
			names = NULL;
		}
	*ret = names;
	return names ? n : -ENOMEM;
}

/* The last whole line of a file; *ret_end is where it ends. A file without one leaves ret as it is.
 */
static int last_record(int fd, struct audit_mark *ret, int64_t *ret_end)
{
	char *text = malloc(TAIL_BYTES);
	off_t size = lseek(fd, 0, SEEK_END), from = size > TAIL_BYTES ? size - TAIL_BYTES : 0;
	ssize_t n = text && size > 0 ? pread(fd, text, TAIL_BYTES, from) : 0;
	int r = !text ? -ENOMEM : n < 0 ? -errno : 0;

	*ret_end = 0;
	if (r == 0 && n > 0) {
		char *end = memrchr(text, '\n', (size_t)n);
		size_t len = end ? (size_t)(end - text) : 0;
		char *begin = len ? memrchr(text, '\n', len) : NULL;
		begin = begin ? begin + 1 : text;
		if (end)
			r = audit_line_parse(begin, (size_t)(end - begin), ret);
		else if (n > LINE_MAX_BYTES)
			r = -EBADMSG;
		if (r == 0 && end) {
			audit_hash_line(begin, (size_t)(end - begin), ret->hash);
			*ret_end = from + (int64_t)len + 1;
		}
	}
	free(text);
	return r;
}

static int last_of_file(int dir, const char *name, struct audit_mark *ret)
{
	int64_t end;
	int fd = open_at(dir, name, O_RDONLY);
	int r = fd < 0 ? fd : last_record(fd, ret, &end);

	closep(&fd);
	return r;
}

/* Takes up the chain from the last whole line; a torn last line is cut off. When audit.log holds
 * none (a crash while it was put aside), the newest file put aside does. */
static int find_end(struct audit *a)
{
	char **names;

	a->fd = open_at(a->dir, "audit.log", O_RDWR | O_CREAT | O_APPEND);
	int r = a->fd < 0 ? a->fd : last_record(a->fd, &a->last, &a->size);
	if (r == 0 && ftruncate(a->fd, a->size) < 0)
		r = -errno;
	if (r < 0 || a->size > 0)
		return r;
	int n = audit_list_files(a->dir, &names);
	if (n < 0 || !names)
		return n;
	if (n > 0)
		r = last_of_file(a->dir, names[n - 1], &a->last);
	audit_free_files(names, n);
	return r;
}

/* sd_journal_sendv(3) would block on a stuck journald; this socket never does. */
static bool open_journald(struct audit *a)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX,
				   .sun_path = "/run/systemd/journal/socket"};
	int64_t now = clock_boot_ms();

	if (a->journald < 0 && now - a->looked_boot_ms < LOOK_EVERY_MS)
		return false;
	a->looked_boot_ms = now;
	closep(&a->journald);
	a->journald = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (a->journald >= 0 && connect(a->journald, (struct sockaddr *)&addr, sizeof addr) < 0) {
		close(a->journald);
		a->journald = -1;
	}
	return a->journald >= 0;
}

int audit_open(struct audit *a, const char *state_dir, int64_t file_bytes, int files)
{
	*a = (struct audit){.fd = -1,
			    .head_fd = -1,
			    .before = -1,
			    .journald = -1,
			    .looked_boot_ms = -LOOK_EVERY_MS,
			    .last = {.hash = AUDIT_NO_HASH},
			    .synced = {.hash = AUDIT_NO_HASH},
			    .file_bytes = file_bytes,
			    .files = files};
	a->dir = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (a->dir < 0)
		return -errno;
	int r = find_end(a);
	if (r < 0)
		return r;
	a->head_fd = open_at(a->dir, "audit.head", O_RDWR | O_CREAT);
	if (a->head_fd < 0)
		return a->head_fd;
	return audit_write(a, &(struct audit_record){.event = "begin"});
}

void audit_close(struct audit *a)
{
	closep(&a->fd);
	closep(&a->head_fd);
	closep(&a->before);
	closep(&a->journald);
	closep(&a->dir);
	a->fd = a->head_fd = a->before = a->journald = a->dir = -1;
}

/* ---- writing ---- */

/* journald's native protocol with the length before the value, so that no value can bring fields of
 * its own: a refused verb is any text. */
static int field(struct buf *out, const char *name, const char *value, size_t n)
{
	uint64_t len = htole64(n);
	int e = buf_appendf(out, "%s\n", name);

	if (e == 0)
		e = buf_append(out, &len, sizeof len);
	if (e == 0)
		e = buf_append(out, value, n);
	return e == 0 ? buf_append_char(out, '\n') : e;
}

/* False when there is no journald behind the socket; a record that a full one does not take is not
 * held for it. */
static bool sent(const struct audit *a, const struct buf *text)
{
	return send(a->journald, text->data, text->len, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0 ||
	       errno == EAGAIN;
}

static void to_journald(struct audit *a, const struct audit_record *r, const char *line, size_t n)
{
	const char *code = r->code ? r->code : "-";
	struct buf text;

	if (a->journald < 0 && !open_journald(a))
		return;
	buf_init(&text, 2 * LINE_MAX_BYTES);
	int e = buf_appendf(&text,
			    "PRIORITY=%d\nSYSLOG_IDENTIFIER=host-helper\nMESSAGE=audit %s %s\n"
			    "VIW_EVENT=%s\nVIW_DURATION_MS=%" PRId64 "\n",
			    r->code && strcmp(r->code, "ok") != 0 ? 5 : 6, r->event, code, r->event,
			    r->duration_ms);
	const struct {
		const char *name, *value;
	} fields[] = {{"VIW_AGENT_ID", r->agent_id},
		      {"VIW_CORRELATION_ID", r->correlation_id},
		      {"VIW_VERB", r->verb},
		      {"VIW_CODE", r->code}};
	for (size_t i = 0; e == 0 && i < ARRAY_LEN(fields); i++)
		if (fields[i].value)
			e = field(&text, fields[i].name, fields[i].value, strlen(fields[i].value));
	if (e == 0 && r->has_rc)
		e = buf_appendf(&text, "VIW_RC=%d\n", r->rc);
	if (e == 0 && r->has_peer)
		e = buf_appendf(&text, "VIW_PEER_UID=%u\nVIW_PEER_PID=%d\n", r->uid, (int)r->pid);
	if (e == 0)
		e = field(&text, "VIW_RECORD", line, n);
	if (e == 0 && !sent(a, &text) && open_journald(a))
		(void)sent(a, &text);
	buf_fini(&text);
}

static int encode(const struct audit *a, const struct audit_record *r, int64_t now, struct buf *out)
{
	char ts[CLOCK_RFC3339_LEN + 1], crc[9];
	struct jsonw w;

	clock_format_rfc3339(now, ts);
	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_uint(&w, "seq", a->last.seq + 1);
	jsonw_str(&w, "ts", ts);
	jsonw_str(&w, "event", r->event);
	jsonw_str(&w, "agent_id", r->agent_id);
	jsonw_str(&w, "correlation_id", r->correlation_id);
	jsonw_str(&w, "verb", r->verb);
	jsonw_str(&w, "op", r->op);
	jsonw_str(&w, "args_hash", r->args_hash);
	jsonw_str(&w, "code", r->code);
	if (r->has_rc)
		jsonw_int(&w, "rc", r->rc);
	if (strcmp(r->event, "request") == 0)
		jsonw_int(&w, "duration_ms", r->duration_ms);
	if (r->has_output) {
		snprintf(crc, sizeof crc, "%08" PRIx32, r->out_crc32);
		jsonw_str(&w, "stdout_crc32", crc);
		snprintf(crc, sizeof crc, "%08" PRIx32, r->err_crc32);
		jsonw_str(&w, "stderr_crc32", crc);
	}
	if (r->has_peer) {
		jsonw_uint(&w, "peer_uid", r->uid);
		jsonw_int(&w, "peer_pid", r->pid);
	}
	if (r->pruned) {
		jsonw_uint(&w, "pruned_seq", r->pruned->seq);
		jsonw_str(&w, "pruned_hash", r->pruned->hash);
	}
	jsonw_str(&w, "prev", a->last.hash);
	jsonw_obj_end(&w);
	int e = jsonw_finish(&w);
	return e == 0 ? buf_append_char(out, '\n') : e;
}

static int append_line(struct audit *a, const struct buf *line)
{
	ssize_t n = write(a->fd, line->data, line->len);

	if (n == (ssize_t)line->len) {
		a->size += n;
		return 0;
	}
	int r = n < 0 ? -errno : -ENOSPC;
	if (n > 0 && ftruncate(a->fd, a->size) < 0)
		r = -errno;
	return r;
}

/* A head that could not be written lags behind; audit_verify tells. */
static void write_head(const struct audit *a)
{
	char head[96];
	int n = snprintf(head, sizeof head, "%020" PRIu64 " %s\n", a->last.seq, a->last.hash);

	if (pwrite(a->head_fd, head, (size_t)n, 0) != n)
		return;
}

static int write_one(struct audit *a, const struct audit_record *r)
{
	int64_t now = clock_wall_ms();
	struct buf line;

	buf_init(&line, LINE_MAX_BYTES);
	int e = encode(a, r, now, &line);
	if (e == 0)
		e = append_line(a, &line);
	if (e == 0) {
		a->last.seq++;
		a->last.ts_ms = now;
		audit_hash_line(line.data, line.len - 1, a->last.hash);
		write_head(a);
		to_journald(a, r, line.data, line.len - 1);
	}
	buf_fini(&line);
	return e;
}

/* ---- rotation ---- */

/* The record comes first: should the removal fail, the file is one too many, not one missing. A
 * file that cannot be read is kept, and those after it. */
static void prune(struct audit *a)
{
	char **names;
	int r = 0, n = audit_list_files(a->dir, &names);

	if (n < 0 || !names)
		return;
	for (int i = 0; r == 0 && i < n - a->files && names[i]; i++) {
		struct audit_mark end = {0};
		r = last_of_file(a->dir, names[i], &end);
		if (r == 0)
			r = write_one(a, &(struct audit_record){.event = "pruned", .pruned = &end});
		if (r == 0 && unlinkat(a->dir, names[i], 0) < 0)
			r = -errno;
	}
	audit_free_files(names, n);
}

static int rotate(struct audit *a)
{
	char name[NAME_LEN + 1];

	snprintf(name, sizeof name, "audit-%020" PRIu64 ".log", a->last.seq);
	if (renameat(a->dir, "audit.log", a->dir, name) < 0)
		return -errno;
	int fd = open_at(a->dir, "audit.log", O_RDWR | O_CREAT | O_APPEND);
	if (fd < 0) { /* as before, and tried again with the next record */
		return renameat(a->dir, name, a->dir, "audit.log") < 0 ? -errno : fd;
	}
	closep(&a->before);
	a->before = a->fd;
	a->before_seq = a->last.seq;
	a->fd = fd;
	a->size = 0;
	prune(a);
	return 0;
}

int audit_write(struct audit *a, const struct audit_record *r)
{
	int e = a->size >= a->file_bytes ? rotate(a) : 0;

	if (e == 0)
		e = write_one(a, r);
	if (e == 0 && a->last.seq % CHECKPOINT_EVERY == 0)
		e = write_one(a, &(struct audit_record){.event = "checkpoint"});
	return e;
}

/* ---- the disk ---- */

int audit_sync(const struct audit *a)
{
	if (a->before >= 0 && (fdatasync(a->before) < 0 || fsync(a->dir) < 0))
		return -errno;
	return fdatasync(a->fd) < 0 ? -errno : 0;
}

void audit_synced(struct audit *a, const struct audit_mark *mark)
{
	if (mark->seq > a->synced.seq)
		a->synced = *mark;
	if (a->before >= 0 && a->synced.seq >= a->before_seq) {
		close(a->before);
		a->before = -1;
	}
}
