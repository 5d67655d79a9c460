/*
 * viwctl doctor: what an operator would look at first, in one go. Each check is a row of a table;
 * it says ok, warn or bad, what it saw and what to do. Exit code 0 when nothing is bad.
 */
#include <errno.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "crypto/x509.h"
#include "http_get.h"
#include "streams_info.h"

#define SKEW_WARN_MS  2000
#define LAG_WARN_MS   10000
#define LAG_BAD_MS    60000
#define CERT_WARN_MS  (30LL * 86400 * 1000)
#define MEMORY_WARN   80 /* per cent of maxmemory */
#define CHECK_COLUMNS 36 /* as wide as `viw.command_results ← results-writer` */

enum grade { GRADE_OK, GRADE_WARN, GRADE_BAD };

struct doctor {
	struct ctl *c;
	struct jsonw w;
	struct buf json;
	bool any_bad;
};

/* What brings the UTF-8 text to CHECK_COLUMNS; printf counts bytes. */
static int padding(const char *text)
{
	int columns = 0;
	for (; *text; text++)
		columns += (*text & 0xc0) != 0x80;
	return columns < CHECK_COLUMNS ? CHECK_COLUMNS - columns : 0;
}

static void say(struct doctor *d, enum grade g, const char *check, const char *remedy,
		const char *fmt, ...) PRINTF_LIKE(5, 6);

