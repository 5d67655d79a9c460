/* The settings table of agent-bridge, and the faults that lie between settings. */
#include "bridge_settings.h"

#include <stddef.h>
#include <string.h>

#include "base/ident.h"
#include "base/netaddr.h"
#include "bridge_metrics.h"
#include "redis/redis.h"

#define SETTINGS_STRUCT bridge_settings

static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "bridge_settings.def"
#undef SETTING
};

#define NAME(x) "AGENT_BRIDGE_" x

static void check_tls(const struct bridge_settings *c, struct settings_faults *f)
{
	if (!c->tls_cert != !c->tls_key)
		settings_fault_add(f, c->tls_cert ? NAME("TLS_KEY") : NAME("TLS_CERT"),
				   "is unset: certificate and key go together");
	if (c->tls_client_ca && !c->tls_cert)
		settings_fault_add(f, NAME("TLS_CLIENT_CA"), "needs TLS_CERT and TLS_KEY");
	if (c->tls_crl && !c->tls_client_ca)
		settings_fault_add(f, NAME("TLS_CRL"), "needs TLS_CLIENT_CA");
}

/* Who may connect must be decided by something: secret, certificate, or being local. */
static void check_exposure(const struct bridge_settings *c, struct settings_faults *f)
{
	struct netaddr a;

	if (!c->enabled || c->shared_secret || c->tls_client_ca || c->trusted_proxies)
		return;
	if (netaddr_parse_hostport(c->bind, &a) == 0 && !netaddr_is_loopback(&a))
		settings_fault_add(
		    f, NAME("BIND"),
		    "is not a loopback address, and neither SHARED_SECRET nor "
		    "TLS_CLIENT_CA nor TRUSTED_PROXIES says who may connect: set one, "
		    "or bind 127.0.0.1:8082");
}

static void check_lists(const struct bridge_settings *c, struct settings_faults *f)
{
	struct cidr_list l = {0};

	if (c->trusted_proxies && cidr_list_parse(c->trusted_proxies, &l) < 0)
		settings_fault_add(f, NAME("TRUSTED_PROXIES"),
				   "is no comma-separated list of CIDRs without host bits, like "
				   "10.0.0.0/8,::1");
	cidr_list_fini(&l);
	for (const char *p = c->allowed_agent_ids; p && *p;) {
		size_t n = strcspn(p, ",");

		if (!ident_is_agent_id(p, n))
			settings_fault_add(f, NAME("ALLOWED_AGENT_IDS"),
					   "has an item that is no agent id: '%.*s'",
					   (int)(n < 70 ? n : 70), p);
		p += n + (p[n] == ',');
	}
}

static void validate(const void *cfg, struct settings_faults *f)
{
	const struct bridge_settings *c = cfg;
	char msg[200];

	check_tls(c, f);
	check_exposure(c, f);
	check_lists(c, f);
	if (c->redis_url && redis_url_check(c->redis_url, msg, sizeof(msg)) < 0)
		settings_fault_add(f, NAME("REDIS_URL"), "%s", msg);
	if (c->id && (strpbrk(c->id, "| \t\r\n") || !*c->id))
		settings_fault_add(f, NAME("ID"), "must not hold blanks or '|'");
	if (c->stream_prefix && !ident_is_agent_id(c->stream_prefix, strlen(c->stream_prefix)))
		settings_fault_add(f, NAME("STREAM_PREFIX"),
				   "may hold letters, digits, '.', '_' and '-' only");
}

const struct settings_spec bridge_settings_spec = {
    .program = "agent-bridge",
    .summary = "keeps the agents' WebSockets and carries frames to and from Redis",
    .prefix = "AGENT_BRIDGE",
    .file_env = "AGENT_BRIDGE_CONFIG",
    .default_file = "config/agent-bridge.toml",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct bridge_settings),
    .validate = validate,
    .metric = bridge_metric_table,
    .metrics = M_BRIDGE_METRICS,
    .metrics_markdown = metrics_markdown,
};
