/* viwctl gateways: the fleet, or one gateway in full. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/ident.h"
#include "viwctl.h"

static const struct col list_cols[] = {
    {"agent_id", COL_TEXT},  {"status", COL_TEXT},    {"site", COL_TEXT},   {"version", COL_TEXT},
    {"last_seen", COL_TEXT}, {"cpu_pct", COL_NUM},    {"mem_pct", COL_NUM}, {"disk_pct", COL_NUM},
    {"containers", COL_NUM}, {"bridge_id", COL_TEXT},
};

#define TS(column) "to_char(" column " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

/* Keyset by agent_id: $5 is the last one of the page before. The page is taken before the join, or
 * the planner walks the whole table for it. */
/* clang-format off */
static const struct pg_stmt list_stmt = {
    "viwctl_gateways",
    "select g.agent_id, g.status, g.site, g.version, " TS("g.last_seen") ", "
    "round(s.cpu_pct::numeric, 1), round(s.mem_pct::numeric, 1), round(s.disk_pct::numeric, 1), "
    "s.containers_running, g.bridge_id from (select * from os_gateways "
    "where ($1::text is null or site = $1) and ($2::text is null or status = $2) "
    "and ($3::text is null or labels ->> $3 = $4) and agent_id > coalesce($5, '') "
    "order by agent_id limit $6::bigint) g "
    "left join os_gateway_status s using (agent_id) order by g.agent_id",
};
/* clang-format on */

static const struct col one_cols[] = {
    {"agent_id", COL_TEXT},   {"display_name", COL_TEXT}, {"status", COL_TEXT},
    {"hostname", COL_TEXT},   {"site", COL_TEXT},	  {"labels", COL_JSON},
    {"version", COL_TEXT},    {"capabilities", COL_JSON}, {"bridge_id", COL_TEXT},
    {"conn_id", COL_TEXT},    {"epoch", COL_NUM},	  {"ip", COL_TEXT},
    {"first_seen", COL_TEXT}, {"last_seen", COL_TEXT},	  {"telemetry_at", COL_TEXT},
    {"services", COL_JSON},   {"metrics", COL_JSON},	  {"open_commands", COL_NUM},
};

/* clang-format off */
static const struct pg_stmt one_stmt = {
    "viwctl_gateway",
    "select g.agent_id, g.display_name, g.status, g.hostname, g.site, g.labels, g.version, "
    "g.capabilities, g.bridge_id, g.conn_id, g.epoch, g.ip, " TS("g.first_seen") ", "
    TS("g.last_seen") ", " TS("s.ts") ", s.services, s.metrics, "
    "(select count(*) from agent_commands c where c.agent_id = g.agent_id "
    "and c.status in ('queued', 'offered', 'accepted')) "
    "from os_gateways g left join os_gateway_status s using (agent_id) where g.agent_id = $1",
};
/* clang-format on */

static int show_one(struct ctl *c, const char *agent_id)
{
	if (!ident_is_agent_id(agent_id, strlen(agent_id))) {
		ctl_error("'%s' is not an agent id", agent_id);
		return CTL_USAGE;
	}
	struct pg_rows *r = ctl_query(c, &one_stmt, 1, &agent_id);
	if (!r)
		return CTL_UNAVAILABLE;
	int code = CTL_OK;
	if (pg_rows_len(r) == 0) {
		ctl_error("no gateway '%s' was ever seen; `viwctl gateways` lists them", agent_id);
		code = CTL_NO;
	} else {
		ctl_print_row(c, one_cols, ARRAY_LEN(one_cols), r, 0);
	}
	pg_rows_free(r);
	return code;
}

/* "k=v" split in place; false when there is no '='. */
static bool split_label(char *text, const char **key, const char **value)
{
	char *eq = strchr(text, '=');
	if (!eq || eq == text)
		return false;
	*eq = '\0';
	*key = text;
	*value = eq + 1;
	return true;
}

int cmd_gateways(struct ctl *c, int argc, char **argv)
{
	const char *param[6] = {NULL, NULL, NULL, NULL, NULL, "1000"};
	bool ids = false;
	for (int o; (o = ctl_option("gateways", argc, argv)) != -1;) {
		if (o == 's') {
			param[0] = optarg;
		} else if (o == 't') {
			param[1] = optarg;
		} else if (o == 'a') {
			param[4] = optarg;
		} else if (o == 'n') {
			param[5] = optarg;
		} else if (o == 'i') {
			ids = true;
		} else if (o == 'l' && !split_label(optarg, &param[2], &param[3])) {
			ctl_error("--label takes key=value");
			return CTL_USAGE;
		} else if (o != 'l') {
			return o == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE;
		}
	}
	if (optind + 1 < argc) {
		ctl_usage("gateways", stderr);
		return CTL_USAGE;
	}
	if (optind < argc)
		return show_one(c, argv[optind]);
	long limit = 0;
	if (!ctl_number("--limit", param[5], 1, 100000, &limit))
		return CTL_USAGE;
	struct pg_rows *r = ctl_query(c, &list_stmt, 6, param);
	if (!r)
		return CTL_UNAVAILABLE;
	for (size_t i = 0; ids && !c->json && i < pg_rows_len(r); i++)
		printf(SPAN_FMT "\n", SPAN_ARG(pg_rows_text(r, i, 0)));
	if (!ids || c->json)
		ctl_print_rows(c, list_cols, ids ? 1 : ARRAY_LEN(list_cols), r);
	if (!c->json && !ids && pg_rows_len(r) == (size_t)limit)
		printf("… more: --after " SPAN_FMT "\n",
		       SPAN_ARG(pg_rows_text(r, pg_rows_len(r) - 1, 0)));
	pg_rows_free(r);
	return CTL_OK;
}
