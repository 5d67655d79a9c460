/* viwctl enroll: all that a new gateway needs, in one folder; and taking it back. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/ident.h"
#include "crypto/ca.h"
#include "crypto/crypto.h"
#include "viwctl.h"

#define CA_DAYS	  3650
#define CERT_DAYS 397
/* Long: revoking reaches bridges at once through Redis, and past its time a CRL refuses everybody.
 */
#define CRL_DAYS   CERT_DAYS
#define CSR_MAX	   65536
#define TARGET_DIR "/etc/viworks" /* where the files go on the site */

struct enroll_options {
	const char *agent_id, *out, *csr, *site, *backend, *trust, *shared_secret, *pins;
	long days;
	bool init_ca, revoke, renew_crl, server, help;
};

static bool parse(int argc, char **argv, struct enroll_options *o)
{
	for (int opt; (opt = ctl_option("enroll", argc, argv)) != -1;) {
		switch (opt) {
		case 'i':
			o->init_ca = true;
			break;
		case 'r':
			o->revoke = true;
			break;
		case 'o':
			o->out = optarg;
			break;
		case 'c':
			o->csr = optarg;
			break;
		case 'd':
			if (!ctl_number("--days", optarg, 1, CA_DAYS, &o->days))
				return false;
			break;
		case 'b':
			o->backend = optarg;
			break;
		case 's':
			o->site = optarg;
			break;
		case 't':
			o->trust = optarg;
			break;
		case 'p':
			o->pins = optarg;
			break;
		case 'S':
			o->shared_secret = optarg;
			break;
		case 'R':
			o->renew_crl = true;
			break;
		case 'V':
			o->server = true;
			break;
		case CTL_OPTION_HELP:
			return o->help = true, false;
		default:
			return false;
		}
	}
	if (o->init_ca || o->renew_crl)
		return optind == argc;
	o->agent_id = optind + 1 == argc ? argv[optind] : NULL;
	if (o->server && !o->agent_id) {
		ctl_error("give the name by which agents connect, as in --backend");
		return false;
	}
	if (!o->server && (!o->agent_id || !ident_is_agent_id(o->agent_id, strlen(o->agent_id)))) {
		ctl_error(
		    "give one agent id: letters, digits, dot, underscore, hyphen; at most 64");
		return false;
	}
	return true;
}

static int init_ca(struct ctl *c)
{
	int r = ca_init(c->cfg.ca_dir, "ViWorkS gateway client CA", CA_DAYS, CRL_DAYS);
	if (r == -EEXIST)
		ctl_error("%s holds a CA already (ca.key)", c->cfg.ca_dir);
	else if (r < 0)
		ctl_error("VIWCTL_CA_DIR %s: %s", c->cfg.ca_dir, strerror(-r));
	else
		printf(c->json ? "{\"client_ca\":\"%s/ca.crt\",\"crl\":\"%s/crl.pem\",\"key\":\"%s/"
				 "ca.key\"}\n"
			       : "%s/ca.crt: AGENT_BRIDGE_TLS_CLIENT_CA\n%s/crl.pem: "
				 "AGENT_BRIDGE_TLS_CRL\n%s/ca.key: keep it off the bridge\n",
		       c->cfg.ca_dir, c->cfg.ca_dir, c->cfg.ca_dir);
	return r < 0 ? CTL_NO : CTL_OK;
}

static int renew_crl(struct ctl *c)
{
	int r = ca_renew_crl(c->cfg.ca_dir, CRL_DAYS);
	if (r < 0)
		ctl_error("VIWCTL_CA_DIR %s: %s", c->cfg.ca_dir, strerror(-r));
	else
		printf(c->json ? "{\"crl\":\"%s/crl.pem\",\"days\":%d}\n"
			       : "%s/crl.pem: good for %d days; copy it to each bridge\n",
		       c->cfg.ca_dir, CRL_DAYS);
	return r < 0 ? CTL_NO : CTL_OK;
}

static int put(const char *dir, const char *name, const void *bytes, size_t n, unsigned mode)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int r = file_write_atomic(path, bytes, n, mode);
	if (r < 0)
		ctl_error("%s: %s", path, strerror(-r));
	return r < 0 ? CTL_SYSTEM : CTL_OK;
}

