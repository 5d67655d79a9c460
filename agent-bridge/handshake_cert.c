#include "handshake_cert.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "base/buf.h"
#include "crypto/crypto.h"
#include "crypto/x509.h"

#define PEM_MAX	     16384
#define AGENT_URN    "urn:viworks:agent:"
#define MAX_TEXT_CNS 1

int identity_from_x509(struct x509_st *cert, const char *agent_id, struct handshake_identity *ret)
{
	struct cert_info info;
	int r = cert_info_from_x509(cert, &info);

	if (r < 0)
		return r;
	crypto_hex(info.fingerprint, sizeof(info.fingerprint), ret->fingerprint);
	memcpy(ret->subject, info.subject, sizeof(ret->subject));
	ret->names_agent = cert_names_agent(cert, agent_id);
	return 0;
}

static int unescape(struct span in, struct buf *out)
{
	for (size_t i = 0; i < in.n; i++) {
		uint8_t byte;

		if (in.p[i] != '%') {
			if (buf_append_char(out, in.p[i]) < 0)
				return -EINVAL;
			continue;
		}
		if (in.n - i < 3 || crypto_unhex(in.p + i + 1, 2, &byte) < 0 || byte == 0 ||
		    buf_append_char(out, (char)byte) < 0)
			return -EINVAL;
		i += 2;
	}
	return 0;
}

int identity_from_escaped_pem(struct span escaped, const char *agent_id,
			      struct handshake_identity *ret)
{
	struct x509_st *cert = NULL;
	struct buf pem;
	int r;

	buf_init(&pem, PEM_MAX);
	r = unescape(escaped, &pem);
	if (r == 0)
		r = cert_from_pem(pem.data ? pem.data : "", pem.len, &cert);
	if (r == 0)
		r = identity_from_x509(cert, agent_id, ret);
	if (cert)
		cert_free(cert);
	buf_fini(&pem);
	return r < 0 ? -EINVAL : 0;
}

/* "AB:CD…" or "abcd…" of 20 or 32 bytes. */
static int fingerprint_read(struct span s, char out[65])
{
	size_t n = 0;

	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];

		if (c == ':')
			continue;
		if (c >= 'A' && c <= 'F')
			c = (char)(c - 'A' + 'a');
		if (n == 64 || !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return -EINVAL;
		out[n++] = c;
	}
	out[n] = '\0';
	return n == 64 || n == 40 ? 0 : -EINVAL;
}

static bool part_is(const char *part, size_t n, const char *prefix, const char *value)
{
	size_t prefix_n = strlen(prefix);

	return n == prefix_n + strlen(value) && strncasecmp(part, prefix, prefix_n) == 0 &&
	       memcmp(part + prefix_n, value, n - prefix_n) == 0;
}

static bool part_starts(const char *part, size_t n, const char *prefix)
{
	return n >= strlen(prefix) && strncasecmp(part, prefix, strlen(prefix)) == 0;
}

enum named { NAMED_NOTHING, NAMED_OTHER, NAMED_AGENT };

/* The same precedence as cert_names_agent: our URN, else DNS. */
static enum named san_names(struct span san, const char *agent_id)
{
	enum named uri = NAMED_NOTHING, dns = NAMED_NOTHING;
	const char *p = san.p, *end = san.p ? san.p + san.n : NULL;

	while (p && p < end) {
		const char *comma = memchr(p, ',', (size_t)(end - p));
		size_t n = (size_t)((comma ? comma : end) - p);

		while (n && *p == ' ') {
			p++;
			n--;
		}
		if (part_starts(p, n, "URI:" AGENT_URN) && uri != NAMED_AGENT)
			uri = part_is(p, n, "URI:" AGENT_URN, agent_id) ? NAMED_AGENT : NAMED_OTHER;
		if (part_starts(p, n, "DNS:") && dns != NAMED_AGENT)
			dns = part_is(p, n, "DNS:", agent_id) ? NAMED_AGENT : NAMED_OTHER;
		p = comma ? comma + 1 : end;
	}
	return uri != NAMED_NOTHING ? uri : dns;
}

/* Commas inside a value are escaped in RFC 2253; the old slash form has no escapes, so there a
 * second CN= anywhere makes the subject unclear. -EINVAL when it is. */
static int dn_names(struct span dn, const char *agent_id, enum named *ret)
{
	bool slashes = dn.n && dn.p[0] == '/';
	char separator = slashes ? '/' : ',';
	size_t cns = 0;

	*ret = NAMED_NOTHING;
	for (size_t i = 0; i < dn.n;) {
		size_t start = i;

		while (start < dn.n && (dn.p[start] == separator || dn.p[start] == ' '))
			start++;
		for (i = start; i < dn.n && dn.p[i] != separator && dn.p[i] != '+'; i++)
			if (dn.p[i] == '\\')
				i++;
		if (i < dn.n && dn.p[i] == '+')
			return -EINVAL;
		if (i > dn.n)
			return -EINVAL;
		if (!part_starts(dn.p + start, i - start, "CN="))
			continue;
		if (++cns > MAX_TEXT_CNS)
			return -EINVAL;
		*ret =
		    part_is(dn.p + start, i - start, "CN=", agent_id) ? NAMED_AGENT : NAMED_OTHER;
	}
	return 0;
}

int identity_from_text(struct span fingerprint, struct span dn, struct span san,
		       const char *agent_id, struct handshake_identity *ret)
{
	enum named by_san, by_cn;
	int r;

	if (!fingerprint.p || fingerprint_read(fingerprint, ret->fingerprint) < 0)
		return -EINVAL;
	ret->subject[0] = '\0';
	if (dn.p && span_copy(dn, ret->subject, sizeof(ret->subject)) < 0)
		return -EINVAL;
	by_san = san_names(san, agent_id);
	r = dn_names(dn, agent_id, &by_cn);
	if (r < 0)
		return r;
	ret->names_agent = (by_san != NAMED_NOTHING ? by_san : by_cn) == NAMED_AGENT;
	return 0;
}