static void say(struct doctor *d, enum grade g, const char *check, const char *remedy,
		const char *fmt, ...)
{
	static const char *const words[] = {"ok", "warn", "bad"};
	char seen[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(seen, sizeof seen, fmt, ap);
	va_end(ap);
	d->any_bad |= g == GRADE_BAD;
	if (!d->c->json) {
		printf("%-5s %s%*s %s\n", words[g], check, padding(check), "", seen);
		if (g != GRADE_OK && remedy)
			printf("%-5s %*s → %s\n", "", CHECK_COLUMNS, "", remedy);
		fflush(stdout);
		return;
	}
	jsonw_obj(&d->w, NULL);
	jsonw_str(&d->w, "check", check);
	jsonw_str(&d->w, "grade", words[g]);
	jsonw_str(&d->w, "seen", seen);
	jsonw_str(&d->w, "remedy", g == GRADE_OK ? NULL : remedy);
	jsonw_obj_end(&d->w);
}

/* ---- Redis ---- */

static bool config_get(struct doctor *d, const char *name, char *out, size_t cap)
{
	int error = 0;
	const struct redis_reply *r =
	    redis_sync_cmdf(ctl_redis(d->c), &error, "CONFIG GET %s", name);
	return r && redis_type(r) == REDIS_ARR && redis_len(r) >= 2 &&
	       span_copy(redis_str(redis_at(r, 1)), out, cap) == 0;
}

static void check_redis_setting(struct doctor *d, const char *name, const char *want, enum grade g,
				const char *remedy)
{
	char value[64], check[64];
	snprintf(check, sizeof check, "redis %s", name);
	if (!config_get(d, name, value, sizeof value))
		say(d, GRADE_WARN, check, "look at it on the server",
		    "CONFIG GET is not allowed here");
	else
		say(d, strcmp(value, want) == 0 ? GRADE_OK : g, check, remedy, "%s", value);
}

/* The value of one line of INFO into out; false when there is none. */
static bool info_get(struct doctor *d, const char *section, const char *name, char *out, size_t cap)
{
	int error = 0;
	const struct redis_reply *r = redis_sync_cmdf(ctl_redis(d->c), &error, "INFO %s", section);
	struct span text = r ? redis_str(r) : (struct span){NULL, 0};
	size_t n = strlen(name);
	const char *end = text.p ? text.p + text.n : NULL;
	for (const char *s = text.p; s && s + n < end; s = memchr(s, '\n', (size_t)(end - s))) {
		s += *s == '\n';
		if ((size_t)(end - s) <= n || memcmp(s, name, n) != 0 || s[n] != ':')
			continue;
		const char *value = s + n + 1, *stop = memchr(value, '\r', (size_t)(end - value));
		return stop &&
		       span_copy((struct span){value, (size_t)(stop - value)}, out, cap) == 0;
	}
	return false;
}

static void check_redis_state(struct doctor *d)
{
	char v[64], max[64];
	if (info_get(d, "replication", "role", v, sizeof v))
		say(d, strcmp(v, "master") == 0 ? GRADE_OK : GRADE_BAD, "redis role",
		    "point the URL at the primary; runbooks/redis-away.md", "%s", v);
	if (info_get(d, "persistence", "aof_last_write_status", v, sizeof v))
		say(d, strcmp(v, "ok") == 0 ? GRADE_OK : GRADE_BAD, "redis last write to disk",
		    "free its disk; runbooks/redis-away.md", "%s", v);
	if (!info_get(d, "memory", "used_memory", v, sizeof v) ||
	    !info_get(d, "memory", "maxmemory", max, sizeof max))
		return;
	long long used = strtoll(v, NULL, 10), most = strtoll(max, NULL, 10);
	if (most > 0)
		say(d, used * 100 / most >= MEMORY_WARN ? GRADE_WARN : GRADE_OK, "redis memory",
		    "see which stream is long; runbooks/redis-away.md", "%lld of %lld MiB",
		    used >> 20, most >> 20);
	else
		say(d, GRADE_OK, "redis memory", NULL, "%lld MiB, no limit set", used >> 20);
}

static void check_redis_clock(struct doctor *d)
{
	int error = 0;
	int64_t before = clock_wall_ms();
	const struct redis_reply *r = redis_sync_cmdf(ctl_redis(d->c), &error, "TIME");
	if (!r || redis_len(r) != 2)
		return;
	int64_t server = redis_int(redis_at(r, 0)) * 1000 + redis_int(redis_at(r, 1)) / 1000;
	int64_t skew = server - (before + clock_wall_ms()) / 2;
	say(d, llabs(skew) > SKEW_WARN_MS ? GRADE_WARN : GRADE_OK, "redis clock",
	    "run a time service (chrony) on both machines", "%+lld ms from this machine",
	    (long long)skew);
}

static bool check_redis(struct doctor *d)
{
	if (!ctl_redis(d->c)) {
		say(d, GRADE_BAD, "redis",
		    "start it, or mend what the error names; runbooks/redis-away.md", "%s",
		    ctl_last_error());
		return false;
	}
	say(d, GRADE_OK, "redis", NULL, "answers");
	check_redis_setting(d, "maxmemory-policy", "noeviction", GRADE_BAD,
			    "maxmemory-policy noeviction, or entries vanish unread");
	check_redis_setting(d, "appendonly", "yes", GRADE_BAD,
			    "appendonly yes, or a restart loses what was queued");
	check_redis_state(d);
	check_redis_clock(d);
	return true;
}

static void check_groups(struct doctor *d)
{
	for (const struct stream_group *g = stream_groups; g->stream; g++) {
		struct group_state s;
		char check[96];
		snprintf(check, sizeof check, "%s.%s ← %s", d->c->cfg.stream_prefix, g->stream,
			 g->group);
		if (group_look(d->c, g, &s) < 0) {
			say(d, GRADE_BAD, check, "look at the type of that key", "cannot be read");
		} else if (!s.exists) {
			say(d, GRADE_WARN, check,
			    "start the program that reads it; it makes the group", "no such group");
		} else {
			enum grade grade = s.oldest_ms > LAG_BAD_MS    ? GRADE_BAD
					   : s.oldest_ms > LAG_WARN_MS ? GRADE_WARN
								       : GRADE_OK;
			say(d, grade, check, "runbooks/lag-grows.md",
			    "%llu waiting, %llu unacknowledged, oldest %.1f s, %llu consumers",
			    (unsigned long long)s.waiting, (unsigned long long)s.pending,
			    (double)s.oldest_ms / 1000.0, (unsigned long long)s.consumers);
		}
	}
}

/* ---- PostgreSQL ---- */

static const struct pg_stmt version_stmt = {
    "viwctl_version",
    "select count(*), coalesce(max(version), 0), current_setting('server_version') "
    "from schema_migrations"};
static const struct pg_stmt clock_stmt = {
    "viwctl_clock", "select (extract(epoch from clock_timestamp()) * 1000)::bigint"};
static const struct pg_stmt roles_stmt = {
    "viwctl_roles",
    "select string_agg(want, ', ') from unnest(array['viw_telemetry_writer', 'viw_results_writer', "
    "'viw_reader']) want where not exists (select 1 from pg_roles where rolname = want)"};
static const struct pg_stmt letters_stmt = {"viwctl_letters", "select count(*) from dead_letters"};
static const struct pg_stmt days_stmt = {
    "viwctl_days",
    "select min(ahead) from (select parent, max(day) - (now() at time zone 'UTC')::date as ahead "
    "from viw_partition_days where attached group by parent) p"};
static const struct pg_stmt stuck_stmt = {
    "viwctl_stuck",
    "select count(*) from agent_commands where status in ('queued', 'offered', 'accepted') "
    "and expires_at < now() - interval '1 minute'"};

static const struct pg_stmt primary_stmt = {"viwctl_primary", "select pg_is_in_recovery()::int"};
/* -1: this role may not see it (pg_monitor may), or there is no standby. */
static const struct pg_stmt standby_stmt = {
    "viwctl_standby", "select coalesce(max(extract(epoch from replay_lag))::bigint, case when "
		      "count(*) > 0 then 0 end, "
		      "-1) from pg_stat_replication"};
static const struct pg_stmt ending_stmt = {
    "viwctl_ending",
    "select count(*) from os_gateway_status join os_gateways using (agent_id) "
    "where status <> 'decommissioned' and metrics @? '$.cert_days_left ? (@.client < 30 || "
    "@.trust_bundle < 30 || @.backend < 30)'"};
static const struct pg_stmt helper_stmt = {
    "viwctl_helper", "select count(*) from os_gateway_status join os_gateways using (agent_id) "
		     "where status = 'online' and metrics ->> 'helper' = 'down'"};
/* A frame from the future: buffering can make one old, never young. */
static const struct pg_stmt ahead_stmt = {
    "viwctl_ahead", "select count(*) from os_gateway_status where updated_at > now() - interval "
		    "'1 day' and ts > updated_at + interval '5 seconds'"};

/* First column of a one-row query as a number; -1 after a failure was said. */
static int64_t number(struct doctor *d, const struct pg_stmt *s)
{
	struct pg_rows *r = ctl_query(d->c, s, 0, NULL);
	int64_t v = r && pg_rows_len(r) > 0 && pg_rows_text(r, 0, 0).p ? pg_rows_int(r, 0, 0) : -1;
	pg_rows_free(r);
	return v;
}

static void check_roles(struct doctor *d)
{
	struct pg_rows *r = ctl_query(d->c, &roles_stmt, 0, NULL);
	if (!r)
		return;
	struct span missing = pg_rows_text(r, 0, 0);
	if (missing.p)
		say(d, GRADE_BAD, "postgresql roles", "viw-migrate URI, as the owner",
		    "missing: " SPAN_FMT, SPAN_ARG(missing));
	else
		say(d, GRADE_OK, "postgresql roles", NULL, "there");
	pg_rows_free(r);
}

static void check_schema(struct doctor *d)
{
	struct pg_rows *r = ctl_query(d->c, &version_stmt, 0, NULL);
	if (!r) {
		say(d, GRADE_BAD, "postgresql schema", "viw-migrate URI, as the owner",
		    "schema_migrations cannot be read");
		return;
	}
	int64_t newest = pg_rows_int(r, 0, 1);
	say(d, newest >= VIW_SCHEMA_NEWEST ? GRADE_OK : GRADE_BAD, "postgresql schema",
	    "viw-migrate URI, as the owner",
	    "PostgreSQL " SPAN_FMT ", migration %lld, newest is %d",
	    SPAN_ARG(pg_rows_text(r, 0, 2)), (long long)newest, VIW_SCHEMA_NEWEST);
	pg_rows_free(r);
}

static void check_postgresql(struct doctor *d)
{
	if (!ctl_pg(d->c)) {
		bool refuses_writes = strstr(ctl_last_error(), "read-only") != NULL;
		say(d, GRADE_BAD, "postgresql",
		    refuses_writes
			? "a standby, or default_transaction_read_only: point the URI at the "
			  "primary; runbooks/postgresql-away.md"
			: "start it, or mend what the error names; runbooks/postgresql-away.md",
		    "%s", ctl_last_error());
		return;
	}
	bool standby = number(d, &primary_stmt) == 1;
	say(d, standby ? GRADE_BAD : GRADE_OK, "postgresql role",
	    "point the URI at the primary; runbooks/postgresql-away.md", "%s",
	    standby ? "standby" : "primary");
	check_schema(d);
	check_roles(d);
	int64_t behind = number(d, &standby_stmt);
	if (behind >= 0)
		say(d, behind * 1000 > LAG_WARN_MS ? GRADE_WARN : GRADE_OK, "postgresql standby",
		    "its disk or the network is too slow for the writes", "%lld s behind",
		    (long long)behind);
	int64_t before = clock_wall_ms(), server = number(d, &clock_stmt);
	int64_t skew = server - (before + clock_wall_ms()) / 2;
	say(d, llabs(skew) > SKEW_WARN_MS ? GRADE_WARN : GRADE_OK, "postgresql clock",
	    "run a time service (chrony) on both machines", "%+lld ms from this machine",
	    (long long)skew);
	int64_t days = number(d, &days_stmt);
	say(d, days < 1 ? GRADE_BAD : GRADE_OK, "day partitions",
	    "telemetry-writer makes them; is it running?", "%lld days ahead", (long long)days);
	int64_t letters = number(d, &letters_stmt);
	say(d, letters > 0 ? GRADE_WARN : GRADE_OK, "dead letters", "viwctl dead-letters", "%lld",
	    (long long)letters);
	int64_t stuck = number(d, &stuck_stmt);
	say(d, stuck > 0 ? GRADE_WARN : GRADE_OK, "commands past their time, open",
	    "their agents are away, or their helpers down; `viwctl gateways --status offline`, "
	    "then wait or `viwctl lost`",
	    "%lld", (long long)stuck);
}

static void check_gateways(struct doctor *d)
{
	if (!d->c->pg)
		return;
	int64_t ahead = number(d, &ahead_stmt), ending = number(d, &ending_stmt);
	int64_t helpers = number(d, &helper_stmt);
	say(d, helpers > 0 ? GRADE_BAD : GRADE_OK, "gateways whose helper is down",
	    "commands with effects wait there; runbooks/helper-down.md", "%lld",
	    (long long)helpers);
	say(d, ahead > 0 ? GRADE_WARN : GRADE_OK, "gateways with a clock that is ahead",
	    "run a time service (chrony) on them; over 300 s they are refused", "%lld",
	    (long long)ahead);
	say(d, ending > 0 ? GRADE_WARN : GRADE_OK, "certificates that end in 30 days",
	    "viwctl rotation-check; runbooks/certificate-rotation.md", "%lld", (long long)ending);
}

/* ---- bridge and certificates ---- */

static void check_bridge(struct doctor *d)
{
	struct buf body;
	char msg[256] = "";
	long status = 0;
	if (!d->c->cfg.bridge_url) {
		say(d, GRADE_WARN, "bridge", "set VIWCTL_BRIDGE_URL to check one", "not asked");
		return;
	}
	buf_init(&body, 1U << 20);
	if (http_get(d->c, "/internal/agent/_readyz", &body, &status, msg, sizeof msg) < 0)
		say(d, GRADE_BAD, "bridge", "runbooks/bridge-not-ready.md", "%s", msg);
	else
		say(d, status == 200 ? GRADE_OK : GRADE_BAD, "bridge",
		    "runbooks/bridge-not-ready.md", "%ld %.200s", status,
		    body.data ? body.data : "");
	buf_fini(&body);
}

static int cert_until(const char *pem, size_t n, int64_t *ret)
{
	struct x509_st *cert = NULL;
	struct cert_info info;
	int r = cert_from_pem(pem, n, &cert);
	if (r == 0)
		r = cert_info_from_x509(cert, &info);
	if (r == 0)
		*ret = info.not_after_ms;
	cert_free(cert);
	return r;
}

/* Nothing is said of a file that is not here: the CA may live on another machine. */
static void check_until(struct doctor *d, const char *name, const char *what, const char *remedy,
			int (*until)(const char *pem, size_t n, int64_t *ret))
{
	char path[4096], text[CLOCK_RFC3339_LEN + 1];
	struct buf pem;
	int64_t end_ms = 0;
	snprintf(path, sizeof path, "%s/%s", d->c->cfg.ca_dir, name);
	buf_init(&pem, 64U << 20);
	if (file_read(path, &pem) == 0) {
		if (until(pem.data, pem.len, &end_ms) < 0) {
			say(d, GRADE_BAD, what, "replace it", "%s cannot be read", path);
		} else {
			int64_t left = end_ms - clock_wall_ms();
			clock_format_rfc3339(end_ms, text);
			say(d,
			    left < 0		  ? GRADE_BAD
			    : left < CERT_WARN_MS ? GRADE_WARN
						  : GRADE_OK,
			    what, remedy, "until %s", text);
		}
	}
	buf_fini(&pem);
}

int cmd_doctor(struct ctl *c, int argc, char **argv)
{
	struct doctor d = {.c = c};
	bool end = false;
	int code = ctl_no_options("doctor", argc, argv, 0, &end);
	if (end)
		return code;
	buf_init(&d.json, 1U << 20);
	jsonw_init(&d.w, &d.json);
	jsonw_arr(&d.w, NULL);
	if (check_redis(&d))
		check_groups(&d);
	check_postgresql(&d);
	check_bridge(&d);
	check_gateways(&d);
	check_until(&d, "ca.crt", "client CA", "runbooks/certificate-rotation.md", cert_until);
	check_until(&d, "crl.pem", "CRL of the client CA",
		    "viwctl enroll --renew-crl, then copy it to each bridge; past its time they "
		    "refuse everybody",
		    crl_next_update_ms);
	jsonw_arr_end(&d.w);
	if (c->json && jsonw_finish(&d.w) == 0)
		printf("%s\n", d.json.data);
	buf_fini(&d.json);
	return d.any_bad ? CTL_NO : CTL_OK;
}
