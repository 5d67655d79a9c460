/* Addresses as text: host:port, [v6]:port, CIDR lists. No name resolution. */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/macros.h"

#define NETADDR_TEXT_MAX 64 /* "[ffff:…]:65535" and its NUL */

struct netaddr {
	struct sockaddr_storage ss;
	socklen_t len;
};

/* "0.0.0.0:8082", "[::1]:0", ":8082" (any v4). -EINVAL. */
int netaddr_parse_hostport(const char *s, struct netaddr *ret) MUST_CHECK;
/* Address without port; IPv4-mapped IPv6 is shown as IPv4. out holds NETADDR_TEXT_MAX bytes. */
void netaddr_format_ip(const struct netaddr *a, char *out);
void netaddr_format_hostport(const struct netaddr *a, char *out);
bool netaddr_is_loopback(const struct netaddr *a);
uint16_t netaddr_port(const struct netaddr *a);
/* Who is counted as one peer: an IPv4 address, mapped or not, or an IPv6 /64. 0: another family. */
uint64_t netaddr_peer_key(const struct netaddr *a);

struct cidr {
	uint8_t addr[16]; /* IPv4 as mapped */
	unsigned bits;	  /* 0-128 */
};
struct cidr_list {
	struct cidr *item;
	size_t n;
};
/* CSV of CIDRs or bare addresses; host bits set or any fault: -EINVAL. Empty: n = 0. */
int cidr_list_parse(const char *csv, struct cidr_list *ret) MUST_CHECK;
void cidr_list_fini(struct cidr_list *l);
bool cidr_list_contains(const struct cidr_list *l, const struct netaddr *a);
