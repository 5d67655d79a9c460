/* viwctl command, cancel, lost: one command's row, and what an operator may decide about it. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "follow.h"

int cmd_command(struct ctl *c, int argc, char **argv)
{
	bool end = false;
	int code = ctl_no_options("command", argc, argv, 1, &end);
	if (end)
		return code;
	return command_print(c, argv[optind]);
}

static const struct pg_stmt agent_stmt = {
    "viwctl_command_agent",
    "select agent_id, status from agent_commands where correlation_id = $1"};

int cmd_cancel(struct ctl *c, int argc, char **argv)
{
	char agent_id[AGENT_ID_MAX + 1] = "";
	bool end = false;
	int code = ctl_no_options("cancel", argc, argv, 1, &end);
	if (end)
		return code;
	const char *param = argv[optind];
	struct pg_rows *r = ctl_query(c, &agent_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	bool found =
	    pg_rows_len(r) > 0 && span_copy(pg_rows_text(r, 0, 0), agent_id, sizeof agent_id) == 0;
	pg_rows_free(r);
	if (!found) {
		ctl_error("no command '%s' is in the database", param);
		return CTL_NO;
	}
	struct command_state s;
	code = command_look(c, param, &s);
	if (code == CTL_OK && s.terminal) {
		ctl_error("'%s' ended already: %s", param, s.status);
		return CTL_NO;
	}
	if (code == CTL_OK)
		code = command_send_cancel(c, param, agent_id);
	if (code == CTL_OK)
		printf(c->json ? "{\"asked\":true}\n"
			       : "cancel asked; `viwctl command` shows what became of it\n");
	return code;
}

static const struct pg_stmt open_stmt = {"viwctl_open",
					 "select count(*) from agent_commands where agent_id = $1 "
					 "and status in ('queued', 'offered', 'accepted')"};
static const struct pg_stmt lost_stmt = {"viwctl_lost", "select viw_declare_lost($1)"};

int cmd_lost(struct ctl *c, int argc, char **argv)
{
	bool yes = false;
	for (int o; (o = ctl_option("lost", argc, argv)) != -1;) {
		if (o != 'y')
			return o == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE;
		yes = true;
	}
	const char *param = argv[optind];
	if (argc - optind != 1 || !ident_is_agent_id(param, strlen(param))) {
		ctl_usage("lost", stderr);
		return CTL_USAGE;
	}
	struct pg_rows *r = ctl_query(c, &open_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	long long open = (long long)pg_rows_int(r, 0, 0);
	pg_rows_free(r);
	if (!yes) {
		fprintf(stderr,
			"%lld open commands of %s would end as `unknown` and never run. This is "
			"for a host "
			"that will not come back. Repeat with --yes to do it.\n",
			open, param);
		return CTL_NO;
	}
	r = ctl_query(c, &lost_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	open = (long long)pg_rows_int(r, 0, 0);
	pg_rows_free(r);
	printf(c->json ? "{\"agent_id\":\"%s\",\"open\":%lld}\n"
		       : "%s is declared lost; results-writer ends its %lld open commands\n",
	       param, open);
	return CTL_OK;
}
