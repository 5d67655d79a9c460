/*
 * viwctl dead-letters [list [N]|show ID|retry ID…|drop ID…]: entries no row could hold.
 *
 * retry puts the whole entry back at the end of its stream (XADD, then DELETE: killed in between
 * it is there twice, which the writers bear). Entries whose secrets were masked and bytes a bridge
 * refused cannot be put back: what was sent is not here any more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "viwctl.h"

enum { FIELDS_MAX = 128 };

static void pg_rows_freep(struct pg_rows **r)
{
	pg_rows_free(*r);
}

static int list(struct ctl *c, int argc, char **argv)
{
	static const struct pg_stmt stmt = {
	    "viwctl_dead_list", "SELECT id, to_char(at AT TIME ZONE 'UTC', "
				"'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), stream, entry_id, "
				"reason, octet_length(payload), CASE WHEN format = 'fields' AND "
				"NOT masked THEN 'yes' ELSE 'no' "
				"END, detail FROM dead_letters ORDER BY id DESC LIMIT $1::bigint"};
	static const struct col col[] = {
	    {"id", COL_NUM},	  {"at", COL_TEXT},   {"stream", COL_TEXT}, {"entry_id", COL_TEXT},
	    {"reason", COL_TEXT}, {"bytes", COL_NUM}, {"retry", COL_TEXT},  {"detail", COL_TEXT}};
	const char *most = argc > 0 ? argv[0] : "100";
	long n;

	if (argc > 1) {
		ctl_usage("dead-letters", stderr);
		return CTL_USAGE;
	}
	if (!ctl_number("N", most, 1, 1000000, &n))
		return CTL_USAGE;
	CLEANUP(pg_rows_freep) struct pg_rows *r = ctl_query(c, &stmt, 1, &most);
	if (!r)
		return CTL_UNAVAILABLE;
	ctl_print_rows(c, col, ARRAY_LEN(col), r);
	return CTL_OK;
}

static bool id_is_number(const char *id)
{
	return *id && strlen(id) < 19 && id[strspn(id, "0123456789")] == '\0';
}

/* The row, or NULL after saying why; *ret_code is then the exit code. */
static struct pg_rows *find(struct ctl *c, const char *id, int *ret_code)
{
	static const struct pg_stmt stmt = {
	    "viwctl_dead_show",
	    "SELECT id, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), stream, "
	    "entry_id, "
	    "reason, detail, format, masked, encode(payload, 'escape'), encode(payload, 'hex') "
	    "FROM dead_letters WHERE id = $1::bigint"};

	*ret_code = CTL_USAGE;
	if (!id_is_number(id)) {
		ctl_error("'%s' is not an id; viwctl dead-letters list shows them", id);
		return NULL;
	}
	struct pg_rows *r = ctl_query(c, &stmt, 1, &id);
	*ret_code = CTL_UNAVAILABLE;
	if (r && pg_rows_len(r) == 0) {
		ctl_error("no dead letter %s", id);
		pg_rows_free(r);
		*ret_code = CTL_NO;
		return NULL;
	}
	return r;
}
enum { D_ID, D_AT, D_STREAM, D_ENTRY, D_REASON, D_DETAIL, D_FORMAT, D_MASKED, D_PAYLOAD, D_HEX };

static int show(struct ctl *c, int argc, char **argv)
{
	static const struct col col[] = {
	    {"id", COL_NUM},	    {"at", COL_TEXT},	  {"stream", COL_TEXT},
	    {"entry_id", COL_TEXT}, {"reason", COL_TEXT}, {"detail", COL_TEXT},
	    {"format", COL_TEXT},   {"masked", COL_TEXT}, {"payload", COL_TEXT}};
	int code;

	if (argc != 1) {
		ctl_usage("dead-letters", stderr);
		return CTL_USAGE;
	}
	CLEANUP(pg_rows_freep) struct pg_rows *r = find(c, argv[0], &code);
	if (!r)
		return code;
	ctl_print_row(c, col, ARRAY_LEN(col), r, 0);
	return CTL_OK;
}

/* ---- retry ---- */

static int unhex(struct span hex, char *out)
{
	for (size_t i = 0; i < hex.n / 2; i++) {
		unsigned byte;
		if (sscanf(hex.p + 2 * i, "%2x", &byte) != 1)
			return -EINVAL;
		out[i] = (char)byte;
	}
	return 0;
}

/* "<mark>123\r\n" at *p. */
static int take_number(struct span *p, char mark, size_t *ret)
{
	size_t i = 1, v = 0;

	if (p->n < 4 || p->p[0] != mark)
		return -EBADMSG;
	for (; i < p->n && p->p[i] >= '0' && p->p[i] <= '9' && v < 1U << 30; i++)
		v = v * 10 + (size_t)(p->p[i] - '0');
	if (i + 2 > p->n || p->p[i] != '\r' || p->p[i + 1] != '\n')
		return -EBADMSG;
	*p = (struct span){p->p + i + 2, p->n - i - 2};
	*ret = v;
	return 0;
}

