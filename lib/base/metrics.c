/*
 * See metrics.h. Series of a family form a list that only grows: readers walk it without a lock
 * (a series is published when it is complete), makers of new series hold the family's lock.
 */
#include "base/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SERIES_MAX  256
#define LABELS_MAX  2
#define BUCKETS_MAX 32

struct family;

struct metric {
	const struct family *family;
	struct metric *_Atomic next;
	char *label[LABELS_MAX];
	_Atomic uint64_t count;	   /* COUNTER: the value; HISTOGRAM: observations */
	_Atomic uint64_t bits;	   /* GAUGE: the value's bits; HISTOGRAM: the sum's */
	_Atomic uint64_t bucket[]; /* not cumulative */
};

struct family {
	const struct metric_family *row;
	char label_name[LABELS_MAX][48];
	unsigned labels;
	double bound[BUCKETS_MAX];
	unsigned bounds;
	unsigned n; /* series, under lock */
	struct metric *_Atomic first;
	struct metric *last; /* under lock */
};

struct metrics {
	pthread_mutex_t lock;
	size_t n;
	struct metric *sink; /* what metrics_get gives when there is no memory */
	struct family family[];
};

static uint64_t bits_of(double v)
{
	uint64_t u;
	memcpy(&u, &v, sizeof u);
	return u;
}

static double double_of(uint64_t u)
{
	double v;
	memcpy(&v, &u, sizeof v);
	return v;
}

static struct metric *metric_new(const struct family *f, const char *const label[])
{
	struct metric *s = calloc(1, sizeof *s + f->bounds * sizeof s->bucket[0]);
	if (!s)
		return NULL;
	s->family = f;
	for (unsigned i = 0; i < f->labels; i++) {
		s->label[i] = strdup(label[i] ? label[i] : "");
		if (!s->label[i]) {
			free(s->label[0]);
			free(s);
			return NULL;
		}
	}
	return s;
}

static void metric_free(struct metric *s)
{
	for (unsigned i = 0; i < LABELS_MAX; i++)
		free(s->label[i]);
	free(s);
}

static void family_publish(struct family *f, struct metric *s)
{
	if (f->last)
		atomic_store_explicit(&f->last->next, s, memory_order_release);
	else
		atomic_store_explicit(&f->first, s, memory_order_release);
	f->last = s;
	f->n++;
}

static int family_init(struct family *f, const struct metric_family *row)
{
	f->row = row;
	for (const char *p = row->labels; p && *p;) {
		size_t n = strcspn(p, ",");
		if (f->labels == LABELS_MAX || n == 0 || n >= sizeof f->label_name[0])
			return -EINVAL;
		memcpy(f->label_name[f->labels++], p, n);
		p += n + (p[n] == ',');
	}
	for (const char *p = row->buckets; p && *p;) {
		char *end;
		if (f->bounds == BUCKETS_MAX)
			return -EINVAL;
		f->bound[f->bounds] = strtod(p, &end);
		if (end == p || (*end && *end != ',') ||
		    (f->bounds && f->bound[f->bounds] <= f->bound[f->bounds - 1]))
			return -EINVAL;
		f->bounds++;
		p = end + (*end == ',');
	}
	if (f->labels)
		return 0;
	struct metric *s = metric_new(f, NULL);
	if (!s)
		return -ENOMEM;
	family_publish(f, s);
	return 0;
}

int metrics_new(const struct metric_family *table, size_t n, struct metrics **ret)
{
	static const struct family plain;
	struct metrics *m = calloc(1, sizeof *m + n * sizeof m->family[0]);
	if (!m)
		return -ENOMEM;
	pthread_mutex_init(&m->lock, NULL);
	m->n = n;
	/* room for the buckets of any family */
	m->sink = calloc(1, sizeof *m->sink + BUCKETS_MAX * sizeof m->sink->bucket[0]);
	int r = m->sink ? 0 : -ENOMEM;
	if (r == 0)
		m->sink->family = &plain;
	for (size_t i = 0; i < n && r == 0; i++)
		r = family_init(&m->family[i], &table[i]);
	if (r < 0) {
		metrics_free(m);
		return r;
	}
	*ret = m;
	return 0;
}

