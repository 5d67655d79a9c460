/* `host-helper audit verify`: reads the whole chain, over all its files. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "audit.h"
#include "wire/json_scan.h"

struct verify {
	FILE *out;
	const char *file; /* being read */
	uint64_t line;
	bool begun;
	struct audit_mark base, last, head; /* base: what lies before the first record there is */
	char before[SHA256_HEX_LEN + 1];
	bool base_told, head_seen;
	struct audit_mark want; /* the checkpoint given */
	bool has_want;
};

static int bad(struct verify *v, const char *why)
{
	fprintf(v->out, "%s line %" PRIu64 " (after record %" PRIu64 "): %s\n", v->file, v->line,
		v->last.seq, why);
	return 1;
}

/* {"seq":…,"prev":…} of the mark that lies before the first file kept, as a pruned record names it.
 */
static bool tells_base(const struct verify *v, struct span obj)
{
	struct json_member seq, hash;
	int64_t n;

	return json_find(obj, "pruned_seq", &seq) && json_int(seq.raw, &n) == 0 &&
	       (uint64_t)n == v->base.seq && json_find(obj, "pruned_hash", &hash) &&
	       span_eq(hash.raw, v->base.hash);
}

static int check_line(struct verify *v, const char *p, size_t n)
{
	struct audit_mark l;

	v->line++;
	if (audit_line_parse(p, n, &l) < 0)
		return bad(v, "is not a record");
	if (!v->begun && l.seq > 1) {
		v->base = v->last = (struct audit_mark){.seq = l.seq - 1};
		memcpy(v->base.hash, l.hash, sizeof l.hash);
		memcpy(v->last.hash, l.hash, sizeof l.hash);
	}
	v->begun = true;
	if (l.seq != v->last.seq + 1)
		return bad(v, l.seq > v->last.seq ? "records are missing before it"
						  : "is out of order or there twice");
	if (strcmp(l.hash, v->last.hash) != 0)
		return bad(v, "the record before it was edited, or this one was put in");
	memcpy(v->before, v->last.hash, sizeof v->before);
	audit_hash_line(p, n, v->last.hash);
	v->last.seq = l.seq;
	if (v->base.seq && !v->base_told)
		v->base_told = tells_base(v, (struct span){p, n});
	if (v->head.seq == v->last.seq)
		v->head_seen = strcmp(v->head.hash, v->last.hash) == 0;
	if (v->has_want && v->want.seq == v->last.seq && strcmp(v->want.hash, v->last.hash) != 0)
		return bad(v, "differs from the checkpoint given");
	return 0;
}

static int read_log(struct verify *v, FILE *f, const char *name)
{
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;
	int r = 0;

	if (!f)
		return -errno;
	v->file = name;
	v->line = 0;
	while (r == 0 && (n = getline(&line, &cap, f)) > 0)
		r = line[n - 1] == '\n' ? check_line(v, line, (size_t)n - 1)
					: bad(v, "the last line is torn");
	free(line);
	fclose(f);
	return r;
}

/* 0, or 1 with the reason told. */
static int read_head(struct verify *v, int dir, struct audit_mark *ret)
{
	char text[128] = {0};
	int fd = openat(dir, "audit.head", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0) {
		fprintf(v->out,
			"audit.head is missing: whether the end was cut off cannot be said\n");
		return 1;
	}
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n < 86 || sscanf(text, "%" SCNu64 " %64s", &ret->seq, ret->hash) != 2) {
		fprintf(v->out, "audit.head cannot be read\n");
		return 1;
	}
	return 0;
}

/* The head was read before the log, and is read again: a helper at work moves both on meanwhile.
 * The log leads it by one record at most (the helper was killed in between). */
static int check_head(struct verify *v, int dir)
{
	struct audit_mark now = {0};
	bool lags = v->head.seq + 1 == v->last.seq && strcmp(v->head.hash, v->before) == 0;

	if (read_head(v, dir, &now) > 0)
		return 1;
	if ((v->head_seen || lags) && v->last.seq <= now.seq + 1)
		return 0;
	fprintf(v->out,
		v->head.seq > v->last.seq
		    ? "audit.log: cut off after record %" PRIu64 ", the head says %" PRIu64 "\n"
		    : "audit.log: its last record %" PRIu64 " is not the head's %" PRIu64 "\n",
		v->last.seq, v->head.seq);
	return 1;
}

