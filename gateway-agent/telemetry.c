/* Figures of the host for TELEMETRY. See telemetry.h. */
#include "telemetry.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

const struct telemetry_paths telemetry_host = {
    .proc = "/proc", .cgroup = "/sys/fs/cgroup", .disk = "/"};

/* ---- small files of the kernel ---- */

/* Whole file into text (NUL-terminated, cut at cap); -errno. */
static int slurp(const char *dir, const char *file, char *text, size_t cap)
{
	char path[512];
	size_t n;
	FILE *f;

	if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, file) >= sizeof path)
		return -ENAMETOOLONG;
	f = fopen(path, "re");
	if (!f)
		return -errno;
	n = fread(text, 1, cap - 1, f);
	text[n] = '\0';
	(void)fclose(f);
	return 0;
}

int telemetry_read_cpu(const struct telemetry_paths *p, struct telemetry_cpu *ret)
{
	uint64_t v[8] = {0};
	char text[512];
	int r = slurp(p->proc, "stat", text, sizeof text);
	size_t i;

	if (r < 0)
		return r;
	/* user nice system idle iowait irq softirq steal (proc(5)) */
	if (sscanf(text,
		   "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
		   " %" SCNu64 " %" SCNu64,
		   &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]) < 4)
		return -EBADMSG;
	*ret = (struct telemetry_cpu){0};
	for (i = 0; i < 8; i++)
		ret->total += v[i];
	ret->busy = ret->total - v[3] - v[4];
	return 0;
}

static bool meminfo_kib(const char *text, const char *name, uint64_t *ret)
{
	const char *s = text;
	size_t n = strlen(name);

	for (; s && *s; s = strchr(s, '\n'), s = s ? s + 1 : NULL) {
		if (strncmp(s, name, n) == 0 && s[n] == ':') {
			*ret = strtoull(s + n + 1, NULL, 10);
			return true;
		}
	}
	return false;
}

static void put_memory(const struct telemetry_paths *p, struct jsonw *w)
{
	uint64_t total, available;
	char text[4096];

	if (slurp(p->proc, "meminfo", text, sizeof text) < 0 ||
	    !meminfo_kib(text, "MemTotal", &total) ||
	    !meminfo_kib(text, "MemAvailable", &available) || total == 0)
		return;
	if (available > total)
		available = total;
	jsonw_num(w, "mem_pct", 100.0 * (double)(total - available) / (double)total);
	jsonw_uint(w, "mem_total_bytes", total * 1024);
	jsonw_uint(w, "mem_available_bytes", available * 1024);
}

static void put_disk(const struct telemetry_paths *p, struct jsonw *w)
{
	struct statvfs s;
	uint64_t used, usable;

	if (statvfs(p->disk, &s) < 0 || s.f_blocks == 0)
		return;
	used = s.f_blocks - s.f_bfree;
	usable = used + s.f_bavail; /* as df: what root keeps back does not count */
	jsonw_num(w, "disk_pct", usable ? 100.0 * (double)used / (double)usable : 0);
	jsonw_uint(w, "disk_total_bytes", s.f_blocks * s.f_frsize);
	jsonw_uint(w, "disk_free_bytes", s.f_bavail * s.f_frsize);
}

static void put_load(const struct telemetry_paths *p, struct jsonw *w)
{
	double l1, l5, l15, up;
	char text[256];

	if (slurp(p->proc, "loadavg", text, sizeof text) == 0 &&
	    sscanf(text, "%lf %lf %lf", &l1, &l5, &l15) == 3) {
		jsonw_num(w, "load1", l1);
		jsonw_num(w, "load5", l5);
		jsonw_num(w, "load15", l15);
	}
	if (slurp(p->proc, "uptime", text, sizeof text) == 0 && sscanf(text, "%lf", &up) == 1)
		jsonw_uint(w, "uptime_s", (uint64_t)up);
}

