/* What gateway-agent reads besides frames: backend URLs, proxy variables, the helper's hello and
 * monitoring data and audit head, lines of the helper, the label and service settings. First byte:
 * which. */
#include <stdlib.h>
#include <string.h>

#include "audit_summary.h"
#include "fuzz.h"
#include "helper_client.h"
#include "proxy.h"
#include "redial.h"
#include "telemetry.h"
#include "verbset.h"

#define DEPTH 16

static void read_urls(const char *s, size_t n)
{
	struct redial r;
	char why[256];
	size_t i;

	(void)n;
	if (redial_init(s, &r, why, sizeof why) < 0)
		return;
	FUZZ_CHECK(r.n > 0 && r.n <= REDIAL_MAX_BACKENDS);
	for (i = 0; i < r.n; i++) {
		FUZZ_CHECK(r.backend[i].port > 0 && r.backend[i].host[0]);
		FUZZ_CHECK(r.backend[i].path[0] == '/' && !strpbrk(r.backend[i].path, "\r\n |"));
		FUZZ_CHECK(!strpbrk(r.backend[i].host, "\r\n /@"));
	}
	redial_fini(&r);
}

static void read_proxy(const char *s, size_t n)
{
	struct proxy p;
	char why[256];
	bool use;

	(void)n;
	if (proxy_parse(s, s, "bridge.example", &use, &p, why, sizeof why) == 0 && use)
		FUZZ_CHECK(p.port > 0 && p.host[0]);
}

static void read_verbs(const char *s, size_t n)
{
	struct json_fault fault;
	struct verbset *v;

	if (json_validate(s, n, DEPTH, &fault) < 0 || s[strspn(s, " \t\r\n")] != '[')
		return;
	if (verbset_new(&v) < 0)
		return;
	if (verbset_learn(v, (struct span){s, n}) == 0)
		FUZZ_CHECK(verbset_find(v, "ECHO") != NULL);
	verbset_free(v);
}

static void read_monitoring(const char *s, size_t n)
{
	struct telemetry_self self = {.version = "1",
				      .cert_days = INT64_MIN,
				      .bundle_days = INT64_MIN,
				      .backend_days = INT64_MIN};
	struct telemetry_cpu cpu = {0};
	struct json_fault fault;
	struct buf b;

	if (json_validate(s, n, DEPTH, &fault) < 0 || s[strspn(s, " \t\r\n")] != '{')
		return;
	buf_init(&b, 1 << 20);
	if (telemetry_compose(&telemetry_host, (struct span){s, n}, "ssh,redis=redis-server", &self,
			      &cpu, &b) == 0)
		FUZZ_CHECK(json_validate(b.data, b.len, DEPTH + 1, &fault) == 0);
	buf_fini(&b);
}

/* The helper's audit head, told twice: as it is, and after what came before was told. */
static void read_audit(const char *s, size_t n)
{
	struct audit_summary a;
	struct json_fault fault;
	struct buf b;
	int k;

	if (json_validate(s, n, DEPTH, &fault) < 0 || s[strspn(s, " \t\r\n")] != '{')
		return;
	audit_summary_init(&a);
	buf_init(&b, AUDIT_SUMMARY_MAX);
	for (k = 0; k < 3 && audit_summary_learn(&a, (struct span){s, n}) == 0; k++) {
		buf_clear(&b);
		if (audit_summary_compose(&a, &b) == 0) {
			FUZZ_CHECK(json_validate(b.data, b.len, DEPTH + 1, &fault) == 0);
			audit_summary_sent(&a);
		}
		if (k == 1)
			audit_summary_session_end(&a);
	}
	audit_summary_fini(&a);
	buf_fini(&b);
}

static void read_line(const char *s, size_t n)
{
	struct span json;

	if (helper_client_open_line("key", s, n, &json) == 0)
		FUZZ_CHECK(json.n == n - 65);
}

static void read_services(const char *s, size_t n)
{
	struct buf b;

	(void)n;
	buf_init(&b, 4096);
	if (telemetry_units(s, &b) == 0 && b.len)
		FUZZ_CHECK(b.data[b.len] == '\0');
	buf_fini(&b);
}

static void (*const readers[])(const char *s, size_t n) = {
    read_urls, read_proxy, read_verbs, read_monitoring, read_line, read_services, read_audit};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	char *text;

	if (n == 0 || n > 65536)
		return 0;
	text = malloc(n); /* exact: the sanitizer sees one byte too many */
	if (!text)
		return 0;
	memcpy(text, data + 1, n - 1);
	text[n - 1] = '\0';
	readers[data[0] % (sizeof readers / sizeof readers[0])](text, n - 1);
	free(text);
	return 0;
}
