/* gateway-agent's settings table, and the checks across settings. */
#include "agent_settings.h"

#include <errno.h>
#include <string.h>

#include "agent_metrics.h"
#include "base/ident.h"
#include "base/netaddr.h"
#include "redial.h"
#include "telemetry.h"

#define SETTINGS_STRUCT agent_settings
static const struct setting rows[] = {
#define SETTING SETTING_ROW
#include "agent_settings.def"
#undef SETTING
};

static void check_link(const struct agent_settings *s, struct settings_faults *f)
{
	struct redial l;
	char why[512];
	bool tls = false;
	size_t i;

	if (redial_init(s->backend_url, &l, why, sizeof why) < 0) {
		settings_fault_add(f, "VIW_AGENT_BACKEND_URL", "%s", why);
		return;
	}
	for (i = 0; i < l.n; i++)
		tls = tls || l.backend[i].tls;
	redial_fini(&l);
	if (tls && !s->trust_bundle)
		settings_fault_add(f, "VIW_AGENT_TRUST_BUNDLE",
				   "must name the CA certificates (PEM) for a wss:// backend; the "
				   "system's are not used");
	if (tls && !s->cert_path && !s->shared_secret)
		settings_fault_add(f, "VIW_AGENT_CERT_PATH",
				   "a wss:// backend needs a client certificate (CERT_PATH and "
				   "KEY_PATH), SHARED_SECRET, or both");
}

/* The names of a list of name or name=…: each becomes a key of a JSON object, where it may stand
 * once. What separates items, and how long a name may be, is as where the list is used. */
static void check_names(const char *setting, const char *csv, const char *separators,
			size_t longest, struct settings_faults *f)
{
	const char *s, *t;
	size_t n, m, name, other;

	for (s = csv; s && *s; s += n + (s[n] != '\0')) {
		n = strcspn(s, separators);
		name = strcspn(s, "=") < n ? strcspn(s, "=") : n;
		if (name > longest)
			settings_fault_add(f, setting, "`%.20s…`: a name may be at most %zu bytes",
					   s, longest);
		for (t = csv; t < s; t += m + 1) {
			m = strcspn(t, separators);
			other = strcspn(t, "=") < m ? strcspn(t, "=") : m;
			if (name && name == other && strncmp(s, t, name) == 0) {
				settings_fault_add(f, setting,
						   "`%.*s` is there twice; leave one out",
						   (int)name, s);
				break;
			}
		}
	}
}

#define UNITS_MAX 1024 /* of get_monitoring_data's `services` (lib/verbs/builtin.c) */

static void check_services(const char *csv, struct settings_faults *f)
{
	struct buf units;

	check_names("VIW_AGENT_SERVICES", csv, ", \t", 255, f);
	buf_init(&units, UNITS_MAX);
	if (telemetry_units(csv, &units) == -ENOBUFS)
		settings_fault_add(
		    f, "VIW_AGENT_SERVICES",
		    "the units it names are together at most %d bytes; leave some out", UNITS_MAX);
	buf_fini(&units);
}

#define LABELS_MAX 64 /* of HELLO (lib/wire/frames.def) */

static void check_labels(const char *csv, struct settings_faults *f)
{
	const char *s = csv;
	unsigned labels = 0;

	while (s && *s) {
		size_t n = strcspn(s, ",");
		const char *eq = memchr(s, '=', n);

		if (++labels == LABELS_MAX + 1)
			settings_fault_add(f, "VIW_AGENT_LABELS",
					   "at most %d can be told; leave some out", LABELS_MAX);
		if (!eq || eq == s)
			settings_fault_add(f, "VIW_AGENT_LABELS",
					   "`%.*s` is not name=value; write name=value,name=value",
					   (int)n, s);
		s += n + (s[n] == ',');
	}
	check_names("VIW_AGENT_LABELS", csv, ",", 127, f);
}

static void validate(const void *cfg, struct settings_faults *f)
{
	const struct agent_settings *s = cfg;
	struct netaddr a;

	if (!ident_is_agent_id(s->id, strlen(s->id)))
		settings_fault_add(
		    f, "VIW_AGENT_ID",
		    "must begin with a letter or digit and hold at most 64 of A-Z a-z "
		    "0-9 . _ -");
	check_link(s, f);
	check_labels(s->labels, f);
	check_services(s->services, f);
	if (!s->cert_path != !s->key_path)
		settings_fault_add(f, s->cert_path ? "VIW_AGENT_KEY_PATH" : "VIW_AGENT_CERT_PATH",
				   "is not set: certificate and key come together");
	if (s->feature_inbound_http && netaddr_parse_hostport(s->bind_address, &a) == 0 &&
	    !netaddr_is_loopback(&a))
		settings_fault_add(f, "VIW_AGENT_BIND_ADDRESS",
				   "must be a loopback address such as 127.0.0.1:8443");
}

#define METRIC METRIC_ROW
const struct metric_family agent_metric_table[] = {
#include "agent_metrics.def"
};
#undef METRIC
const size_t agent_metric_count = ARRAY_LEN(agent_metric_table);

const struct settings_spec agent_settings_spec = {
    .program = "gateway-agent",
    .summary = "Dials out from a site to its bridge: telemetry, and commands through host-helper.",
    .prefix = "VIW_AGENT",
    .file_env = "AGENT_CONFIG",
    .default_file = "/etc/viworks/gateway-agent.toml",
    .usage = "gateway-agent [OPTIONS] [run]          run in the foreground\n"
	     "gateway-agent [OPTIONS] status [--json]  what the running agent says of itself\n"
	     "gateway-agent [OPTIONS] check            test settings, files, backend and helper",
    .row = rows,
    .rows = ARRAY_LEN(rows),
    .struct_size = sizeof(struct agent_settings),
    .validate = validate,
    .metric = agent_metric_table,
    .metrics = ARRAY_LEN(agent_metric_table),
    .metrics_markdown = metrics_markdown,
};
