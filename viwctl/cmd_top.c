/* viwctl top: gateways, lag and rates, redrawn every two seconds. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/program.h"
#include "streams_info.h"

#define EVERY_MS 2000
#define FIRST_MS 500 /* between the two looks that give the first rates */

static const struct pg_stmt counts_stmt = {
    "viwctl_counts",
    "select (select count(*) from os_gateways where status = 'online'), "
    "(select count(*) from os_gateways where status = 'offline'), "
    "(select count(*) from agent_commands where status in ('queued', 'offered', 'accepted')), "
    "(select count(*) from agent_commands where completed_at > now() - interval '60 seconds'), "
    "(select count(*) from agent_commands where completed_at > now() - interval '60 seconds' "
    "and status <> 'done'), (select count(*) from dead_letters)"};

static const struct col busy_cols[] = {
    {"agent_id", COL_TEXT}, {"status", COL_TEXT}, {"site", COL_TEXT},
    {"cpu_pct", COL_NUM},   {"mem_pct", COL_NUM}, {"disk_pct", COL_NUM},
    {"load1", COL_NUM},	    {"seen_s", COL_NUM},  {"open", COL_NUM},
};
static const struct pg_stmt busy_stmt = {
    "viwctl_busy",
    "select g.agent_id, g.status, g.site, round(s.cpu_pct::numeric, 1), round(s.mem_pct::numeric, "
    "1), "
    "round(s.disk_pct::numeric, 1), round(s.load1::numeric, 2), "
    "extract(epoch from now() - g.last_seen)::bigint, "
    "(select nullif(count(*), 0) from agent_commands c where c.agent_id = g.agent_id "
    "and c.status in ('queued', 'offered', 'accepted')) "
    "from os_gateways g left join os_gateway_status s using (agent_id) "
    "where g.status <> 'decommissioned' order by s.cpu_pct desc nulls last, g.agent_id limit 20"};

#define GROUPS_MAX 16

/* One look at everything; the one before it gives the rates. */
struct look {
	int64_t at_ms;
	size_t groups;
	struct group_state group[GROUPS_MAX];
	struct pg_rows *counts, *busy;
};

static void look_fini(struct look *l)
{
	pg_rows_free(l->counts);
	pg_rows_free(l->busy);
	*l = (struct look){0};
}

static int look_groups(struct ctl *c, struct look *l)
{
	l->at_ms = clock_boot_ms();
	l->groups = 0;
	for (const struct stream_group *g = stream_groups; g->stream && l->groups < GROUPS_MAX;
	     g++) {
		if (group_look(c, g, &l->group[l->groups++]) < 0)
			return CTL_UNAVAILABLE;
	}
	return CTL_OK;
}

static int look_at(struct ctl *c, struct look *l)
{
	int code = look_groups(c, l);
	if (code == CTL_OK)
		l->counts = ctl_query(c, &counts_stmt, 0, NULL);
	if (l->counts)
		l->busy = ctl_query(c, &busy_stmt, 0, NULL);
	return l->busy ? CTL_OK : code == CTL_OK ? CTL_UNAVAILABLE : code;
}

/* Entries a second that the stream of group i got between two looks. */
static double rate(const struct look *was, const struct look *now, size_t i)
{
	int64_t ms = now->at_ms - was->at_ms;
	uint64_t before = was->group[i].added, after = now->group[i].added;
	return ms > 0 && after > before ? (double)(after - before) * 1000.0 / (double)ms : 0;
}

static void print_streams(const struct look *was, const struct look *l)
{
	printf("%-16s %-18s %10s %10s %10s %10s\n", "STREAM", "GROUP", "RATE/S", "WAITING",
	       "UNACKED", "OLDEST_S");
	for (size_t i = 0; i < l->groups; i++) {
		const struct group_state *s = &l->group[i];
		printf("%-16s %-18s %10.1f %10llu %10llu %10.1f%s\n", stream_groups[i].stream,
		       stream_groups[i].group, rate(was, l, i), (unsigned long long)s->waiting,
		       (unsigned long long)s->pending, (double)s->oldest_ms / 1000.0,
		       s->exists ? "" : "  (no group)");
	}
}

