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

static const struct pg_stmt counts_stmt = {
    "viwctl_counts",
    "select (select count(*) filter (where status = 'online') from os_gateways), "
    "(select count(*) filter (where status = 'offline') from os_gateways), "
    "(select count(*) from agent_commands where status in ('queued', 'offered', 'accepted')), "
    "(select count(*) from agent_command_results where recorded_at > now() - interval '60 "
    "seconds'), "
    "(select count(*) from agent_command_results where recorded_at > now() - interval '60 seconds' "
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

static int print_lag(struct ctl *c)
{
	printf("%-16s %-18s %10s %10s %10s\n", "STREAM", "GROUP", "WAITING", "UNACKED", "OLDEST_S");
	for (const struct stream_group *g = stream_groups; g->stream; g++) {
		struct group_state s;
		if (group_look(c, g, &s) < 0)
			return CTL_UNAVAILABLE;
		printf("%-16s %-18s %10llu %10llu %10.1f%s\n", g->stream, g->group,
		       (unsigned long long)s.waiting, (unsigned long long)s.pending,
		       (double)s.oldest_ms / 1000.0, s.exists ? "" : "  (no group)");
	}
	return CTL_OK;
}

static int draw(struct ctl *c)
{
	char now[CLOCK_RFC3339_LEN + 1];
	struct pg_rows *r = ctl_query(c, &counts_stmt, 0, NULL);
	if (!r)
		return CTL_UNAVAILABLE;
	clock_format_rfc3339(clock_wall_ms(), now);
	printf(
	    "%s  online %lld  offline %lld  open commands %lld  results/min %lld (not done %lld)  "
	    "dead letters %lld\n\n",
	    now, (long long)pg_rows_int(r, 0, 0), (long long)pg_rows_int(r, 0, 1),
	    (long long)pg_rows_int(r, 0, 2), (long long)pg_rows_int(r, 0, 3),
	    (long long)pg_rows_int(r, 0, 4), (long long)pg_rows_int(r, 0, 5));
	pg_rows_free(r);
	int code = print_lag(c);
	if (code != CTL_OK)
		return code;
	putchar('\n');
	r = ctl_query(c, &busy_stmt, 0, NULL);
	if (!r)
		return CTL_UNAVAILABLE;
	ctl_print_rows(c, busy_cols, ARRAY_LEN(busy_cols), r);
	pg_rows_free(r);
	fflush(stdout);
	return CTL_OK;
}

static int draw_json(struct ctl *c)
{
	struct pg_rows *r = ctl_query(c, &busy_stmt, 0, NULL);
	if (!r)
		return CTL_UNAVAILABLE;
	ctl_print_rows(c, busy_cols, ARRAY_LEN(busy_cols), r);
	pg_rows_free(r);
	return CTL_OK;
}

int cmd_top(struct ctl *c, int argc, char **argv)
{
	bool once = false;
	for (int o; (o = ctl_option("top", argc, argv)) != -1;) {
		if (o != 'o')
			return o == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE;
		once = true;
	}
	if (!ctl_redis(c) || !ctl_pg(c))
		return CTL_UNAVAILABLE;
	if (c->json)
		return draw_json(c);
	int wake = program_catch_signals();
	for (;;) {
		if (!once)
			fputs("\x1b[H\x1b[J", stdout);
		int code = draw(c);
		if (code != CTL_OK || once)
			return code;
		struct pollfd p = {.fd = wake, .events = POLLIN};
		if (poll(&p, wake >= 0 ? 1 : 0, EVERY_MS) > 0 || program_should_stop())
			return CTL_OK;
	}
}
