/*
 * The WebSocket to a bridge: the only file of the agent that knows libwebsockets. One connection
 * at a time: dial, open, text both ways, end. Every uplink_dial is answered by exactly one on_end,
 * whatever happens in between; on_end never comes from inside a call of this module.
 *
 * Resolving is asynchronous; each address is tried in turn; a CONNECT proxy is used when the
 * environment names one. Nothing is retried here (redial.h decides).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"
#include "redial.h"
#include "trust.h"

struct loop;
struct uplink;

#define UPLINK_MAX_FRAME_BYTES	262144
#define UPLINK_SEND_QUEUE_BYTES 1048576
#define UPLINK_OPEN_MS		15000 /* from dialling to the upgrade */
#define UPLINK_ADDRESS_MS	5000  /* for one address when there are more */

struct uplink_config {
	const char *agent_id, *shared_secret /* NULL: no HMAC */;
};
struct uplink_ops {
	void (*on_open)(void *arg); /* upgraded */
	void (*on_text)(void *arg, const char *text, size_t n);
	void (*on_drained)(void *arg); /* the send queue is empty again */
	void (*on_end)(void *arg, const struct redial_end *end);
};

int uplink_open(struct loop *l, const struct uplink_config *cfg, const struct uplink_ops *ops,
		void *arg, struct uplink **ret) MUST_CHECK;
/* Hangs up at once, no on_end any more. Run the loop dry before loop_free. */
void uplink_close(struct uplink *u);
/* After a reload; for the next dial. Takes no ownership: t must live until replaced. */
int uplink_set_trust(struct uplink *u, const struct trust *t) MUST_CHECK;
int uplink_set_secret(struct uplink *u, const char *shared_secret) MUST_CHECK;

/* b must stay until on_end. -EBUSY while another is open. */
int uplink_dial(struct uplink *u, const struct redial_backend *b) MUST_CHECK;
/* Copies; -ENOTCONN not open, -ENOBUFS the queue is full. */
int uplink_send(struct uplink *u, const char *text, size_t n) MUST_CHECK;
/* Ends it with this close code (0: no close frame); on_end gets cause and detail. */
void uplink_hang_up(struct uplink *u, int close_code, enum redial_cause cause, const char *detail);
bool uplink_is_open(const struct uplink *u);
/* What the backend showed in the last TLS handshake. */
const struct trust_peer *uplink_peer(const struct uplink *u);