static int copy(const char *dir, const char *name, const char *from, bool secret, unsigned mode)
{
	struct buf b;
	buf_init(&b, 1U << 20);
	int r = secret ? file_read_secret(from, &b) : file_read(from, &b);
	int code = CTL_SYSTEM;
	if (r < 0)
		ctl_error("%s: %s%s", from, strerror(-r),
			  r == -EACCES
			      ? " (a secret's file must not be open to group or others: chmod 600)"
			      : "");
	else
		code = put(dir, name, b.data, b.len, mode);
	buf_wipe(&b);
	buf_fini(&b);
	return code;
}

/* The helper's secret: 32 random bytes as hex. */
static int put_helper_secret(const char *dir)
{
	uint8_t key[32];
	char hex[65];
	for (size_t i = 0; i < sizeof key; i += 8) {
		uint64_t v = ident_random_u64();
		memcpy(key + i, &v, 8);
	}
	crypto_hex(key, sizeof key, hex);
	int code = put(dir, "host_helper.secret", hex, 64, 0400);
	crypto_wipe(key, sizeof key);
	crypto_wipe(hex, sizeof hex);
	return code;
}

/* A string of flat TOML; what a setting never holds is refused. */
static int put_line(struct buf *b, const char *name, const char *value)
{
	if (!value)
		return 0;
	if (strpbrk(value, "\"\\\n\r"))
		return -EINVAL;
	return buf_appendf(b, "%s = \"%s\"\n", name, value);
}

/* The file that the agent's every word finds by itself: `gateway-agent status` too. */
static int put_settings(const struct enroll_options *o, const char *dir)
{
	const char *lines[][2] = {
	    {"id", o->agent_id},
	    {"backend_url", o->backend ? o->backend : "wss://CHANGE-ME:8082/agent/ws"},
	    {"cert_path", TARGET_DIR "/agent.crt"},
	    {"key_path", TARGET_DIR "/agent.key"},
	    {"helper_secret_file", TARGET_DIR "/agent_helper.secret"},
	    {"site", o->site},
	    {"trust_bundle", o->trust ? TARGET_DIR "/trust.crt" : NULL},
	    {"backend_spki_pin", o->pins},
	    {"shared_secret_file", o->shared_secret ? TARGET_DIR "/shared.secret" : NULL},
	};
	struct buf b;
	buf_init(&b, 65536);
	int r = buf_appendf(&b,
			    "# Settings of gateway-agent for %s; install as " TARGET_DIR
			    "/gateway-agent.toml\nfeature_exec_enable = true\n",
			    o->agent_id);
	for (size_t i = 0; r == 0 && i < ARRAY_LEN(lines); i++)
		r = put_line(&b, lines[i][0], lines[i][1]);
	if (r == -EINVAL)
		ctl_error("--backend, --site or --pin holds a quote, a backslash or a line end");
	int code = r == 0	  ? put(dir, "gateway-agent.toml", b.data, b.len, 0644)
		   : r == -EINVAL ? CTL_USAGE
				  : CTL_SYSTEM;
	buf_fini(&b);
	return code;
}

static int put_install(const struct enroll_options *o, const char *dir)
{
	static const char script[] =
	    "#!/bin/sh\n"
	    "# Run as root on the site, in this folder: puts the files where the units look for "
	    "them.\n"
	    "set -eu\n"
	    "id viworks-agent >/dev/null || { echo 'first install viworks-gateway-agent and "
	    "viworks-host-helper' >&2; exit 1; }\n"
	    "cd \"$(dirname \"$0\")\"\n"
	    "d=" TARGET_DIR "\n"
	    "install -d -m 0755 \"$d\"\n"
	    "install -m 0644 gateway-agent.toml agent.crt \"$d\"\n"
	    "for f in agent.key shared.secret; do [ ! -e $f ] || install -m 0400 -o viworks-agent "
	    "-g viworks $f \"$d\"; done\n"
	    "[ ! -e trust.crt ] || install -m 0644 trust.crt \"$d\"\n"
	    "install -m 0400 -o root -g root host_helper.secret \"$d/host_helper.secret\"\n"
	    "install -m 0400 -o viworks-agent -g viworks host_helper.secret "
	    "\"$d/agent_helper.secret\"\n"
	    "systemctl enable viworks-gateway-agent.service\n"
	    "systemctl enable --now viworks-host-helper.socket\n"
	    "# Where they ran already they take the new files; commands that run go on.\n"
	    "systemctl try-restart viworks-host-helper.service\n"
	    "systemctl restart viworks-gateway-agent.service\n";
	(void)o;
	return put(dir, "install.sh", script, sizeof script - 1, 0755);
}

