/*
 * viwctl rotation-check: before a CA, the bridge's key or certificates change, who would be cut
 * off. It judges what each gateway last told of itself in TELEMETRY (`tls`, `cert_days_left`), so
 * it says `not known` rather than guess, and as of when. Host names in backend URLs are not told:
 * whether the new certificate is for them is for `gateway-agent check` to say.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/jsonw.h"
#include "crypto/bundle.h"
#include "crypto/crypto.h"
#include "viwctl.h"

enum verdict { WELL, ENDS_SOON, NOT_KNOWN, STRANDED, VERDICTS };
static const char *const verdict_words[] = {"ok", "ends_soon", "not_known", "stranded"};

struct rotation {
	struct bundle *client_ca, *server; /* NULL: that is not changed */
	char pin[CERT_PIN_LEN + 1];	   /* of the new server key */
	long days;
	bool all;
};

/* What is said about one gateway: the worst verdict, and each reason. */
struct judgement {
	enum verdict verdict;
	char why[512];
};

static void judge(struct judgement *j, enum verdict v, const char *why)
{
	size_t n = strlen(j->why);
	j->verdict = v > j->verdict ? v : j->verdict;
	snprintf(j->why + n, sizeof j->why - n, "%s%s", n ? "; " : "", why);
}

/* Any of the links in the array fits one of the bundle's trusted CAs. */
static bool issued_by(const json_t *issuers, const struct bundle *cas)
{
	for (size_t i = 0; i < json_array_size(issuers); i++) {
		const char *link = json_string_value(json_array_get(issuers, i));
		for (size_t k = 0; link && k < cas->n; k++) {
			if (cas->cert[k].anchored && cert_link_fits(link, cas->cert[k].subject))
				return true;
		}
	}
	return false;
}

static bool trusts(const json_t *cas, const struct bundle *chain)
{
	for (size_t i = 0; i < json_array_size(cas); i++) {
		const char *link = json_string_value(json_array_get(cas, i));
		for (size_t k = 0; link && k < chain->n; k++) {
			if (cert_link_fits(chain->cert[k].issuer, link))
				return true;
		}
	}
	return false;
}

static bool pinned(const json_t *pins, const char *pin)
{
	for (size_t i = 0; i < json_array_size(pins); i++) {
		const char *p = json_string_value(json_array_get(pins, i));
		if (p && strcmp(p, pin) == 0)
			return true;
	}
	return json_array_size(pins) == 0;
}

static void judge_client(const struct rotation *r, const json_t *tls, struct judgement *j)
{
	const json_t *issuers = json_object_get(tls, "issuers");
	if (!json_is_array(issuers))
		judge(j, NOT_KNOWN, "does not tell who issued its certificate");
	else if (json_array_size(issuers) == 0)
		judge(j, STRANDED, "has no client certificate");
	else if (!issued_by(issuers, r->client_ca))
		judge(j, STRANDED, "its certificate is from none of the new client CAs");
}

static void judge_server(const struct rotation *r, const json_t *tls, struct judgement *j)
{
	const json_t *cas = json_object_get(tls, "trust"), *pins = json_object_get(tls, "pins");
	if (!json_is_array(cas))
		judge(j, NOT_KNOWN, "does not tell whom it trusts");
	else if (!trusts(cas, r->server))
		judge(j, STRANDED, "its trust bundle does not hold the CA of the new certificate");
	if (!json_is_array(pins))
		judge(j, NOT_KNOWN, "does not tell which keys it pins");
	else if (!pinned(pins, r->pin))
		judge(j, STRANDED, "it pins keys, and not the new one");
}

static void judge_days(const struct rotation *r, const json_t *metrics, struct judgement *j)
{
	static const struct {
		const char *key, *what;
	} kinds[] = {{"client", "its client certificate"},
		     {"trust_bundle", "its trust bundle"},
		     {"backend", "the bridge's certificate it sees"}};
	const json_t *days = json_object_get(metrics, "cert_days_left");
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		const json_t *left = json_object_get(days, kinds[i].key);
		char why[96];
		long long n = (long long)json_integer_value(left);
		if (!json_is_integer(left) || n > r->days)
			continue;
		snprintf(why, sizeof why, n < 0 ? "%s has ended" : "%s ends in %lld days",
			 kinds[i].what, n);
		judge(j, n < 0 ? STRANDED : ENDS_SOON, why);
	}
}

static struct judgement judge_all(const struct rotation *r, struct span text)
{
	struct judgement j = {0};
	json_t *metrics = text.p ? json_loadb(text.p, text.n, 0, NULL) : NULL;
	if (!metrics) {
		judge(&j, NOT_KNOWN, "no telemetry yet");
		return j;
	}
	const json_t *tls = json_object_get(metrics, "tls");
	if (r->client_ca)
		judge_client(r, tls, &j);
	if (r->server)
		judge_server(r, tls, &j);
	judge_days(r, metrics, &j);
	json_decref(metrics);
	return j;
}

/* ---- files ---- */

static struct bundle *load(const char *option, const char *path)
{
	struct buf pem;
	struct bundle *b = NULL;
	buf_init(&pem, 1U << 20);
	int r = file_read(path, &pem);
	if (r == 0)
		r = bundle_load(pem.data, pem.len, &b);
	if (r < 0)
		ctl_error("%s %s: %s", option, path,
			  r == -EINVAL ? "holds no PEM certificate, or a broken one"
				       : strerror(-r));
	buf_fini(&pem);
	return r < 0 ? NULL : b;
}

