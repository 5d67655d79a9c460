/* The hash-chained audit log, and its copy to the systemd journal by field. */
#include "audit.h"

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
#include "crypto/crypto.h"
#include "wire/json_scan.h"

#define LINE_MAX_BYTES	 4096
#define TAIL_BYTES	 65536
#define CHECKPOINT_EVERY 1000 /* records */
#define NO_HASH		 "0000000000000000000000000000000000000000000000000000000000000000"

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

static void hash_line(const char *line, size_t n, char *out)
{
	uint8_t hash[SHA256_BYTES];

	crypto_sha256(line, n, hash);
	crypto_hex(hash, sizeof hash, out);
}

/* ---- reading one line ---- */

struct line {
	uint64_t seq;
	char prev[65];
};

static int line_parse(const char *p, size_t n, struct line *ret)
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
	ret->seq = (uint64_t)seq;
	if (!json_find(obj, "prev", &m) || m.type != JSON_T_STR || m.raw.n != SHA256_HEX_LEN)
		return -EBADMSG;
	return span_copy(m.raw, ret->prev, sizeof ret->prev);
}

/* ---- opening ---- */

/* Takes up the chain from the last whole line; a torn last line is cut off. */
static int find_end(struct audit *a)
{
	char *text = malloc(TAIL_BYTES);
	off_t size = lseek(a->fd, 0, SEEK_END), from = size > TAIL_BYTES ? size - TAIL_BYTES : 0;
	ssize_t n = text && size > 0 ? pread(a->fd, text, TAIL_BYTES, from) : 0;
	struct line l;
	int r = !text ? -ENOMEM : n < 0 ? -errno : 0;

	if (r == 0 && n > 0) {
		char *end = memrchr(text, '\n', (size_t)n);
		size_t len = end ? (size_t)(end - text) : 0;
		char *begin = len ? memrchr(text, '\n', len) : NULL;
		begin = begin ? begin + 1 : text;
		if (!end || line_parse(begin, (size_t)(end - begin), &l) < 0) {
			r = -EBADMSG;
		} else {
			a->seq = l.seq;
			hash_line(begin, (size_t)(end - begin), a->hash);
			if (ftruncate(a->fd, from + (off_t)len + 1) < 0)
				r = -errno;
		}
	}
	free(text);
	return r;
}