static void put_cpu(const struct telemetry_paths *p, struct telemetry_cpu *last, struct jsonw *w)
{
	struct telemetry_cpu now;

	if (telemetry_read_cpu(p, &now) < 0)
		return;
	if (now.total > last->total && now.busy >= last->busy)
		jsonw_num(w, "cpu_pct",
			  100.0 * (double)(now.busy - last->busy) /
			      (double)(now.total - last->total));
	*last = now;
}

/* ---- cgroup ---- */

/* The path of this process in the hierarchy: "0::" for v2, the controller's for v1. */
static bool cgroup_path(const char *text, const char *controller, char *out, size_t cap)
{
	const char *s = text;

	for (; s && *s; s = strchr(s, '\n'), s = s ? s + 1 : NULL) {
		const char *names = strchr(s, ':'), *path, *end;
		char list[256];

		if (!names)
			return false;
		path = strchr(++names, ':');
		if (!path)
			return false;
		(void)snprintf(list, sizeof list, ",%.*s,", (int)(path - names), names);
		if (*controller ? !strstr(list, controller) : path != names)
			continue;
		path++;
		end = strchrnul(path, '\n');
		return (size_t)snprintf(out, cap, "%.*s", (int)(end - path), path) < cap;
	}
	return false;
}

/* From the own group up to the root, as far as they can be seen: inside a container the own path
 * often is not mounted, and the root is the own group. */
struct cgroup_walk {
	const char *root, *sub;
	char path[384];
	bool done;
};

static struct cgroup_walk cgroup_from(const char *root, const char *sub, const char *path)
{
	struct cgroup_walk w = {.root = root, .sub = sub};

	/* "/../…" is a group outside of the namespace */
	if (!strstr(path, "/.."))
		(void)snprintf(w.path, sizeof w.path, "%s", strcmp(path, "/") == 0 ? "" : path);
	return w;
}

static void cgroup_up(struct cgroup_walk *w)
{
	char *slash = strrchr(w->path, '/');

	w->done = !slash;
	if (slash)
		*slash = '\0';
}

static bool cgroup_read(const struct cgroup_walk *w, const char *file, char *text, size_t cap)
{
	char dir[512];

	return (size_t)snprintf(dir, sizeof dir, "%s%s%s", w->root, w->sub, w->path) < sizeof dir &&
	       slurp(dir, file, text, cap) == 0;
}

static uint64_t cgroup_bytes(const char *text)
{
	char *end;
	unsigned long long v = strtoull(text, &end, 10);

	return end == text || v >= 1ULL << 60 ? 0 : v; /* "max", or v1's huge number */
}

/* A limit holds for all groups below. */
static void least_bytes(uint64_t *into, uint64_t v)
{
	if (v && (!*into || v < *into))
		*into = v;
}

static void least_cores(double *into, double quota, double period)
{
	if (quota > 0 && period > 0 && (*into <= 0 || quota / period < *into))
		*into = quota / period;
}

static void read_memory(struct cgroup_walk w, const char *limit, const char *used,
			struct telemetry_cgroup *g)
{
	char text[128];

	for (; !w.done; cgroup_up(&w)) {
		if (cgroup_read(&w, limit, text, sizeof text))
			least_bytes(&g->memory_limit_bytes, cgroup_bytes(text));
		if (!g->memory_used_bytes && cgroup_read(&w, used, text, sizeof text))
			g->memory_used_bytes = cgroup_bytes(text);
	}
}

static void read_v2(const struct telemetry_paths *p, const char *path, struct telemetry_cgroup *g)
{
	unsigned long long quota, period;
	char text[128];

	g->version = 2;
	read_memory(cgroup_from(p->cgroup, "", path), "memory.max", "memory.current", g);
	for (struct cgroup_walk w = cgroup_from(p->cgroup, "", path); !w.done; cgroup_up(&w)) {
		if (cgroup_read(&w, "cpu.max", text, sizeof text) &&
		    sscanf(text, "%llu %llu", &quota, &period) == 2)
			least_cores(&g->cpu_limit_cores, (double)quota, (double)period);
	}
}

static void read_v1(const struct telemetry_paths *p, const char *mem, const char *cpu,
		    struct telemetry_cgroup *g)
{
	char quota[128], period[128];