static const struct col count_cols[] = {
    {"online", COL_NUM},
    {"offline", COL_NUM},
    {"open_commands", COL_NUM},
    {"results_min", COL_NUM},
    {"results_min_not_done", COL_NUM},
    {"dead_letters", COL_NUM},
};

static void print_look(const struct ctl *c, const struct look *was, const struct look *l)
{
	char now[CLOCK_RFC3339_LEN + 1];
	long long n[ARRAY_LEN(count_cols)] = {0};
	for (size_t i = 0; i < ARRAY_LEN(n); i++)
		n[i] = (long long)pg_rows_int(l->counts, 0, i);
	clock_format_rfc3339(clock_wall_ms(), now);
	printf(
	    "%s  online %lld  offline %lld  open commands %lld  results/min %lld (not done %lld)  "
	    "dead letters %lld\n\n",
	    now, n[0], n[1], n[2], n[3], n[4], n[5]);
	print_streams(was, l);
	putchar('\n');
	ctl_print_rows(c, busy_cols, ARRAY_LEN(busy_cols), l->busy);
	fflush(stdout);
}

/* One object a line, so that a program can follow it. */
static void print_look_json(const struct look *was, const struct look *l)
{
	struct buf out;
	struct jsonw w;
	char now[CLOCK_RFC3339_LEN + 1];
	clock_format_rfc3339(clock_wall_ms(), now);
	buf_init(&out, 1U << 20);
	jsonw_init(&w, &out);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "at", now);
	for (size_t i = 0; i < ARRAY_LEN(count_cols); i++)
		jsonw_int(&w, count_cols[i].name, pg_rows_int(l->counts, 0, i));
	jsonw_arr(&w, "streams");
	for (size_t i = 0; i < l->groups; i++) {
		jsonw_obj(&w, NULL);
		jsonw_str(&w, "stream", stream_groups[i].stream);
		jsonw_str(&w, "group", stream_groups[i].group);
		jsonw_bool(&w, "exists", l->group[i].exists);
		jsonw_num(&w, "rate_s", rate(was, l, i));
		jsonw_uint(&w, "waiting", l->group[i].waiting);
		jsonw_uint(&w, "unacknowledged", l->group[i].pending);
		jsonw_int(&w, "oldest_ms", l->group[i].oldest_ms);
		jsonw_obj_end(&w);
	}
	jsonw_arr_end(&w);
	ctl_put_rows(&w, "gateways", busy_cols, ARRAY_LEN(busy_cols), l->busy);
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) == 0)
		printf("%s\n", out.data);
	fflush(stdout);
	buf_fini(&out);
}

/* True when a signal asks to stop. */
static bool pause_ms(int wake, int ms)
{
	struct pollfd p = {.fd = wake, .events = POLLIN};
	return poll(&p, wake >= 0 ? 1 : 0, ms) > 0 || program_should_stop();
}

static int watch(struct ctl *c, bool once)
{
	struct look was = {0}, now = {0};
	int wake = program_catch_signals();
	int code = look_groups(c, &was);
	bool stop = code != CTL_OK || pause_ms(wake, FIRST_MS);
	while (!stop) {
		code = look_at(c, &now);
		if (code == CTL_OK && c->json)
			print_look_json(&was, &now);
		if (code == CTL_OK && !c->json) {
			fputs(once ? "" : "\x1b[H\x1b[J", stdout);
			print_look(c, &was, &now);
		}
		look_fini(&was);
		was = now;
		now = (struct look){0};
		stop = code != CTL_OK || once || pause_ms(wake, EVERY_MS);
	}
	look_fini(&was);
	return code;
}

int cmd_top(struct ctl *c, int argc, char **argv)
{
	bool once = false;
	for (int o; (o = ctl_option("top", argc, argv)) != -1;) {
		if (o != 'o')
			return o == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE;
		once = true;
	}
	if (optind < argc) {
		ctl_usage("top", stderr);
		return CTL_USAGE;
	}
	return ctl_redis(c) && ctl_pg(c) ? watch(c, once) : CTL_UNAVAILABLE;
}