static int open_file(const char *state_dir, const char *name, int flags)
{
	char path[4096];

	if (snprintf(path, sizeof path, "%s/%s", state_dir, name) >= (int)sizeof path)
		return -ENAMETOOLONG;
	int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

/* sd_journal_sendv(3) would block on a stuck journald; this socket never does. */
static int open_journald(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX,
				   .sun_path = "/run/systemd/journal/socket"};
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int audit_open(struct audit *a, const char *state_dir)
{
	*a = (struct audit){.fd = -1, .head_fd = -1, .journald = -1, .hash = NO_HASH};
	a->fd = open_file(state_dir, "audit.log", O_RDWR | O_CREAT | O_APPEND);
	if (a->fd < 0)
		return a->fd;
	a->head_fd = open_file(state_dir, "audit.head", O_RDWR | O_CREAT);
	if (a->head_fd < 0)
		return a->head_fd;
	a->journald = open_journald();
	int r = find_end(a);
	if (r < 0)
		return r;
	return audit_write(a, &(struct audit_record){.event = "begin"});
}

void audit_close(struct audit *a)
{
	closep(&a->fd);
	closep(&a->head_fd);
	closep(&a->journald);
	a->fd = a->head_fd = a->journald = -1;
}

/* ---- writing ---- */

static void to_journald(struct audit *a, const struct audit_record *r, const char *line, size_t n)
{
	struct buf text;

	if (a->journald < 0)
		return;
	buf_init(&text, 2 * LINE_MAX_BYTES);
	int e = buf_appendf(&text,
			    "MESSAGE=audit %s %s %s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=host-helper\n"
			    "VIW_EVENT=%s\n",
			    r->event, r->verb ? r->verb : "-", r->code ? r->code : "-",
			    r->code && strcmp(r->code, "ok") != 0 ? 5 : 6, r->event);
	const struct {
		const char *name, *value;
	} fields[] = {{"VIW_AGENT_ID", r->agent_id},
		      {"VIW_CORRELATION_ID", r->correlation_id},
		      {"VIW_VERB", r->verb},
		      {"VIW_CODE", r->code}};
	for (size_t i = 0; e == 0 && i < ARRAY_LEN(fields); i++)
		if (fields[i].value)
			e = buf_appendf(&text, "%s=%s\n", fields[i].name, fields[i].value);
	if (e == 0 && r->has_rc)
		e = buf_appendf(&text, "VIW_RC=%d\n", r->rc);
	if (e == 0 && r->has_peer)
		e = buf_appendf(&text, "VIW_PEER_UID=%u\nVIW_PEER_PID=%d\n", r->uid, (int)r->pid);
	if (e == 0)
		e = buf_appendf(&text, "VIW_DURATION_MS=%" PRId64 "\nVIW_RECORD=%.*s\n",
				r->duration_ms, (int)n, line);
	if (e == 0 && send(a->journald, text.data, text.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
	    errno != EAGAIN) {
		close(a->journald); /* journald went away; the next record looks for it again */
		a->journald = open_journald();
	}
	buf_fini(&text);
}

static int encode(const struct audit *a, const struct audit_record *r, int64_t now, struct buf *out)
{
	char ts[CLOCK_RFC3339_LEN + 1], crc[9];
	struct jsonw w;

	clock_format_rfc3339(now, ts);
	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_uint(&w, "seq", a->seq + 1);
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
	jsonw_str(&w, "prev", a->hash);
	jsonw_obj_end(&w);
	int e = jsonw_finish(&w);
	return e == 0 ? buf_append_char(out, '\n') : e;
}

static int append_line(struct audit *a, const struct buf *line)
{
	off_t size = lseek(a->fd, 0, SEEK_END);
	ssize_t n = write(a->fd, line->data, line->len);

	if (n == (ssize_t)line->len)
		return 0;
	int r = n < 0 ? -errno : -ENOSPC;
	if (n > 0 && ftruncate(a->fd, size) < 0)
		r = -errno;
	return r;
}

static void write_head(struct audit *a)
{
	char head[96];
	int n = snprintf(head, sizeof head, "%020" PRIu64 " %s\n", a->seq, a->hash);

	if (pwrite(a->head_fd, head, (size_t)n, 0) != n)
		a->lost++; /* verify tells of a head that lags behind */
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
		a->seq++;
		a->ts_ms = now;
		hash_line(line.data, line.len - 1, a->hash);
		write_head(a);
		to_journald(a, r, line.data, line.len - 1);
	} else {
		a->lost++;
	}
	buf_fini(&line);
	return e;
}

int audit_write(struct audit *a, const struct audit_record *r)
{
	int e = write_one(a, r);

	if (e == 0 && a->seq % CHECKPOINT_EVERY == 0)
		e = write_one(a, &(struct audit_record){.event = "checkpoint"});
	return e;
}

/* ---- verifying ---- */

struct verify {
	FILE *out;
	uint64_t seq, lines;
	char hash[65], before[65];
	uint64_t want_seq;
	const char *want_hash; /* NULL: no checkpoint asked for */
	bool want_found;
};

static int bad(struct verify *v, const char *why)
{
	fprintf(v->out, "audit.log line %" PRIu64 " (after record %" PRIu64 "): %s\n", v->lines,
		v->seq, why);
	return 1;
}

static int check_line(struct verify *v, const char *p, size_t n)
{
	struct line l;

	v->lines++;
	if (line_parse(p, n, &l) < 0)
		return bad(v, "is not a record");
	if (l.seq != v->seq + 1)
		return bad(v, l.seq > v->seq ? "records are missing before it"
					     : "is out of order or there twice");
	if (strcmp(l.prev, v->hash) != 0)
		return bad(v, "the record before it was edited, or this one was put in");
	memcpy(v->before, v->hash, sizeof v->before);
	hash_line(p, n, v->hash);
	v->seq = l.seq;
	if (v->want_hash && v->want_seq == v->seq) {
		v->want_found = strcmp(v->want_hash, v->hash) == 0;
		if (!v->want_found)
			return bad(v, "differs from the checkpoint given");
	}
	return 0;
}

/* The head may lag one record behind (the helper was killed in between), never lead. */
static int check_head(struct verify *v, const char *state_dir)
{
	char text[128] = {0}, hash[65] = {0};
	uint64_t seq = 0;
	int fd = open_file(state_dir, "audit.head", O_RDONLY);

	if (fd < 0) {
		fprintf(v->out,
			"audit.head is missing: whether the end was cut off cannot be said\n");
		return 1;
	}
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n < 86 || sscanf(text, "%" SCNu64 " %64s", &seq, hash) != 2) {
		fprintf(v->out, "audit.head cannot be read\n");
		return 1;
	}
	if ((seq == v->seq && strcmp(hash, v->hash) == 0) ||
	    (seq + 1 == v->seq && strcmp(hash, v->before) == 0))
		return 0;
	if (seq > v->seq)
		fprintf(v->out,
			"audit.log: cut off after record %" PRIu64 ", the head says %" PRIu64 "\n",
			v->seq, seq);
	else
		fprintf(v->out,
			"audit.log: its last record %" PRIu64 " is not the head's %" PRIu64 "\n",
			v->seq, seq);
	return 1;
}

static int read_checkpoint(struct verify *v, const char *text)
{
	const char *colon = text ? strchr(text, ':') : NULL;

	if (!text)
		return 0;
	if (!colon || strlen(colon + 1) != SHA256_HEX_LEN ||
	    sscanf(text, "%" SCNu64 ":", &v->want_seq) != 1)
		return -EINVAL;
	v->want_hash = colon + 1;
	return 0;
}

int audit_verify(const char *state_dir, const char *checkpoint, FILE *out)
{
	struct verify v = {.out = out, .hash = NO_HASH, .before = NO_HASH};
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;

	int r = read_checkpoint(&v, checkpoint);
	int fd = r == 0 ? open_file(state_dir, "audit.log", O_RDONLY) : r;
	FILE *f = fd >= 0 ? fdopen(fd, "r") : NULL;
	if (!f)
		return fd < 0 ? fd : -errno;
	while (r == 0 && (n = getline(&line, &cap, f)) > 0)
		r = line[n - 1] == '\n' ? check_line(&v, line, (size_t)n - 1)
					: bad(&v, "the last line is torn");
	free(line);
	fclose(f);
	if (r == 0)
		r = check_head(&v, state_dir);
	if (r == 0 && v.want_hash && !v.want_found) {
		fprintf(out, "audit.log: cut off before checkpoint %" PRIu64 "\n", v.want_seq);
		r = 1;
	}
	if (r == 0)
		fprintf(out, "audit.log: %" PRIu64 " records, unbroken; head %" PRIu64 ":%s\n",
			v.seq, v.seq, v.hash);
	return r;
}