	g->version = 1;
	read_memory(cgroup_from(p->cgroup, "/memory", mem), "memory.limit_in_bytes",
		    "memory.usage_in_bytes", g);
	for (struct cgroup_walk w = cgroup_from(p->cgroup, "/cpu", cpu); !w.done; cgroup_up(&w)) {
		if (cgroup_read(&w, "cpu.cfs_quota_us", quota, sizeof quota) &&
		    cgroup_read(&w, "cpu.cfs_period_us", period, sizeof period))
			least_cores(&g->cpu_limit_cores, strtod(quota, NULL), strtod(period, NULL));
	}
}

void telemetry_read_cgroup(const struct telemetry_paths *p, struct telemetry_cgroup *ret)
{
	char text[4096], mem[384], cpu[384];

	*ret = (struct telemetry_cgroup){0};
	if (slurp(p->proc, "self/cgroup", text, sizeof text) < 0)
		return;
	if (cgroup_path(text, ",memory,", mem, sizeof mem)) {
		if (!cgroup_path(text, ",cpu,", cpu, sizeof cpu))
			cpu[0] = '\0';
		read_v1(p, mem, cpu, ret);
	} else if (cgroup_path(text, "", mem, sizeof mem)) {
		read_v2(p, mem, ret);
	}
}

/* ---- services: setting is name or name=unit, CSV ---- */

static bool next_service(const char **s, struct span *name, struct span *unit)
{
	const char *eq;
	size_t n;

	*s += strspn(*s, ", \t");
	n = strcspn(*s, ", \t");
	if (n == 0)
		return false;
	eq = memchr(*s, '=', n);
	*name = (struct span){*s, eq ? (size_t)(eq - *s) : n};
	*unit = eq ? (struct span){eq + 1, n - (size_t)(eq - *s) - 1} : *name;
	*s += n;
	return true;
}

int telemetry_units(const char *services, struct buf *out)
{
	struct span name, unit;
	const char *s = services ? services : "";
	int r = 0;

	while (r == 0 && next_service(&s, &name, &unit)) {
		if (out->len)
			r = buf_append_char(out, ',');
		if (r == 0)
			r = buf_append(out, unit.p, unit.n);
		if (r == 0 && !memchr(unit.p, '.', unit.n))
			r = buf_append_str(out, ".service");
	}
	return r;
}

/* The state the helper gave for this unit, under either spelling. */
static struct span state_of(struct span states, struct span unit)
{
	struct json_member m;
	char name[300];

	if (states.p && (size_t)snprintf(name, sizeof name, SPAN_FMT ".service", SPAN_ARG(unit)) <
			    sizeof name) {
		if (json_find(states, name, &m) && m.type == JSON_T_STR)
			return m.raw;
		name[unit.n] = '\0';
		if (json_find(states, name, &m) && m.type == JSON_T_STR)
			return m.raw;
	}
	return SPAN("unknown");
}

static void put_services(struct jsonw *w, const char *services, struct span states)
{
	struct span name, unit, state;
	const char *s = services ? services : "";
	char key[256];

	jsonw_obj(w, "services");
	while (next_service(&s, &name, &unit)) {
		if (span_copy(name, key, sizeof key) < 0)
			continue;
		state = state_of(states, unit);
		jsonw_strn(w, key, state.p, state.n);
	}
	jsonw_obj_end(w);
}

/* ---- all together ---- */