void metrics_free(struct metrics *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->n; i++) {
		for (struct metric *s = atomic_load(&m->family[i].first), *next; s; s = next) {
			next = atomic_load(&s->next);
			metric_free(s);
		}
	}
	free(m->sink);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

static struct metric *family_find(const struct family *f, const char *const label[])
{
	struct metric *s = atomic_load_explicit(&f->first, memory_order_acquire);
	for (; s; s = atomic_load_explicit(&s->next, memory_order_acquire)) {
		bool same = true;
		for (unsigned i = 0; i < f->labels && same; i++)
			same = strcmp(s->label[i], label[i] ? label[i] : "") == 0;
		if (same)
			return s;
	}
	return NULL;
}

struct metric *metrics_get(struct metrics *m, int id, const char *v1, const char *v2)
{
	static const char *const other[LABELS_MAX] = {"other", "other"};
	struct family *f = &m->family[id];
	const char *label[LABELS_MAX] = {v1, v2};
	struct metric *s = family_find(f, label);
	if (s)
		return s;
	pthread_mutex_lock(&m->lock);
	s = family_find(f, label); /* made meanwhile? */
	if (!s && f->n >= SERIES_MAX) {
		s = family_find(f, other);
		label[0] = label[1] = "other";
	}
	if (!s && (s = metric_new(f, label)))
		family_publish(f, s);
	pthread_mutex_unlock(&m->lock);
	return s ? s : m->sink;
}

static void add_double(_Atomic uint64_t *bits, double v)
{
	uint64_t old = atomic_load_explicit(bits, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(bits, &old, bits_of(double_of(old) + v),
						      memory_order_relaxed, memory_order_relaxed))
		;
}

static bool is_gauge(const struct metric *s)
{
	return s->family->row && s->family->row->kind == METRIC_KIND_GAUGE;
}

void metric_add(struct metric *s, uint64_t n)
{
	if (is_gauge(s))
		add_double(&s->bits, (double)n);
	else
		atomic_fetch_add_explicit(&s->count, n, memory_order_relaxed);
}

void metric_add_alone(struct metric *s, uint64_t n)
{
	uint64_t count = atomic_load_explicit(&s->count, memory_order_relaxed);

	atomic_store_explicit(&s->count, count + n, memory_order_relaxed);
}

void metric_set(struct metric *s, double v)
{
	atomic_store_explicit(&s->bits, bits_of(v), memory_order_relaxed);
}

void metric_observe(struct metric *s, double v)
{
	const struct family *f = s->family;
	unsigned i = 0;
	while (i < f->bounds && v > f->bound[i])
		i++;
	if (i < f->bounds)
		atomic_fetch_add_explicit(&s->bucket[i], 1, memory_order_relaxed);
	add_double(&s->bits, v);
	atomic_fetch_add_explicit(&s->count, 1, memory_order_relaxed);
}

double metric_value(const struct metric *s)
{
	if (is_gauge(s))
		return double_of(atomic_load_explicit(&s->bits, memory_order_relaxed));
	return (double)atomic_load_explicit(&s->count, memory_order_relaxed);
}

/* ---- rendering ---- */

static int put_number(struct buf *out, double v)
{
	if (isnan(v))
		return buf_append_str(out, "NaN");
	if (isinf(v))
		return buf_append_str(out, v > 0 ? "+Inf" : "-Inf");
	return buf_appendf(out, "%.15g", v);
}