static int read_csr(const char *path, struct buf *out)
{
	int r = file_read(path, out);
	if (r < 0)
		ctl_error("--csr %s: %s", path, strerror(-r));
	return r < 0 ? CTL_USAGE : CTL_OK;
}

static int issue(struct ctl *c, const struct enroll_options *o, struct ca_issued *ret)
{
	struct buf csr;
	buf_init(&csr, CSR_MAX);
	int code = o->csr ? read_csr(o->csr, &csr) : CTL_OK;
	if (code == CTL_OK) {
		int r = (o->server ? ca_issue_server : ca_issue)(
		    c->cfg.ca_dir, o->agent_id, o->csr ? csr.data : NULL, (int)o->days, ret);
		if (r == -ENOENT)
			ctl_error(
			    "no CA in %s (VIWCTL_CA_DIR); `viwctl enroll --init-ca` makes one",
			    c->cfg.ca_dir);
		else if (r == -EDOM)
			ctl_error("'%s' is neither a DNS name nor an address", o->agent_id);
		else if (r == -EINVAL)
			ctl_error(
			    "%s",
			    o->csr ? "the request is not a PEM PKCS#10 with a good signature, or "
				     "the CA's files do not fit each other"
				   : "the CA's files do not fit each other");
		else if (r < 0)
			ctl_error("VIWCTL_CA_DIR %s: %s", c->cfg.ca_dir, strerror(-r));
		code = r < 0 ? CTL_NO : CTL_OK;
	}
	buf_fini(&csr);
	return code;
}

/* install.sh would put an earlier enrolment's key over the one the site made its request with. */
static void drop_older_key(const char *dir, const struct ca_issued *i)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/agent.key", dir);
	if (!ca_is_another_key(i, path))
		return;
	if (unlink(path) < 0)
		ctl_error("%s does not belong to this certificate; remove it (%s)", path,
			  strerror(errno));
	else
		ctl_error("%s did not belong to this certificate and is removed", path);
}

/* Makes the folder, and in it NAME.crt and, unless a request was given, NAME.key. */
static int issue_into(struct ctl *c, const struct enroll_options *o, const char *dir,
		      const char *name, struct ca_issued *ret)
{
	char file[32];
	if (mkdir(dir, 0700) < 0 && errno != EEXIST) {
		ctl_error("--out %s: %s", dir, strerror(errno));
		return CTL_SYSTEM;
	}
	int code = issue(c, o, ret);
	if (code != CTL_OK)
		return code;
	snprintf(file, sizeof file, "%s.crt", name);
	code = put(dir, file, ret->cert_pem.data, ret->cert_pem.len, 0644);
	snprintf(file, sizeof file, "%s.key", name);
	if (code == CTL_OK && ret->key_pem.len > 0)
		code = put(dir, file, ret->key_pem.data, ret->key_pem.len, 0400);
	if (code != CTL_OK)
		ca_issued_fini(ret);
	return code;
}

/* The bridge's own certificate: server.crt and server.key. */
static int enroll_server(struct ctl *c, const struct enroll_options *o)
{
	char until[CLOCK_RFC3339_LEN + 1];
	const char *dir = o->out ? o->out : ".";
	struct ca_issued i;
	int code = issue_into(c, o, dir, "server", &i);
	if (code != CTL_OK)
		return code;
	clock_format_rfc3339(i.not_after_ms, until);
	if (c->json)
		printf("{\"server\":\"%s\",\"dir\":\"%s\",\"not_after\":\"%s\"}\n", o->agent_id,
		       dir, until);
	else
		printf("server       %s\nfiles        %s/server.crt%s\nvalid until  %s\n"
		       "next         AGENT_BRIDGE_TLS_CERT and _TLS_KEY; the key belongs to the "
		       "bridge's user, mode 0400\n",
		       o->agent_id, dir, o->csr ? "" : ", server.key", until);
	ca_issued_fini(&i);
	return CTL_OK;
}

