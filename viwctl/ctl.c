/* Connections and settings of viwctl, opened when a subcommand first needs them. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonw.h"
#include "viwctl.h"

#define SETTINGS_STRUCT viwctl_settings
static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "viwctl_settings.def"
#undef SETTING
};

static void validate(const void *cfg, struct settings_faults *faults)
{
	const struct viwctl_settings *s = cfg;
	char msg[256];
	if (redis_url_check(s->redis_url, msg, sizeof msg) < 0)
		settings_fault_add(faults, "VIWCTL_REDIS_URL", "%s", msg);
	if (s->database_url && pg_uri_check(s->database_url, msg, sizeof msg) < 0)
		settings_fault_add(faults, "VIWCTL_DATABASE_URL", "%s", msg);
}

const struct settings_spec viwctl_settings_spec = {
    .program = "viwctl",
    .summary = "see and steer a fleet of gateways",
    .prefix = "VIWCTL",
    .file_env = "VIWCTL_CONFIG",
    .default_file = "/etc/viworks/viwctl.toml",
    .usage = "viwctl WORD [ARGUMENTS]; `viwctl help` lists the words",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct viwctl_settings),
    .validate = validate,
};

static char last_error[400];

void ctl_error(const char *fmt, ...)
{
	va_list ap;
	fflush(stdout);
	va_start(ap, fmt);
	vsnprintf(last_error, sizeof last_error, fmt, ap);
	va_end(ap);
	fputs("error: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

const char *ctl_last_error(void)
{
	return last_error;
}

struct pg *ctl_pg(struct ctl *c)
{
	if (c->pg)
		return c->pg;
	if (!c->cfg.database_url) {
		ctl_error("VIWCTL_DATABASE_URL is not set; give the database's libpq URI");
		return NULL;
	}
	struct pg *p = NULL;
	if (pg_new(c->cfg.database_url, "viwctl", &p) < 0) {
		ctl_error("out of memory");
		return NULL;
	}
	if (pg_connect(p) != PG_OK) {
		ctl_error("PostgreSQL (VIWCTL_DATABASE_URL): %s", pg_error(p));
		pg_free(p);
		return NULL;
	}
	return c->pg = p;
}

/* MISCONF: its disk is full, say. It refuses PING and what writes, but can be asked what is wrong.
 */
static bool can_be_asked(const struct redis_reply *pong)
{
	enum redis_error_class e = redis_error_class(pong);
	return pong && (e == REDIS_E_NONE || e == REDIS_E_MISCONF);
}

struct redis_sync *ctl_redis(struct ctl *c)
{
	if (c->redis)
		return c->redis;
	struct redis_sync *r = NULL;
	if (redis_sync_new(c->cfg.redis_url, 5000, &r) < 0) {
		ctl_error("out of memory");
		return NULL;
	}
	redis_sync_bear_misconf(r);
	int error = 0;
	const struct redis_reply *pong = redis_sync_cmdf(r, &error, "PING");
	if (!can_be_asked(pong)) {
		ctl_error("Redis (VIWCTL_REDIS_URL): %s",
			  pong ? redis_str(pong).p : redis_sync_error(r));
		redis_sync_free(r);
		return NULL;
	}
	return c->redis = r;
}

const struct verbs *ctl_verbs(struct ctl *c)
{
	if (c->verbs)
		return c->verbs;
	struct verbs_faults faults = {0};
	int r = verbs_load(c->cfg.verbs_dir, VERBS_TRUST_ANY, false, &c->verbs, &faults);
	for (size_t i = 0; i < faults.n; i++)
		ctl_error("VIWCTL_VERBS_DIR: %s: %s: %s", faults.item[i].file, faults.item[i].key,
			  faults.item[i].text);
	if (r < 0 && faults.n == 0)
		ctl_error("VIWCTL_VERBS_DIR %s: %s", c->cfg.verbs_dir ? c->cfg.verbs_dir : "",
			  strerror(-r));
	verbs_faults_fini(&faults);
	return r < 0 ? NULL : c->verbs;
}

void ctl_fini(struct ctl *c)
{
	pg_free(c->pg);
	redis_sync_free(c->redis);
	verbs_free(c->verbs);
	settings_free(&viwctl_settings_spec, &c->cfg);
}

struct pg_rows *ctl_query(struct ctl *c, const struct pg_stmt *s, size_t n,
			  const char *const *param)
{
	struct pg *p = ctl_pg(c);
	struct pg_param params[8];
	struct pg_rows *r = NULL;
	if (!p)
		return NULL;
	for (size_t i = 0; i < n && i < ARRAY_LEN(params); i++)
		params[i] = (struct pg_param){
		    .kind = param[i] ? PG_PARAM_TEXT : PG_PARAM_NULL,
		    .text = span_of(param[i]),
		};
	if (pg_exec(p, s, n, params, &r) != PG_OK) {
		ctl_error("PostgreSQL: %s", pg_error(p));
		pg_rows_free(r);
		return NULL;
	}
	return r;
}

void ctl_key(const struct ctl *c, const char *name, char *out, size_t cap)
{
	snprintf(out, cap, "%s.%s", c->cfg.stream_prefix, name);
}
