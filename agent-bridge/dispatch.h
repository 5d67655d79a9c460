/*
 * Commands and ownership: CLAIM, OFFER, RESULT, EXPIRE and the bridge's lease, each one atomic
 * Lua script under redis/. Sits between router/Redis and the session side; knows sessions only
 * by sid (never reused), so a reply for a socket that is gone is simply dropped.
 *
 * Walk of a command: router.c ROUTEs it into mbox.<agent> and hints wake.<bridge> → dispatch
 * OFFERs while the window has room → ops.send_command → COMMAND_ACK: dispatch_accepted →
 * RESULT: dispatch_result → RESULT script → ops.on_result_stored → RESULT_ACK.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"
#include "store.h"
#include "wire/wire.h"

struct dispatch;

enum dispatch_claim {
	DISPATCH_CLAIMED,
	DISPATCH_NONCE_SEEN,	 /* another bridge saw it: close 4001 */
	DISPATCH_DECOMMISSIONED, /* 4003 */
	DISPATCH_REVOKED,	 /* 4003 */
	DISPATCH_UNAVAILABLE,	 /* Redis away: 4013 */
};
struct dispatch_command { /* one mailbox entry, valid during the call */
	const char *correlation_id, *agent_id, *verb, *issued_by, *signature;
	struct span args;
	int64_t issued_at_ms, expires_at_ms, ttl_remaining_ms;
};
enum dispatch_result_fate {
	DISPATCH_RESULT_STORED,	   /* RESULT_ACK */
	DISPATCH_RESULT_AGAIN,	   /* was finished already: RESULT_ACK, nothing stored */
	DISPATCH_RESULT_NOT_YOURS, /* ERROR not_yours; a dead letter */
	DISPATCH_RESULT_UNKNOWN,   /* no such command is known: RESULT_ACK, a dead letter */
	DISPATCH_RESULT_TOO_MANY,  /* the same, too often: ERROR unknown_command, nothing kept */
};
/* Implemented by the session side. A sid that is gone is ignored. */
struct dispatch_ops {
	/* redis_ms: the clock of Redis, by which commands expire. */
	void (*on_claimed)(void *arg, uint64_t sid, enum dispatch_claim result, uint64_t epoch,
			   int64_t redis_ms);
	/* 0 queued to the socket; -EAGAIN its send queue is full (offered again later); -ENOENT
	 * gone. */
	int (*send_command)(void *arg, uint64_t sid, const struct dispatch_command *c);
	int (*send_cancel)(void *arg, uint64_t sid, const char *correlation_id, const char *reason);
	void (*on_result_stored)(void *arg, uint64_t sid, const char *correlation_id,
				 enum dispatch_result_fate fate);
	/* The masked RESULT, for `last-result`. */
	void (*on_result_masked)(void *arg, uint64_t sid, struct span result_json);
	/* Superseded (4000), decommissioned (4003)… */
	void (*close_session)(void *arg, uint64_t sid, int code, const char *reason);
};
struct dispatch_config {
	const char *prefix, *bridge_id;
	const char *verbs_dir; /* for masking; NULL: by name only */
	int64_t max_in_flight, max_skew_s;
};

int dispatch_open(struct loop *l, struct metrics *m, struct store *s,
		  const struct dispatch_config *cfg, const struct dispatch_ops *ops, void *arg,
		  struct dispatch **ret) MUST_CHECK;
/* Before store_close, which gives the last answers. */
void dispatch_close(struct dispatch *d);

/* After the upgrade was accepted. Answers on_claimed. fingerprint hex or NULL. nonce_until_ms:
 * wall time until which the nonce must be remembered. */
int dispatch_claim(struct dispatch *d, uint64_t sid, const struct store_conn *c, const char *nonce,
		   int64_t nonce_until_ms, const char *fingerprint) MUST_CHECK;
/* HELLO taken and WELCOME queued: offers may start. journal_id NULL: an agent without a journal.
 * May be called again when a later HELLO names another journal. */
void dispatch_ready(struct dispatch *d, uint64_t sid, const char *journal_id);
/* The socket is gone. Releases the ownership if it is still ours. */
void dispatch_gone(struct dispatch *d, uint64_t sid);
void dispatch_accepted(struct dispatch *d, uint64_t sid, const char *correlation_id);
/* Copies what it needs. -ENOBUFS: pause that socket and offer it again. */
int dispatch_result(struct dispatch *d, uint64_t sid, const struct wire_result *r) MUST_CHECK;
/* An agent's mailbox may have something new. */
void dispatch_poke(struct dispatch *d, const char *agent);
/* The socket's send queue has room again. */
void dispatch_writable(struct dispatch *d, uint64_t sid);

struct dispatch_counts {
	uint64_t in_flight, waiting;
};
struct dispatch_counts dispatch_counts_of(const struct dispatch *d, uint64_t sid);
/* Commands that may be offered only once results-writer has looked them up. */
uint64_t dispatch_waiting_for_ledger(const struct dispatch *d);
/* Reads the verb manifests again; false: they have faults, the old ones stay. */
bool dispatch_reload(struct dispatch *d);
