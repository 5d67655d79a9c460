/* Figures from given /proc and cgroup trees: v1, v2, container, none; services; the helper's data.
 */
#include "unit.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "telemetry.h"

static char dir[64], proc[96], cgroup[96];
static struct telemetry_paths paths = {.proc = proc, .cgroup = cgroup, .disk = "/"};

static void put(const char *name, const char *text)
{
	char path[512], *slash;
	int fd;

	(void)snprintf(path, sizeof path, "%s/%s", dir, name);
	for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		(void)mkdir(path, 0755);
		*slash = '/';
	}
	fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static int setup(void **state)
{
	(void)state;
	(void)strncpy(dir, "/tmp/viw-telemetry-XXXXXX", sizeof dir - 1);
	assert_non_null(mkdtemp(dir));
	(void)snprintf(proc, sizeof proc, "%s/proc", dir);
	(void)snprintf(cgroup, sizeof cgroup, "%s/cg", dir);
	put("proc/stat", "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\n");
	put("proc/meminfo", "MemTotal:        1000 kB\nMemFree: 1 kB\nMemAvailable:     250 kB\n");
	put("proc/loadavg", "0.50 1.25 2.00 1/100 4242\n");
	put("proc/uptime", "12345.67 1.00\n");
	return 0;
}

static int teardown(void **state)
{
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		execl("/bin/rm", "rm", "-rf", dir, (char *)NULL);
		_exit(127);
	}
	return waitpid(pid, NULL, 0) == pid ? 0 : -1;
}

static char text[65536];

static const char *compose_at_most(size_t bytes, struct span helper, const char *services,
				   struct telemetry_cpu *cpu)
{
	struct telemetry_self self = {.version = "1",
				      .helper_up = helper.p != NULL,
				      .reconnects = 4,
				      .cert_days = 12,
				      .bundle_days = INT64_MIN,
				      .backend_days = -2,
				      .tls = {"{\"pins\":[]}", 11},
				      .gap_frames = 3,
				      .gap_first_seq = 7,
				      .gap_last_seq = 9};
	struct json_fault fault;
	struct buf b;

	buf_init(&b, bytes);
	assert_ok(telemetry_compose(&paths, helper, services, &self, cpu, &b));
	assert_ok(json_validate(b.data, b.len, 16, &fault));
	memcpy(text, b.data, b.len + 1);
	buf_fini(&b);
	return text;
}

static const char *compose(struct span helper, const char *services, struct telemetry_cpu *cpu)
{
	return compose_at_most(sizeof text - 1, helper, services, cpu);
}

static void has(const char *json, const char *part)
{
	if (!strstr(json, part))
		fail_msg("%s is not in %s", part, json);
}

static void test_telemetry_own_figures(void **state)
{
	struct telemetry_cpu cpu = {.busy = 150, .total = 900};
	const char *json;

	(void)state;
	json = compose((struct span){0}, "ssh,redis=redis-server", &cpu);
	has(json, "\"cpu_pct\":50,"); /* 50 of 100 ticks */
	has(json, "\"mem_pct\":75,\"mem_total_bytes\":1024000,\"mem_available_bytes\":256000");
	has(json, "\"load1\":0.5,\"load5\":1.25,\"load15\":2");
	has(json, "\"uptime_s\":12345");
	has(json, "\"services\":{\"ssh\":\"unknown\",\"redis\":\"unknown\"}");
	has(json, "\"helper\":\"down\"");
	has(json, "\"reconnects\":4");
	has(json, "\"cert_days_left\":{\"client\":12,\"backend\":-2}");
	has(json, "\"tls\":{\"pins\":[]}");
	has(json, "\"telemetry_gap\":{\"frames\":3,\"first_seq\":7,\"last_seq\":9}");
	assert_int_equal(cpu.total, 1000);
	/* no tick since: no figure rather than a wrong one */
	assert_null(strstr(compose((struct span){0}, "", &cpu), "cpu_pct"));
}

