/* Typed parameters: one function a type, each giving the canonical text of a value. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "crypto/crypto.h"
#include "verbs/verbs_private.h"

static bool is_alpha(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
	return is_alpha(c) || is_digit(c);
}

static bool is_hex(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static int keep(const char *s, size_t n, char **ret)
{
	*ret = strndup(s, n);
	return *ret ? 0 : -ENOMEM;
}

static int check_username(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	if (n < 1 || n > 32 || !(is_alpha(s[0]) || s[0] == '_'))
		return -EINVAL;
	for (size_t i = 1; i < n; i++)
		if (!is_alnum(s[i]) && !strchr("._-", s[i]))
			return -EINVAL;
	return keep(s, n, ret);
}

static int check_length(const struct verb_param *p, const char *s, size_t n, char **ret)
{
	if ((int64_t)n < p->min || (int64_t)n > p->max)
		return -EINVAL;
	return keep(s, n, ret);
}

static int check_family(int family, const char *s, size_t n, char **ret)
{
	char text[INET6_ADDRSTRLEN], out[INET6_ADDRSTRLEN];
	uint8_t addr[16];

	if (n == 0 || n >= sizeof text)
		return -EINVAL;
	memcpy(text, s, n);
	text[n] = 0;
	if (inet_pton(family, text, addr) != 1 || !inet_ntop(family, addr, out, sizeof out))
		return -EINVAL;
	return keep(out, strlen(out), ret);
}

static int check_ipv4(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	return check_family(AF_INET, s, n, ret);
}

static int check_ipv6(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	return check_family(AF_INET6, s, n, ret);
}

static int check_ip(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	return check_family(memchr(s, ':', n) ? AF_INET6 : AF_INET, s, n, ret);
}

/* Decimal without sign, spaces or leading zeros, at most 18 digits. */
static int parse_digits(const char *s, size_t n, int64_t *ret)
{
	int64_t v = 0;

	if (n < 1 || n > 18 || (n > 1 && s[0] == '0'))
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		if (!is_digit(s[i]))
			return -EINVAL;
		v = v * 10 + (s[i] - '0');
	}
	*ret = v;
	return 0;
}

static bool host_bits_set(const uint8_t *addr, size_t bytes, size_t bits)
{
	for (size_t i = bits; i < bytes * 8; i++)
		if (addr[i / 8] & (0x80u >> (i % 8)))
			return true;
	return false;
}

static int check_cidr(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	const char *slash = memchr(s, '/', n);
	int family = memchr(s, ':', n) ? AF_INET6 : AF_INET;
	size_t bytes = family == AF_INET ? 4 : 16;
	char *text = NULL, *out = NULL;
	uint8_t addr[16];
	int64_t bits;

	if (!slash || parse_digits(slash + 1, n - (size_t)(slash - s) - 1, &bits) < 0 ||
	    bits > (int64_t)bytes * 8)
		return -EINVAL;
	int r = check_family(family, s, (size_t)(slash - s), &text);
	if (r < 0)
		return r;
	if (inet_pton(family, text, addr) != 1 || host_bits_set(addr, bytes, (size_t)bits))
		r = -EINVAL;
	else if (asprintf(&out, "%s/%d", text, (int)bits) < 0)
		r = -ENOMEM;
	free(text);
	if (r == 0)
		*ret = out;
	return r;
}

/* Never negative: a value may not begin with "-". */
static int check_number(const struct verb_param *p, const char *s, size_t n, char **ret)
{
	int64_t v;

	if (parse_digits(s, n, &v) < 0 || v < p->min || v > p->max)
		return -EINVAL;
	return keep(s, n, ret);
}

static int check_enum(const struct verb_param *p, const char *s, size_t n, char **ret)
{
	for (char **w = p->words; w && *w; w++)
		if (strlen(*w) == n && memcmp(*w, s, n) == 0)
			return keep(s, n, ret);
	return -EINVAL;
}

/* RFC 1123 2.1: labels of 1 to 63 letters, digits and inner hyphens, 253 in all. */
static int check_hostname(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	size_t label = 0;

	if (n < 1 || n > 253)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		if (s[i] == '.') {
			if (label == 0 || s[i - 1] == '-')
				return -EINVAL;
			label = 0;
			continue;
		}
		if (!is_alnum(s[i]) && !(s[i] == '-' && label > 0))
			return -EINVAL;
		if (++label > 63)
			return -EINVAL;
	}
	if (label == 0 || s[n - 1] == '-')
		return -EINVAL;
	return keep(s, n, ret);
}

/* systemd.unit(5): at most 255 bytes; a name without a known suffix means a service. */
static int check_unit(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	static const char *const suffix[] = {".service", ".socket", ".timer",	 ".target",
					     ".path",	 ".mount",  ".slice",	 ".scope",
					     ".swap",	 ".device", ".automount"};

	if (n < 1 || n > 247 || s[0] == '.')
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (!is_alnum(s[i]) && !strchr(":_.\\@-", s[i]))
			return -EINVAL;
	for (size_t i = 0; i < ARRAY_LEN(suffix); i++) {
		size_t len = strlen(suffix[i]);
		if (n > len && memcmp(s + n - len, suffix[i], len) == 0)
			return keep(s, n, ret);
	}
	return asprintf(ret, "%.*s.service", (int)n, s) < 0 ? -ENOMEM : 0;
}

