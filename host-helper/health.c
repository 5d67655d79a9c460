/* get_system_health and the figures of get_monitoring_data. */
#include "health.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static int read_text(const char *path, char *out, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, out, cap - 1);
	int r = n < 0 ? -errno : 0;
	close(fd);
	out[n < 0 ? 0 : n] = 0;
	return r;
}

/* proc(5): user nice system idle iowait irq softirq steal; guest is within user. */
int health_cpu_sample(struct cpu_sample *ret)
{
	unsigned long long v[8];
	char text[512];

	int r = read_text("/proc/stat", text, sizeof text);
	if (r < 0)
		return r;
	if (sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3],
		   &v[4], &v[5], &v[6], &v[7]) != 8)
		return -EBADMSG;
	*ret = (struct cpu_sample){0};
	for (int i = 0; i < 8; i++)
		ret->total += v[i];
	ret->busy = ret->total - v[3] - v[4];
	return 0;
}

double health_cpu_pct(const struct cpu_sample *before)
{
	struct cpu_sample a = *before, b;

	/* Ticks are 10 ms: below 20 of them a percentage says nothing. */
	for (int tries = 0; tries < 3; tries++) {
		if (health_cpu_sample(&b) < 0)
			return 0;
		if (a.total != 0 && b.total - a.total >= 20)
			break;
		if (a.total == 0)
			a = b;
		nanosleep(&(struct timespec){.tv_nsec = 120000000}, NULL);
	}
	uint64_t total = b.total - a.total, busy = b.busy - a.busy;
	return total == 0 || busy > total ? 0 : 100.0 * (double)busy / (double)total;
}

static uint64_t meminfo(const char *text, const char *key)
{
	const char *p = strstr(text, key);
	unsigned long long kib = 0;

	if (!p || sscanf(p + strlen(key), " %llu kB", &kib) != 1)
		return 0;
	return (uint64_t)kib * 1024;
}

static int read_memory(struct health *h)
{
	char text[4096];

	int r = read_text("/proc/meminfo", text, sizeof text);
	if (r < 0)
		return r;
	h->mem_total = meminfo(text, "MemTotal:");
	h->mem_available = meminfo(text, "MemAvailable:");
	if (h->mem_total == 0)
		return -EBADMSG;
	h->mem_pct = 100.0 * (1.0 - (double)h->mem_available / (double)h->mem_total);
	return 0;
}

/* As df(1): used of what an unprivileged user could use. */
static int read_disk(struct health *h)
{
	struct statvfs st;

	if (statvfs("/", &st) < 0)
		return -errno;
	uint64_t used = st.f_blocks - st.f_bfree, usable = used + st.f_bavail;
	h->disk_total = (uint64_t)st.f_blocks * st.f_frsize;
	h->disk_free = (uint64_t)st.f_bavail * st.f_frsize;
	h->disk_pct = usable ? 100.0 * (double)used / (double)usable : 0;
	return 0;
}

int health_read(const struct cpu_sample *before, struct health *ret)
{
	struct health h = {.cpus = sysconf(_SC_NPROCESSORS_ONLN)};
	char text[256];
	double uptime;

	int r = read_memory(&h);
	if (r == 0)
		r = read_disk(&h);
	if (r == 0)
		r = read_text("/proc/loadavg", text, sizeof text);
	if (r == 0 && sscanf(text, "%lf %lf %lf", &h.load1, &h.load5, &h.load15) != 3)
		r = -EBADMSG;
	if (r == 0)
		r = read_text("/proc/uptime", text, sizeof text);
	if (r == 0 && sscanf(text, "%lf", &uptime) != 1)
		r = -EBADMSG;
	if (r < 0)
		return r;
	h.uptime_s = (int64_t)uptime;
	h.cpu_pct = health_cpu_pct(before);
	*ret = h;
	return 0;
}

void health_write(const struct health *h, struct jsonw *w)
{
	jsonw_num(w, "cpu_pct", h->cpu_pct);
	jsonw_num(w, "mem_pct", h->mem_pct);
	jsonw_num(w, "disk_pct", h->disk_pct);
	jsonw_uint(w, "mem_total_bytes", h->mem_total);
	jsonw_uint(w, "mem_available_bytes", h->mem_available);
	jsonw_uint(w, "disk_total_bytes", h->disk_total);
	jsonw_uint(w, "disk_free_bytes", h->disk_free);
	jsonw_num(w, "load1", h->load1);
	jsonw_num(w, "load5", h->load5);
	jsonw_num(w, "load15", h->load15);
	jsonw_int(w, "uptime_s", h->uptime_s);
}

struct rule {
	const char *what;
	double value, warn, critical;
};

/* The worst rule gives the verdict; every one that fired is named. */
static void write_verdict(const struct health *h, struct jsonw *w)
{
	const struct rule rules[] = {
	    {"cpu_pct", h->cpu_pct, 90, 98},
	    {"mem_pct", h->mem_pct, 90, 97},
	    {"disk_pct", h->disk_pct, 85, 95},
	    {"load5_per_cpu", h->cpus > 0 ? h->load5 / (double)h->cpus : 0, 2, 8},
	};
	int worst = 0;
	char text[64];

	jsonw_arr(w, "reasons");
	for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
		int level =
		    (rules[i].value >= rules[i].warn) + (rules[i].value >= rules[i].critical);
		worst = level > worst ? level : worst;
		snprintf(text, sizeof text, "%s is %.1f", rules[i].what, rules[i].value);
		if (level)
			jsonw_str(w, NULL, text);
	}
	jsonw_arr_end(w);
	jsonw_str(w, "status", worst == 0 ? "ok" : worst == 1 ? "warn" : "critical");
}

int health_answer(const struct cpu_sample *before, struct jsonw *w)
{
	struct health h;

	int r = health_read(before, &h);
	if (r < 0)
		return r;
	health_write(&h, w);
	jsonw_int(w, "cpus", h.cpus);
	write_verdict(&h, w);
	return 0;
}