/* What is not in the log any more must have been removed by rotation, and what is asked for be
 * there. */
static int check_ends(struct verify *v)
{
	if (v->base.seq && !v->base_told) {
		fprintf(v->out,
			"audit.log: records 1 to %" PRIu64
			" are missing, and no record tells of their removal\n",
			v->base.seq);
		return 1;
	}
	if (v->has_want && v->want.seq > v->last.seq) {
		fprintf(v->out, "audit.log: cut off before checkpoint %" PRIu64 "\n", v->want.seq);
		return 1;
	}
	if (v->has_want && v->want.seq <= v->base.seq &&
	    (v->want.seq < v->base.seq || strcmp(v->want.hash, v->base.hash) != 0)) {
		fprintf(v->out,
			"audit.log: checkpoint %" PRIu64
			" was removed by rotation and cannot be compared\n",
			v->want.seq);
		return 1;
	}
	return 0;
}

static int read_checkpoint(struct verify *v, const char *text)
{
	const char *colon = text ? strchr(text, ':') : NULL;

	if (!text)
		return 0;
	if (!colon || strlen(colon + 1) != SHA256_HEX_LEN ||
	    sscanf(text, "%" SCNu64 ":", &v->want.seq) != 1 || v->want.seq == 0)
		return -EINVAL;
	memcpy(v->want.hash, colon + 1, sizeof v->want.hash);
	v->has_want = true;
	return 0;
}

static FILE *open_log(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	return fd >= 0 ? fdopen(fd, "r") : NULL;
}

static int read_all(struct verify *v, int dir)
{
	FILE *newest = NULL;
	char **names, **again;
	int n, m, r = 0;

	for (int tries = 0; tries < 10; tries++) { /* it may be put aside this very moment */
		if ((n = audit_list_files(dir, &names)) < 0)
			return n;
		newest = open_log(dir, "audit.log");
		m = audit_list_files(dir, &again);
		if (m >= 0)
			audit_free_files(again, m);
		if (m == n || m < 0)
			break;
		audit_free_files(names, n);
		names = NULL;
		n = 0;
		if (newest)
			fclose(newest);
		newest = NULL;
	}
	for (int i = 0; r == 0 && i < n; i++)
		r = read_log(v, open_log(dir, names[i]), names[i]);
	if (r == 0)
		r = read_log(v, newest, "audit.log");
	audit_free_files(names, n);
	return r;
}

static int verify_once(const struct verify *asked, int dir, FILE *out)
{
	struct verify v = *asked;

	int headless = read_head(&v, dir, &v.head);
	int r = read_all(&v, dir);
	if (r == 0)
		r = headless ? headless : check_head(&v, dir);
	if (r == 0)
		r = check_ends(&v);
	if (r == 0)
		fprintf(out, "audit.log: %" PRIu64 " records, unbroken; head %" PRIu64 ":%s\n",
			v.last.seq - v.base.seq, v.last.seq, v.last.hash);
	if (r == 0 && v.base.seq)
		fprintf(out,
			"records 1 to %" PRIu64 " were removed by rotation, which the log tells\n",
			v.base.seq);
	return r;
}

int audit_verify(const char *state_dir, const char *checkpoint, FILE *out)
{
	struct verify v = {.out = out,
			   .last = {.hash = AUDIT_NO_HASH},
			   .before = AUDIT_NO_HASH,
			   .head = {.hash = AUDIT_NO_HASH}};

	int r = read_checkpoint(&v, checkpoint);
	if (r < 0)
		return r;
	int dir = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	r = -ENOENT; /* a file that was on the list went by rotation before it was read */
	for (int tries = 0; r == -ENOENT && tries < 100; tries++)
		r = verify_once(&v, dir, out);
	close(dir);
	return r;
}