static void test_telemetry_helper_figures_win(void **state)
{
	struct telemetry_cpu cpu = {0};
	const char *json = compose(
	    SPAN("{\"cpu_pct\":7,\"mem_pct\":8,\"containers_running\":1,\"containers\":[{\"id\":"
		 "\"a\","
		 "\"name\":\"n\",\"image\":\"i\",\"state\":\"running\"}],\"note\":\"x \\\"y\\\"\","
		 "\"helper\":\"lies\",\"services\":{\"ssh.service\":\"running\",\"redis-server\":"
		 "\"failed\",\"other\":\"running\"}}"),
	    "ssh,redis=redis-server,none", &cpu);

	(void)state;
	has(json,
	    "{\"cpu_pct\":7,\"mem_pct\":8,\"containers_running\":1,\"containers\":[{\"id\":\"a\"");
	has(json, "\"note\":\"x \\\"y\\\"\"");
	has(json, "\"services\":{\"ssh\":\"running\",\"redis\":\"failed\",\"none\":\"unknown\"}");
	has(json, "\"helper\":\"up\"");
	assert_null(strstr(json, "lies"));
}

/* A host with more containers than fit a frame still tells everything else. */
static void test_telemetry_too_many_containers_are_left_out(void **state)
{
	static char data[8192];
	struct telemetry_cpu cpu = {0};
	const char *json;
	size_t n = 0;
	int i;

	(void)state;
	n += (size_t)snprintf(data, sizeof data,
			      "{\"cpu_pct\":7,\"containers_running\":100,\"containers\":[");
	for (i = 0; i < 100; i++)
		n += (size_t)snprintf(data + n, sizeof data - n,
				      "%s{\"id\":\"0123456789ab\",\"name\":\"n%d\"}", i ? "," : "",
				      i);
	n += (size_t)snprintf(data + n, sizeof data - n, "],\"mem_pct\":8}");
	json = compose_at_most(2000, (struct span){data, n}, "ssh", &cpu);
	has(json, "{\"cpu_pct\":7,\"containers_running\":100,\"containers_left_out\":true,\"mem_"
		  "pct\":8,");
	has(json, "\"helper\":\"up\"");
	assert_null(strstr(json, "0123456789ab"));
	assert_non_null(strstr(compose((struct span){data, n}, "ssh", &cpu), "n99"));
}

static void test_telemetry_missing_files_are_left_out(void **state)
{
	struct telemetry_paths none = {
	    .proc = "/nonexistent", .cgroup = "/nonexistent", .disk = "/nonexistent"};
	struct telemetry_self self = {.version = "1",
				      .cert_days = INT64_MIN,
				      .bundle_days = INT64_MIN,
				      .backend_days = INT64_MIN};
	struct telemetry_cpu cpu = {0};
	struct buf b;

	(void)state;
	buf_init(&b, 65536);
	assert_ok(telemetry_compose(&none, (struct span){0}, NULL, &self, &cpu, &b));
	assert_null(strstr(b.data, "mem_pct"));
	has(b.data, "\"helper\":\"down\"");
	buf_fini(&b);
}

static struct telemetry_cgroup read_group(void)
{
	struct telemetry_cgroup g;

	telemetry_read_cgroup(&paths, &g);
	return g;
}

static void test_telemetry_cgroup_v2(void **state)
{
	struct telemetry_cgroup g;

	(void)state;
	put("proc/self/cgroup", "0::/system.slice/agent.service\n");
	put("cg/system.slice/agent.service/memory.max", "67108864\n");
	put("cg/system.slice/agent.service/memory.current", "5000000\n");
	put("cg/system.slice/agent.service/cpu.max", "50000 100000\n");
	g = read_group();
	assert_int_equal(g.version, 2);
	assert_int_equal(g.memory_limit_bytes, 67108864);
	assert_int_equal(g.memory_used_bytes, 5000000);
	assert_true(g.cpu_limit_cores > 0.49 && g.cpu_limit_cores < 0.51);
	put("cg/system.slice/agent.service/memory.max", "max\n");
	put("cg/system.slice/agent.service/cpu.max", "max 100000\n");
	g = read_group();
	assert_int_equal(g.memory_limit_bytes, 0);
	assert_true(g.cpu_limit_cores == 0);
}