static uint64_t own_rss(void)
{
	unsigned long long size, resident;
	char text[128];

	if (slurp("/proc/self", "statm", text, sizeof text) < 0 ||
	    sscanf(text, "%llu %llu", &size, &resident) != 2)
		return 0;
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void put_days(struct jsonw *w, const char *key, int64_t days)
{
	if (days != INT64_MIN)
		jsonw_int(w, key, days);
}

static void put_self(const struct telemetry_paths *p, const struct telemetry_self *self,
		     struct jsonw *w)
{
	struct telemetry_cgroup g;

	jsonw_str(w, "helper", self->helper_up ? "up" : "down");
	jsonw_obj(w, "agent");
	jsonw_str(w, "version", self->version);
	jsonw_uint(w, "rss_bytes", own_rss());
	jsonw_uint(w, "uptime_s", self->uptime_s);
	jsonw_uint(w, "reconnects", self->reconnects);
	jsonw_uint(w, "commands_held", self->held);
	jsonw_uint(w, "results_waiting", self->results_waiting);
	jsonw_obj_end(w);
	jsonw_obj(w, "cert_days_left");
	put_days(w, "client", self->cert_days);
	put_days(w, "trust_bundle", self->bundle_days);
	put_days(w, "backend", self->backend_days);
	jsonw_obj_end(w);
	if (self->tls.p)
		jsonw_raw(w, "tls", self->tls.p, self->tls.n);
	telemetry_read_cgroup(p, &g);
	if (g.memory_limit_bytes || g.cpu_limit_cores > 0) {
		jsonw_obj(w, "agent_cgroup");
		jsonw_int(w, "version", g.version);
		if (g.memory_limit_bytes)
			jsonw_uint(w, "memory_limit_bytes", g.memory_limit_bytes);
		jsonw_uint(w, "memory_used_bytes", g.memory_used_bytes);
		if (g.cpu_limit_cores > 0)
			jsonw_num(w, "cpu_limit_cores", g.cpu_limit_cores);
		jsonw_obj_end(w);
	}
	if (self->gap_frames) {
		jsonw_obj(w, "telemetry_gap");
		jsonw_uint(w, "frames", self->gap_frames);
		jsonw_uint(w, "first_seq", self->gap_first_seq);
		jsonw_uint(w, "last_seq", self->gap_last_seq);
		jsonw_obj_end(w);
	}
}

/* Members the agent writes itself, whatever the helper says. */
static bool is_own_key(struct span key)
{
	static const char *const own[] = {"helper",	  "agent",	   "cert_days_left", "tls",
					  "agent_cgroup", "telemetry_gap", "services"};
	size_t i;

	for (i = 0; i < ARRAY_LEN(own); i++) {
		if (span_eq(key, own[i]))
			return true;
	}
	return false;
}

static void put_helper_data(struct jsonw *w, struct span data, const char *services,
			    bool containers)
{
	struct json_iter it;
	struct json_member m, states = {0};
	char key[128];

	json_iter_init(&it, data);
	while (json_iter_next(&it, &m)) {
		if (is_own_key(m.key) || span_copy(m.key, key, sizeof key) < 0 || strchr(key, '\\'))
			continue;
		if (!containers && strcmp(key, "containers") == 0) {
			jsonw_bool(w, "containers_left_out", true);
		} else if (m.type == JSON_T_STR) {
			/* raw excludes the quotes around it */
			jsonw_raw(w, key, m.raw.p - 1, m.raw.n + 2);
		} else {
			jsonw_raw(w, key, m.raw.p, m.raw.n);
		}
	}
	if (!json_find(data, "services", &states) || states.type != JSON_T_OBJ)
		states.raw.p = NULL;
	put_services(w, services, states.raw);
}

static int compose(const struct telemetry_paths *p, struct span helper_data, const char *services,
		   const struct telemetry_self *self, struct telemetry_cpu *cpu, bool containers,
		   struct buf *out)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	if (helper_data.p) {
		put_helper_data(&w, helper_data, services, containers);
		(void)!telemetry_read_cpu(p, cpu);
	} else {
		put_cpu(p, cpu, &w);
		put_memory(p, &w);
		put_disk(p, &w);
		put_load(p, &w);
		put_services(&w, services, (struct span){0});
	}
	put_self(p, self, &w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

int telemetry_compose(const struct telemetry_paths *p, struct span helper_data,
		      const char *services, const struct telemetry_self *self,
		      struct telemetry_cpu *cpu, struct buf *out)
{
	size_t was = out->len;
	int r = compose(p, helper_data, services, self, cpu, true, out);

	if (r != -ENOBUFS || !helper_data.p)
		return r;
	out->len = was;
	return compose(p, helper_data, services, self, cpu, false, out);
}
