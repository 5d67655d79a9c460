/* viwctl command, cancel, lost: one command's row, and what an operator may decide about it. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "follow.h"

static bool one_word(int argc, char **argv, const char *usage)
{
	if (argc == 2 && strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-h") != 0)
		return true;
	fprintf(stderr, "%s\n", usage);
	return false;
}

int cmd_command(struct ctl *c, int argc, char **argv)
{
	if (!one_word(argc, argv, "viwctl command CORRELATION_ID"))
		return CTL_USAGE;
	return command_print(c, argv[1]);
}

static const struct pg_stmt agent_stmt = {
    "viwctl_command_agent",
    "select agent_id, status from agent_commands where correlation_id = $1"};

int cmd_cancel(struct ctl *c, int argc, char **argv)
{
	char agent_id[AGENT_ID_MAX + 1] = "";
	if (!one_word(argc, argv, "viwctl cancel CORRELATION_ID"))
		return CTL_USAGE;
	const char *param = argv[1];
	struct pg_rows *r = ctl_query(c, &agent_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	bool found =
	    pg_rows_len(r) > 0 && span_copy(pg_rows_text(r, 0, 0), agent_id, sizeof agent_id) == 0;
	pg_rows_free(r);
	if (!found) {
		ctl_error("no command '%s' is in the database", argv[1]);
		return CTL_NO;
	}
	struct command_state s;
	int code = command_look(c, argv[1], &s);
	if (code == CTL_OK && s.terminal) {
		ctl_error("'%s' ended already: %s", argv[1], s.status);
		return CTL_NO;
	}
	if (code == CTL_OK)
		code = command_send_cancel(c, argv[1], agent_id);
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
	bool yes = argc == 3 && strcmp(argv[2], "--yes") == 0;
	if ((argc != 2 && !yes) || !ident_is_agent_id(argv[1], strlen(argv[1]))) {
		fprintf(stderr, "viwctl lost AGENT [--yes]\n");
		return CTL_USAGE;
	}
	const char *param = argv[1];
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
			open, argv[1]);
		return CTL_NO;
	}
	r = ctl_query(c, &lost_stmt, 1, &param);
	if (!r)
		return CTL_UNAVAILABLE;
	open = (long long)pg_rows_int(r, 0, 0);
	pg_rows_free(r);
	printf(c->json ? "{\"agent_id\":\"%s\",\"open\":%lld}\n"
		       : "%s is declared lost; results-writer ends its %lld open commands\n",
	       argv[1], open);
	return CTL_OK;
}