/* The least on the way up holds; under a real kernel: tests/integration/test_02_agent_cgroups.py.
 */
static void test_telemetry_cgroup_limits_above(void **state)
{
	struct telemetry_cgroup g;

	(void)state;
	put("proc/self/cgroup", "0::/a.slice/b.service\n");
	put("cg/a.slice/memory.max", "50000000\n");
	put("cg/a.slice/b.service/memory.max", "max\n");
	put("cg/a.slice/cpu.max", "200000 100000\n");
	put("cg/a.slice/b.service/cpu.max", "25000 100000\n");
	g = read_group();
	assert_int_equal(g.memory_limit_bytes, 50000000);
	assert_true(g.cpu_limit_cores > 0.24 && g.cpu_limit_cores < 0.26);
	put("proc/self/cgroup", "2:cpu:/pod/c\n9:memory:/pod/c\n");
	put("cg/memory/pod/memory.limit_in_bytes", "30000000\n");
	put("cg/memory/pod/c/memory.limit_in_bytes", "40000000\n");
	put("cg/memory/pod/memory.usage_in_bytes", "2000\n");
	put("cg/memory/pod/c/memory.usage_in_bytes", "1000\n");
	put("cg/cpu/pod/cpu.cfs_quota_us", "300000\n");
	put("cg/cpu/pod/cpu.cfs_period_us", "100000\n");
	put("cg/cpu/pod/c/cpu.cfs_quota_us", "-1\n");
	put("cg/cpu/pod/c/cpu.cfs_period_us", "100000\n");
	g = read_group();
	assert_int_equal(g.memory_limit_bytes, 30000000);
	assert_int_equal(g.memory_used_bytes, 1000);
	assert_true(g.cpu_limit_cores > 2.99 && g.cpu_limit_cores < 3.01);
}

/* In a container with a cgroup namespace the path is / or one that is not mounted here. */
static void test_telemetry_cgroup_v2_in_a_container(void **state)
{
	struct telemetry_cgroup g;

	(void)state;
	put("proc/self/cgroup", "0::/../../libpod-1234/container\n");
	put("cg/memory.max", "33554432\n");
	g = read_group();
	assert_int_equal(g.memory_limit_bytes, 33554432);
}

static void test_telemetry_cgroup_v1_and_hybrid(void **state)
{
	struct telemetry_cgroup g;

	(void)state;
	put("proc/self/cgroup",
	    "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/x\n");
	put("cg/memory/memory.limit_in_bytes", "16777216\n"); /* the container's own mount */
	put("cg/memory/memory.usage_in_bytes", "1000\n");
	put("cg/cpu/docker/abc/cpu.cfs_quota_us", "200000\n");
	put("cg/cpu/docker/abc/cpu.cfs_period_us", "100000\n");
	g = read_group();
	assert_int_equal(g.version, 1);
	assert_int_equal(g.memory_limit_bytes, 16777216);
	assert_int_equal(g.memory_used_bytes, 1000);
	assert_true(g.cpu_limit_cores > 1.99 && g.cpu_limit_cores < 2.01);
	put("cg/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* v1's "none" */
	put("cg/cpu/docker/abc/cpu.cfs_quota_us", "-1\n");
	g = read_group();
	assert_int_equal(g.memory_limit_bytes, 0);
	assert_true(g.cpu_limit_cores == 0);
}

static void test_telemetry_units(void **state)
{
	struct buf b;

	(void)state;
	buf_init(&b, 1000);
	assert_ok(telemetry_units(" ssh, redis=redis-server ,t=x.timer,", &b));
	assert_string_equal(b.data, "ssh.service,redis-server.service,x.timer");
	buf_fini(&b);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_telemetry_own_figures),
	    T(test_telemetry_helper_figures_win),
	    T(test_telemetry_too_many_containers_are_left_out),
	    T(test_telemetry_missing_files_are_left_out),
	    T(test_telemetry_cgroup_v2),
	    T(test_telemetry_cgroup_limits_above),
	    T(test_telemetry_cgroup_v2_in_a_container),
	    T(test_telemetry_cgroup_v1_and_hybrid),
	    T(test_telemetry_units),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