static bool load_client_ca(struct rotation *r, const char *path)
{
	size_t good = 0;
	r->client_ca = load("--client-ca", path);
	for (size_t i = 0; r->client_ca && i < r->client_ca->n; i++)
		good += r->client_ca->cert[i].anchored;
	if (r->client_ca && good == 0)
		ctl_error("--client-ca %s: no CA in it is valid and self-signed, or chains to one "
			  "that is",
			  path);
	return r->client_ca && good > 0;
}

static bool load_server(struct rotation *r, const char *path)
{
	char pin[64];
	r->server = load("--server-cert", path);
	if (!r->server)
		return false;
	const struct bundle_cert *leaf = &r->server->cert[0];
	if (leaf->is_ca || leaf->info.not_after_ms < clock_wall_ms()) {
		ctl_error("--server-cert %s: the first certificate %s", path,
			  leaf->is_ca ? "is a CA's; the server's comes first" : "has expired");
		return false;
	}
	cert_pin_short(leaf->info.spki_pin, r->pin);
	crypto_base64(leaf->info.spki_pin, sizeof leaf->info.spki_pin, pin);
	fprintf(stderr, "pin of the new key: %s\n", pin);
	return true;
}

/* ---- the fleet ---- */

static const struct pg_stmt fleet_stmt = {
    "viwctl_rotation",
    "select g.agent_id, g.site, g.status, to_char(s.ts at time zone 'UTC', "
    "'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), "
    "case when s.ts is not null then jsonb_build_object('tls', s.metrics -> 'tls', "
    "'cert_days_left', s.metrics -> 'cert_days_left') end "
    "from os_gateways g left join os_gateway_status s using (agent_id) "
    "where g.status <> 'decommissioned' order by g.agent_id",
};
enum { F_AGENT, F_SITE, F_STATUS, F_AS_OF, F_METRICS };

static void put_json(struct jsonw *w, const struct pg_rows *rows, size_t i,
		     const struct judgement *j)
{
	static const char *const names[] = {"agent_id", "site", "status", "as_of"};
	jsonw_obj(w, NULL);
	for (size_t k = 0; k < ARRAY_LEN(names); k++) {
		struct span v = pg_rows_text(rows, i, k);
		if (v.p)
			jsonw_strn(w, names[k], v.p, v.n);
	}
	jsonw_str(w, "verdict", verdict_words[j->verdict]);
	jsonw_str(w, "why", *j->why ? j->why : NULL);
	jsonw_obj_end(w);
}

static void put_line(const struct pg_rows *rows, size_t i, const struct judgement *j)
{
	static const int width[] = {24, 12, 9, 20};
	for (size_t k = 0; k < ARRAY_LEN(width); k++) {
		struct span v = pg_rows_text(rows, i, k);
		ctl_print_safe(v);
		printf("%*s", v.n < (size_t)width[k] ? width[k] - (int)v.n + 2 : 2, "");
	}
	printf("%-9s  %s\n", verdict_words[j->verdict], j->why);
}

static int check(struct ctl *c, const struct rotation *r)
{
	struct pg_rows *rows = ctl_query(c, &fleet_stmt, 0, NULL);
	size_t n[VERDICTS] = {0};
	struct buf out;
	struct jsonw w;
	if (!rows)
		return CTL_UNAVAILABLE;
	buf_init(&out, 64U << 20);
	jsonw_init(&w, &out);
	jsonw_arr(&w, NULL);
	if (!c->json)
		printf("%-24s  %-12s  %-9s  %-20s  %-9s  %s\n", "AGENT_ID", "SITE", "STATUS",
		       "AS_OF", "VERDICT", "WHY");
	for (size_t i = 0; i < pg_rows_len(rows); i++) {
		struct judgement j = judge_all(r, pg_rows_text(rows, i, F_METRICS));
		n[j.verdict]++;
		if (j.verdict == WELL && !r->all)
			continue;
		if (c->json)
			put_json(&w, rows, i, &j);
		else
			put_line(rows, i, &j);
	}
	jsonw_arr_end(&w);
	if (c->json && jsonw_finish(&w) == 0)
		printf("%s\n", out.data);
	fprintf(stderr, "%zu ok, %zu end soon, %zu not known, %zu stranded\n", n[WELL],
		n[ENDS_SOON], n[NOT_KNOWN], n[STRANDED]);
	buf_fini(&out);
	pg_rows_free(rows);
	return n[ENDS_SOON] + n[NOT_KNOWN] + n[STRANDED] ? CTL_NO : CTL_OK;
}

int cmd_rotation_check(struct ctl *c, int argc, char **argv)
{
	struct rotation r = {.days = 30};
	const char *client_ca = NULL, *server = NULL;
	for (int o; (o = ctl_option("rotation-check", argc, argv)) != -1;) {
		if (o == 'c')
			client_ca = optarg;
		else if (o == 's')
			server = optarg;
		else if (o == 'a')
			r.all = true;
		else if (o != 'd')
			return o == CTL_OPTION_HELP ? CTL_OK : CTL_USAGE;
		else if (!ctl_number("--days", optarg, 0, 3650, &r.days))
			return CTL_USAGE;
	}
	int code = CTL_USAGE;
	if (optind < argc)
		ctl_usage("rotation-check", stderr);
	else if ((!client_ca || load_client_ca(&r, client_ca)) &&
		 (!server || load_server(&r, server)))
		code = check(c, &r);
	free(r.client_ca);
	free(r.server);
	return code;
}