/* Without --trust the bridge's certificate is one of --server: the same CA. */
static int enroll(struct ctl *c, const struct enroll_options *given)
{
	struct enroll_options with_trust = *given;
	const struct enroll_options *o = &with_trust;
	char own_ca[4096];
	snprintf(own_ca, sizeof own_ca, "%s/ca.crt", c->cfg.ca_dir);
	if (!given->trust)
		with_trust.trust = own_ca;
	const char *dir = o->out ? o->out : o->agent_id;
	char until[CLOCK_RFC3339_LEN + 1];
	struct ca_issued i;
	int code = issue_into(c, o, dir, "agent", &i);
	if (code != CTL_OK)
		return code;
	if (o->csr)
		drop_older_key(dir, &i);
	code = put_helper_secret(dir);
	if (code == CTL_OK && o->shared_secret)
		code = copy(dir, "shared.secret", o->shared_secret, true, 0400);
	if (code == CTL_OK && o->trust)
		code = copy(dir, "trust.crt", o->trust, false, 0644);
	if (code == CTL_OK)
		code = put_settings(o, dir);
	if (code == CTL_OK)
		code = put_install(o, dir);
	clock_format_rfc3339(i.not_after_ms, until);
	if (code == CTL_OK && c->json)
		printf("{\"agent_id\":\"%s\",\"dir\":\"%s\",\"serial\":\"%s\",\"fingerprint\":\"%"
		       "s\",\"not_after\":\"%s\"}\n",
		       o->agent_id, dir, i.serial, i.fingerprint, until);
	else if (code == CTL_OK)
		printf("agent        %s\nfolder       %s\nfingerprint  %s\nvalid until  %s\n"
		       "next         copy the folder to the site over a safe way, run install.sh "
		       "there as root\n",
		       o->agent_id, dir, i.fingerprint, until);
	ca_issued_fini(&i);
	return code;
}

struct revoking {
	struct ctl *c;
	int code;
	size_t added; /* that Redis did not know yet */
};

static void on_revoked(void *arg, const char *fingerprint_hex)
{
	struct revoking *v = arg;
	char key[128];
	int error = 0;
	ctl_key(v->c, "revoked", key, sizeof key);
	struct redis_sync *redis = v->code == CTL_OK ? ctl_redis(v->c) : NULL;
	const struct redis_reply *r =
	    redis ? redis_sync_cmdf(redis, &error, "SADD %s %s", key, fingerprint_hex) : NULL;
	if (!r || redis_type(r) == REDIS_ERR)
		v->code = CTL_UNAVAILABLE;
	else
		v->added += (size_t)redis_int(r);
}

static int revoke_agent(struct ctl *c, const struct enroll_options *o)
{
	struct revoking v = {.c = c, .code = CTL_OK};
	size_t n = 0;
	int r = ca_revoke(c->cfg.ca_dir, o->agent_id, CRL_DAYS, on_revoked, &v, &n);
	if (r < 0) {
		ctl_error("VIWCTL_CA_DIR %s: %s", c->cfg.ca_dir, strerror(-r));
		return CTL_NO;
	}
	if (n < v.added)
		n = v.added; /* an earlier time Redis was away */
	if (n == 0 && v.code == CTL_OK) {
		ctl_error("no valid certificate of '%s' in %s/index", o->agent_id, c->cfg.ca_dir);
		return CTL_NO;
	}
	if (v.code != CTL_OK)
		ctl_error(
		    "the CRL is written, but Redis does not know yet; run this again, or give the "
		    "new crl.pem to each bridge");
	else if (c->json)
		printf("{\"revoked\":%zu}\n", n);
	else
		printf("%zu certificate%s revoked; bridges refuse %s from now on. Copy crl.pem to "
		       "them too.\n",
		       n, n == 1 ? "" : "s", n == 1 ? "it" : "them");
	return v.code;
}

int cmd_enroll(struct ctl *c, int argc, char **argv)
{
	struct enroll_options o = {.days = CERT_DAYS};
	if (!parse(argc, argv, &o))
		return o.help ? CTL_OK : CTL_USAGE;
	return o.renew_crl ? renew_crl(c)
	       : o.init_ca ? init_ca(c)
	       : o.revoke  ? revoke_agent(c, &o)
	       : o.server  ? enroll_server(c, &o)
			   : enroll(c, &o);
}