static int put_label(struct buf *out, const char *name, const char *value, bool first)
{
	int r = buf_appendf(out, "%s%s=\"", first ? "" : ",", name);
	for (const char *p = value; *p && r == 0; p++) {
		if (*p == '\\' || *p == '"')
			r = buf_appendf(out, "\\%c", *p);
		else if (*p == '\n')
			r = buf_append_str(out, "\\n");
		else
			r = buf_append_char(out, *p);
	}
	return r < 0 ? r : buf_append_char(out, '"');
}

/* name{labels,le="…"} and a blank; le NULL: none. */
static int put_series(struct buf *out, const struct metric *s, const char *suffix, const char *le)
{
	const struct family *f = s->family;
	int r = buf_appendf(out, "%s%s", f->row->name, suffix);
	if (r == 0 && (f->labels || le))
		r = buf_append_char(out, '{');
	for (unsigned i = 0; i < f->labels && r == 0; i++)
		r = put_label(out, f->label_name[i], s->label[i], i == 0);
	if (r == 0 && le)
		r = put_label(out, "le", le, f->labels == 0);
	if (r == 0 && (f->labels || le))
		r = buf_append_char(out, '}');
	return r < 0 ? r : buf_append_char(out, ' ');
}

static int put_histogram(struct buf *out, const struct metric *s)
{
	const struct family *f = s->family;
	/* the count is read first: buckets read later are never fewer than what it covers */
	uint64_t total = 0;
	int r = 0;
	for (unsigned i = 0; i < f->bounds && r == 0; i++) {
		char le[32];
		snprintf(le, sizeof le, "%.15g", f->bound[i]);
		total += atomic_load_explicit(&s->bucket[i], memory_order_relaxed);
		r = put_series(out, s, "_bucket", le);
		if (r == 0)
			r = buf_appendf(out, "%" PRIu64 "\n", total);
	}
	uint64_t count = atomic_load_explicit(&s->count, memory_order_relaxed);
	if (count < total)
		count = total; /* an observation in the making */
	if (r == 0)
		r = put_series(out, s, "_bucket", "+Inf");
	if (r == 0)
		r = buf_appendf(out, "%" PRIu64 "\n", count);
	if (r == 0)
		r = put_series(out, s, "_sum", NULL);
	if (r == 0)
		r = put_number(out,
			       double_of(atomic_load_explicit(&s->bits, memory_order_relaxed)));
	if (r == 0)
		r = buf_append_char(out, '\n');
	if (r == 0)
		r = put_series(out, s, "_count", NULL);
	return r < 0 ? r : buf_appendf(out, "%" PRIu64 "\n", count);
}

static int put_value(struct buf *out, const struct metric *s)
{
	if (s->family->row->kind == METRIC_KIND_HISTOGRAM)
		return put_histogram(out, s);
	int r = put_series(out, s, "", NULL);
	if (r == 0 && is_gauge(s))
		r = put_number(out, metric_value(s));
	else if (r == 0)
		r = buf_appendf(out, "%" PRIu64,
				atomic_load_explicit(&s->count, memory_order_relaxed));
	return r < 0 ? r : buf_append_char(out, '\n');
}

static const char *kind_word(enum metric_kind k)
{
	static const char *const word[] = {"counter", "gauge", "histogram"};
	return word[k];
}

static int put_head(struct buf *out, const char *name, const char *help, const char *kind)
{
	int r = buf_appendf(out, "# HELP %s ", name);
	for (const char *p = help; *p && r == 0; p++)
		r = *p == '\\'	 ? buf_append_str(out, "\\\\")
		    : *p == '\n' ? buf_append_str(out, "\\n")
				 : buf_append_char(out, *p);
	return r < 0 ? r : buf_appendf(out, "\n# TYPE %s %s\n", name, kind);
}

static int put_process_one(struct buf *out, const char *name, const char *help, const char *kind,
			   double v)
{
	int r = put_head(out, name, help, kind);
	if (r == 0)
		r = buf_appendf(out, "%s ", name);
	if (r == 0)
		r = put_number(out, v);
	return r < 0 ? r : buf_append_char(out, '\n');
}