static int check_uuid(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	if (n != 36)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? s[i] != '-' : !is_hex(s[i]))
			return -EINVAL;
	}
	int r = keep(s, n, ret);
	for (size_t i = 0; r == 0 && i < n; i++)
		if ((*ret)[i] >= 'A' && (*ret)[i] <= 'F')
			(*ret)[i] = (char)((*ret)[i] - 'A' + 'a');
	return r;
}

static int check_key32(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	uint8_t key[33];
	size_t got = 0;

	int r = n == 44 ? crypto_unbase64(s, n, key, sizeof key, &got) : -EINVAL;
	crypto_wipe(key, sizeof key);
	if (r < 0 || got != 32)
		return -EINVAL;
	return keep(s, n, ret);
}

/* Marks that change how text around them is shown: zero-width, bidirectional, line separators. */
static bool is_invisible(const unsigned char *s, size_t n)
{
	if (n >= 2 && s[0] == 0xc2 && s[1] < 0xa0) /* C1 controls */
		return true;
	if (n >= 3 && s[0] == 0xe2 && s[1] == 0x80)
		return (s[2] >= 0x8b && s[2] <= 0x8f) || (s[2] >= 0xa8 && s[2] <= 0xae);
	if (n >= 3 && s[0] == 0xe2 && s[1] == 0x81)
		return s[2] >= 0xa0 && s[2] <= 0xaf;
	return n >= 3 && s[0] == 0xef && s[1] == 0xbb && s[2] == 0xbf;
}

static int check_text(const struct verb_param *p, const char *s, size_t n, char **ret)
{
	for (size_t i = 0; i < n; i++) {
		if (p->charset && !strchr(p->charset, s[i]))
			return -EINVAL;
		if (is_invisible((const unsigned char *)s + i, n - i))
			return -EINVAL;
	}
	return check_length(p, s, n, ret);
}

static int check_bool(const struct verb_param *p UNUSED, const char *s, size_t n, char **ret)
{
	if ((n == 4 && memcmp(s, "true", 4) == 0) || (n == 5 && memcmp(s, "false", 5) == 0))
		return keep(s, n, ret);
	return -EINVAL;
}

#define YEARS_S	 (10 * 366 * 86400LL)
#define SAFE_INT 999999999999999999LL /* 18 digits */

const struct param_kind param_kinds[PARAM_TYPES] = {
    [PARAM_USERNAME] = {"username", 1, 32, 32, false, check_username,
			"1 to 32 of A-Z a-z 0-9 . _ -, a letter or _ first"},
    [PARAM_SECRET] = {"secret", 1, 4096, 256, false, check_length,
		      "text within the length its manifest allows"},
    [PARAM_IPV4] = {"ipv4", 7, 15, 15, false, check_ipv4, "an IPv4 address such as 192.0.2.7"},
    [PARAM_IPV6] = {"ipv6", 2, 45, 45, false, check_ipv6, "an IPv6 address such as 2001:db8::7"},
    [PARAM_IP] = {"ip", 2, 45, 45, false, check_ip, "an IPv4 or IPv6 address"},
    [PARAM_CIDR] = {"cidr", 4, 49, 49, false, check_cidr,
		    "a network such as 192.0.2.0/24, no host bits set"},
    [PARAM_PORT] = {"port", 1, 65535, 65535, true, check_number, "a port, 1 to 65535"},
    [PARAM_INT] = {"int", 0, SAFE_INT, SAFE_INT, true, check_number,
		   "a whole number within its manifest's min and max"},
    [PARAM_ENUM] = {"enum", 1, 128, 128, false, check_enum, "one of its manifest's values"},
    [PARAM_HOSTNAME] = {"hostname", 1, 253, 253, false, check_hostname,
			"a host name of letters, digits, hyphens and dots"},
    [PARAM_UNIT] = {"unit", 1, 247, 247, false, check_unit, "a systemd unit name"},
    [PARAM_UUID] = {"uuid", 36, 36, 36, false, check_uuid, "a UUID, 8-4-4-4-12 hex digits"},
    [PARAM_KEY32] = {"key32", 44, 44, 44, false, check_key32, "base64 of exactly 32 bytes"},
    [PARAM_TEXT] = {"text", 0, 65536, 256, false, check_text,
		    "printable text within the length and characters its manifest allows"},
    [PARAM_DURATION_S] = {"duration_s", 0, YEARS_S, YEARS_S, true, check_number,
			  "whole seconds within its manifest's min and max"},
    [PARAM_BOOL] = {"bool", 4, 5, 5, false, check_bool, "true or false"},
};

const char *param_type_word(enum param_type t)
{
	return param_kinds[t].word;
}

int param_check(const struct verb_param *p, const char *s, size_t n, char **ret,
		const char **ret_why)
{
	const struct param_kind *k = &param_kinds[p->type];

	*ret_why = k->want;
	if (n > 0 && s[0] == '-') {
		*ret_why = "a value that does not begin with \"-\"";
		return -EINVAL;
	}
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f) {
			*ret_why = "a value without control bytes";
			return -EINVAL;
		}
	if (!utf8_is_valid(s, n)) {
		*ret_why = "valid UTF-8";
		return -EINVAL;
	}
	return k->check(p, s, n, ret);
}