/* The payload as the writers encode it: RESP bulk strings. Appends to argv. */
static int take_fields(struct span p, struct span *argv, size_t cap, size_t *n)
{
	size_t count, len;

	if (take_number(&p, '*', &count) < 0 || count > cap || count % 2 || !count)
		return -EBADMSG;
	for (; count; count--) {
		if (take_number(&p, '$', &len) < 0 || len + 2 > p.n)
			return -EBADMSG;
		argv[(*n)++] = (struct span){p.p, len};
		p = (struct span){p.p + len + 2, p.n - len - 2};
	}
	return 0;
}

static int drop_one(struct ctl *c, const char *id)
{
	static const struct pg_stmt stmt = {
	    "viwctl_dead_drop", "DELETE FROM dead_letters WHERE id = $1::bigint RETURNING id"};

	if (!id_is_number(id)) {
		ctl_error("'%s' is not an id; viwctl dead-letters list shows them", id);
		return CTL_USAGE;
	}
	CLEANUP(pg_rows_freep) struct pg_rows *r = ctl_query(c, &stmt, 1, &id);
	if (!r)
		return CTL_UNAVAILABLE;
	if (pg_rows_len(r) == 0) {
		ctl_error("no dead letter %s", id);
		return CTL_NO;
	}
	return CTL_OK;
}

static int drop_and_say(struct ctl *c, const char *id)
{
	int code = drop_one(c, id);

	if (code == CTL_OK)
		printf(c->json ? "{\"dropped\":%s}\n" : "dropped %s\n", id);
	return code;
}

static int put_back(struct ctl *c, const struct pg_rows *r, char *bytes)
{
	struct span argv[3 + FIELDS_MAX], hex = pg_rows_text(r, 0, D_HEX);
	struct redis_sync *redis = ctl_redis(c);
	size_t n = 0;
	int error;

	if (!redis)
		return CTL_UNAVAILABLE;
	argv[n++] = SPAN("XADD");
	argv[n++] = pg_rows_text(r, 0, D_STREAM);
	argv[n++] = SPAN("*");
	if (unhex(hex, bytes) < 0 ||
	    take_fields((struct span){bytes, hex.n / 2}, argv, FIELDS_MAX, &n) < 0) {
		ctl_error("the payload is not an entry");
		return CTL_NO;
	}
	const struct redis_reply *reply = redis_sync_cmd(redis, &error, n, argv);
	if (!reply || redis_type(reply) == REDIS_ERR) {
		ctl_error("Redis: %s", reply ? redis_str(reply).p : redis_sync_error(redis));
		return CTL_UNAVAILABLE;
	}
	printf(c->json ? "{\"stream\":\"" SPAN_FMT "\",\"entry_id\":\"" SPAN_FMT "\"}\n"
		       : "back in " SPAN_FMT " as " SPAN_FMT "\n",
	       SPAN_ARG(argv[1]), SPAN_ARG(redis_str(reply)));
	return CTL_OK;
}

static int retry_one(struct ctl *c, const char *id)
{
	int code;
	CLEANUP(pg_rows_freep) struct pg_rows *r = find(c, id, &code);

	if (!r)
		return code;
	if (!span_eq(pg_rows_text(r, 0, D_FORMAT), "fields")) {
		ctl_error(
		    "%s cannot be put back: only what a bridge refused of it is here; send it anew",
		    id);
		return CTL_NO;
	}
	if (!span_eq(pg_rows_text(r, 0, D_MASKED), "f")) {
		ctl_error("%s cannot be put back: its secrets were masked; send it anew", id);
		return CTL_NO;
	}
	CLEANUP(freep) char *bytes = malloc(pg_rows_text(r, 0, D_HEX).n / 2 + 1);
	if (!bytes)
		return CTL_SYSTEM;
	code = put_back(c, r, bytes);
	return code == CTL_OK ? drop_one(c, id) : code;
}

static int each(struct ctl *c, int argc, char **argv, int (*one)(struct ctl *, const char *))
{
	int code = argc > 0 ? CTL_OK : CTL_USAGE;

	if (argc == 0)
		ctl_usage("dead-letters", stderr);
	for (int i = 0; i < argc; i++) {
		int r = one(c, argv[i]);
		code = r == CTL_OK ? code : r;
	}
	return code;
}

int cmd_dead_letters(struct ctl *c, int argc, char **argv)
{
	bool end = false;
	int code = ctl_no_options("dead-letters", argc, argv, -1, &end);
	if (end)
		return code;
	argc -= optind;
	argv += optind;
	const char *word = argc > 0 ? argv[0] : "list";

	if (strcmp(word, "list") == 0)
		return list(c, argc - 1, argv + 1);
	if (strcmp(word, "show") == 0)
		return show(c, argc - 1, argv + 1);
	if (strcmp(word, "retry") == 0)
		return each(c, argc - 1, argv + 1, retry_one);
	if (strcmp(word, "drop") == 0)
		return each(c, argc - 1, argv + 1, drop_and_say);
	ctl_usage("dead-letters", stderr);
	return CTL_USAGE;
}
