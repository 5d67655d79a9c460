/* What the files of uplink share: the connection. */
#pragma once

#include "uplink.h"

#include <libwebsockets.h>
#include <openssl/ssl.h>

#include "base/buf.h"
#include "base/netaddr.h"
#include "proxy.h"

#define ADDRESSES_MAX 8

enum phase { IDLE, RESOLVING, CONNECTING, IN_TLS, REQUESTED, OPEN, ENDED };

struct out_frame {
	struct out_frame *next;
	size_t n;
	unsigned char bytes[]; /* LWS_PRE, then the text */
};

struct uplink {
	struct loop *loop;
	char *agent_id, *shared_secret;
	const struct uplink_ops *ops;
	void *arg;
	const struct trust *trust;
	SSL_CTX *ssl_ctx;
	struct lws_context *lws;
	struct lws_vhost *direct, *proxied;
	struct loop_timer *open_timer, *address_timer;
	struct loop_later *later; /* delivers on_end */
	bool closing;
	int destroy_step;

	/* the dial */
	enum phase phase;
	uintptr_t serial; /* of this dial's wsi: callbacks of older ones are ignored */
	const struct redial_backend *backend;
	struct loop_resolve *resolve; /* under way; NULL: none */
	struct proxy proxy;
	struct netaddr address[ADDRESSES_MAX];
	size_t addresses, next_address;
	struct lws *wsi;
	bool in_callback, want_close;
	int alert;		 /* TLS alert the backend sent; -1: none */
	unsigned long tls_error; /* why OpenSSL gave up; 0: it did not */
	struct trust_peer peer;
	struct redial_end end;
	bool has_end;
	struct buf rx;
	struct out_frame *out, **out_tail;
	size_t out_bytes, out_msgs;
};

/* uplink.c. The first reason of an end stays; ended: the wsi is gone, or never was. */
void uplink_note_end(struct uplink *u, enum redial_cause cause, int code, const char *detail);
void uplink_ended(struct uplink *u);

/* uplink_events.c: what libwebsockets and OpenSSL call */
int uplink_on_lws(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in,
		  size_t len);
int uplink_on_cert_wanted(SSL *ssl, void *uplink);
void uplink_on_ssl_info(const SSL *ssl, int where, int ret);
