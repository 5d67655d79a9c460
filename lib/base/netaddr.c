/* See netaddr.h. */
#include "base/netaddr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_number(const char *s, size_t n, unsigned max, unsigned *ret)
{
	unsigned v = 0;
	if (n == 0 || n > 5)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -EINVAL;
		v = v * 10 + (unsigned)(s[i] - '0');
	}
	if (v > max)
		return -EINVAL;
	*ret = v;
	return 0;
}

static int set_v4(const char *host, unsigned port, struct netaddr *ret)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (*host && inet_pton(AF_INET, host, &in.sin_addr) != 1)
		return -EINVAL;
	*ret = (struct netaddr){.len = sizeof in};
	memcpy(&ret->ss, &in, sizeof in);
	return 0;
}

static int set_v6(const char *host, unsigned port, struct netaddr *ret)
{
	struct sockaddr_in6 in = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	if (inet_pton(AF_INET6, host, &in.sin6_addr) != 1)
		return -EINVAL;
	*ret = (struct netaddr){.len = sizeof in};
	memcpy(&ret->ss, &in, sizeof in);
	return 0;
}

int netaddr_parse_hostport(const char *s, struct netaddr *ret)
{
	char host[NETADDR_TEXT_MAX];
	unsigned port;
	bool v6 = s[0] == '[';
	const char *begin = v6 ? s + 1 : s;
	const char *host_end = strchr(begin, v6 ? ']' : ':');
	if (!host_end || (v6 && host_end[1] != ':'))
		return -EINVAL;
	const char *digits = host_end + (v6 ? 2 : 1);
	size_t n = (size_t)(host_end - begin);
	if (n >= sizeof host || parse_number(digits, strlen(digits), 65535, &port) < 0)
		return -EINVAL;
	memcpy(host, begin, n);
	host[n] = '\0';
	return v6 ? set_v6(host, port, ret) : set_v4(host, port, ret);
}

/* IPv4 as mapped; false for other families. */
static bool to_mapped(const struct netaddr *a, uint8_t out[16])
{
	static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	if (a->ss.ss_family == AF_INET) {
		struct sockaddr_in in;
		memcpy(&in, &a->ss, sizeof in);
		memcpy(out, prefix, sizeof prefix);
		memcpy(out + 12, &in.sin_addr, 4);
		return true;
	}
	if (a->ss.ss_family == AF_INET6) {
		struct sockaddr_in6 in;
		memcpy(&in, &a->ss, sizeof in);
		memcpy(out, &in.sin6_addr, 16);
		return true;
	}
	return false;
}

static bool is_mapped(const uint8_t addr[16])
{
	static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
	return memcmp(addr, prefix, sizeof prefix) == 0;
}

void netaddr_format_ip(const struct netaddr *a, char *out)
{
	uint8_t addr[16];
	if (!to_mapped(a, addr)) {
		snprintf(out, NETADDR_TEXT_MAX, "%s", a->ss.ss_family == AF_UNIX ? "unix" : "");
		return;
	}
	if (is_mapped(addr))
		inet_ntop(AF_INET, addr + 12, out, NETADDR_TEXT_MAX);
	else
		inet_ntop(AF_INET6, addr, out, NETADDR_TEXT_MAX);
}

void netaddr_format_hostport(const struct netaddr *a, char *out)
{
	char ip[INET6_ADDRSTRLEN + 1];
	char text[NETADDR_TEXT_MAX];
	netaddr_format_ip(a, text);
	snprintf(ip, sizeof ip, "%.*s", INET6_ADDRSTRLEN, text);
	snprintf(out, NETADDR_TEXT_MAX, strchr(ip, ':') ? "[%s]:%u" : "%s:%u", ip,
		 (unsigned)netaddr_port(a));
}

bool netaddr_is_loopback(const struct netaddr *a)
{
	uint8_t addr[16];
	static const uint8_t one[16] = {[15] = 1};
	if (!to_mapped(a, addr))
		return a->ss.ss_family == AF_UNIX;
	return is_mapped(addr) ? addr[12] == 127 : memcmp(addr, one, sizeof one) == 0;
}

uint16_t netaddr_port(const struct netaddr *a)
{
	struct sockaddr_in in; /* the port is at the same place in both families */
	if (a->ss.ss_family != AF_INET && a->ss.ss_family != AF_INET6)
		return 0;
	memcpy(&in, &a->ss, sizeof in);
	return ntohs(in.sin_port);
}

uint64_t netaddr_peer_key(const struct netaddr *a)
{
	uint8_t addr[16];
	uint64_t key;
	if (!to_mapped(a, addr))
		return 0;
	memcpy(&key, is_mapped(addr) ? addr + 8 : addr, sizeof key);
	return key;
}

static bool host_bits_set(const struct cidr *c)
{
	for (unsigned bit = c->bits; bit < 128; bit++)
		if (c->addr[bit / 8] & (0x80u >> (bit % 8)))
			return true;
	return false;
}

static int cidr_parse(const char *s, size_t n, struct cidr *ret)
{
	char text[NETADDR_TEXT_MAX];
	struct netaddr a;
	while (n && (*s == ' ' || *s == '\t'))
		s++, n--;
	while (n && (s[n - 1] == ' ' || s[n - 1] == '\t'))
		n--;
	const char *slash = memchr(s, '/', n);
	size_t host_n = slash ? (size_t)(slash - s) : n;
	if (host_n == 0 || host_n >= sizeof text)
		return -EINVAL;
	memcpy(text, s, host_n);
	text[host_n] = '\0';
	bool v4 = set_v4(text, 0, &a) == 0;
	if (!v4 && set_v6(text, 0, &a) < 0)
		return -EINVAL;
	unsigned width = v4 ? 32 : 128, bits = width;
	if (slash && parse_number(slash + 1, n - host_n - 1, width, &bits) < 0)
		return -EINVAL;
	to_mapped(&a, ret->addr);
	ret->bits = v4 ? bits + 96 : bits;
	return host_bits_set(ret) ? -EINVAL : 0;
}

int cidr_list_parse(const char *csv, struct cidr_list *ret)
{
	struct cidr_list l = {0};
	*ret = l;
	if (!csv || csv[strspn(csv, " \t")] == '\0')
		return 0;
	size_t items = 1;
	for (const char *p = csv; *p; p++)
		items += *p == ',';
	l.item = calloc(items, sizeof *l.item);
	if (!l.item)
		return -ENOMEM;
	for (const char *p = csv;; p++) {
		size_t n = strcspn(p, ",");
		if (cidr_parse(p, n, &l.item[l.n++]) < 0) {
			cidr_list_fini(&l);
			return -EINVAL;
		}
		p += n;
		if (!*p)
			break;
	}
	*ret = l;
	return 0;
}

void cidr_list_fini(struct cidr_list *l)
{
	free(l->item);
	*l = (struct cidr_list){0};
}

bool cidr_list_contains(const struct cidr_list *l, const struct netaddr *a)
{
	uint8_t addr[16];
	if (!to_mapped(a, addr))
		return false;
	for (size_t i = 0; i < l->n; i++) {
		const struct cidr *c = &l->item[i];
		unsigned whole = c->bits / 8, rest = c->bits % 8;
		if (memcmp(addr, c->addr, whole) != 0)
			continue;
		if (rest == 0 || ((addr[whole] ^ c->addr[whole]) & (0xff00u >> rest) & 0xffu) == 0)
			return true;
	}
	return false;
}