/* Room in the table of open files: none has a number beyond it. */
static int fd_slots(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	int n = 0;

	while (f && fgets(line, sizeof line, f) && sscanf(line, "FDSize: %d", &n) != 1)
		;
	if (f)
		fclose(f);
	return n;
}

/* To read the folder takes 2 us for each: with 18,000 agents nobody else was served for so long at
 * every scrape. Linux 6.2 gives their number as its size; before, each number is asked about. */
static double open_fds(void)
{
	struct stat st;
	int n = 0;

	if (stat("/proc/self/fd", &st) == 0 && st.st_size > 0)
		return (double)st.st_size;
	for (int fd = fd_slots() - 1; fd >= 0; fd--)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Resident bytes, and the start in seconds since boot, from proc(5). */
static void read_proc(double *rss, double *start_s)
{
	char line[1024];
	*rss = *start_s = 0;
	FILE *f = fopen("/proc/self/stat", "re");
	if (!f)
		return;
	if (fgets(line, sizeof line, f)) {
		char *p =
		    strrchr(line, ')'); /* the name may hold anything; fields follow from 3 on */
		unsigned field = 2;
		for (; p && (p = strchr(p, ' ')); field++) {
			p++;
			if (field + 1 == 22)
				*start_s = strtod(p, NULL) / (double)sysconf(_SC_CLK_TCK);
			if (field + 1 == 24)
				*rss = strtod(p, NULL) * (double)sysconf(_SC_PAGESIZE);
		}
	}
	fclose(f);
}

static double boot_time_s(void)
{
	struct timespec wall, boot;
	clock_gettime(CLOCK_REALTIME, &wall);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	return (double)(wall.tv_sec - boot.tv_sec) + (double)(wall.tv_nsec - boot.tv_nsec) / 1e9;
}

static int put_process(struct buf *out)
{
	struct rusage use;
	struct rlimit files;
	double rss, start_s;
	getrusage(RUSAGE_SELF, &use);
	getrlimit(RLIMIT_NOFILE, &files);
	read_proc(&rss, &start_s);
	double cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
		     (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
	int r =
	    put_process_one(out, "process_resident_memory_bytes", "Resident memory.", "gauge", rss);
	if (r == 0)
		r = put_process_one(out, "process_open_fds", "Open file descriptors.", "gauge",
				    open_fds());
	if (r == 0)
		r = put_process_one(out, "process_max_fds", "Limit of open file descriptors.",
				    "gauge", (double)files.rlim_cur);
	if (r == 0)
		r = put_process_one(out, "process_cpu_seconds_total", "User and system CPU time.",
				    "counter", cpu);
	if (r == 0)
		r = put_process_one(out, "process_start_time_seconds", "Start, in Unix seconds.",
				    "gauge", boot_time_s() + start_s);
	return r;
}

int metrics_render(const struct metrics *m, struct buf *out)
{
	int r = 0;
	for (size_t i = 0; i < m->n && r == 0; i++) {
		const struct family *f = &m->family[i];
		r = put_head(out, f->row->name, f->row->help, kind_word(f->row->kind));
		struct metric *s = atomic_load_explicit(&f->first, memory_order_acquire);
		for (; s && r == 0; s = atomic_load_explicit(&s->next, memory_order_acquire))
			r = put_value(out, s);
	}
	return r < 0 ? r : put_process(out);
}

int metrics_markdown(const struct metric_family *table, size_t n, struct buf *out)
{
	int r = buf_append_str(out, "| metric | kind | labels | meaning |\n|---|---|---|---|\n");
	for (size_t i = 0; i < n && r == 0; i++)
		r = buf_appendf(out, "| `%s` | %s | %s%s%s | %s |\n", table[i].name,
				kind_word(table[i].kind), table[i].labels ? "`" : "",
				table[i].labels ? table[i].labels : "", table[i].labels ? "`" : "",
				table[i].help);
	return r;
}
