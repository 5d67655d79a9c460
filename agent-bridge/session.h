/*
 * One agent's connection: its state, its send queue, the frames it must hold while they cannot be
 * taken. Knows no lws, libuv or Redis. Made when the upgrade is accepted, freed when the socket is
 * gone; owned by struct sessions.
 *
 *   CLAIMING ──CLAIM──▶ GREETED ──HELLO──▶ READY
 *      └──────────────────┴──────────────────┴──▶ CLOSING ──▶ GONE
 *
 * CLAIMING: nothing was sent; frames are held. GREETED: HELLO_ACK was sent. READY: WELCOME was
 * sent, commands may follow. CLOSING: the close frame is on its way, frames are ignored.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ident.h"
#include "base/macros.h"
#include "base/netaddr.h"
#include "ring.h"
#include "store.h"
#include "wire/wire.h"

#define SESSION_HELD_ALL_MAX (256u * 1024 * 1024) /* bytes that all sessions may hold */
#define SESSION_HEADROOM     32 /* free bytes before a queued frame, for the WebSocket header */

enum session_state {
	SESSION_CLAIMING,
	SESSION_GREETED,
	SESSION_READY,
	SESSION_CLOSING,
	SESSION_GONE,
	SESSION_STATES
};
const char *session_state_word(enum session_state s);

/* RFC 6455, 7.4.1, and contract 1.2. */
enum session_close_code {
	SESSION_CLOSE_DRAINING = 1001,
	SESSION_CLOSE_BINARY = 1003,
	SESSION_CLOSE_UTF8 = 1007,
	SESSION_CLOSE_POLICY = 1008,
	SESSION_CLOSE_TOO_BIG = 1009,
	SESSION_CLOSE_SUPERSEDED = 4000,
	SESSION_CLOSE_NONCE = 4001,
	SESSION_CLOSE_DENIED = 4003,
	SESSION_CLOSE_REDIS = 4013,
};

enum session_pause {
	SESSION_PAUSE_HELD = 1,	    /* frames wait in s->held */
	SESSION_PAUSE_PRESSURE = 2, /* the store asked for it */
};

struct session_frame { /* queued to be sent */
	struct session_frame *next;
	uint32_t n;
	uint8_t type; /* enum wire_type */
	char bytes[]; /* SESSION_HEADROOM free bytes, then the frame */
};

struct session_held { /* received, not yet taken */
	struct session_held *next;
	size_t n;
	char bytes[];
};

struct session_limits {
	size_t send_msgs, send_bytes, held_bytes;
};

struct session {
	uint64_t sid, epoch;
	void *socket;		     /* ws_server's; NULL once it is gone */
	struct session *prev, *next; /* all of them, in order of sid */
	struct session *sid_next;    /* hash chain by sid */
	struct session *agent_next;  /* hash chain by agent id; claimed ones only */
	enum session_state state;
	uint8_t pause; /* enum session_pause bits */
	bool pause_applied, in_due_close, in_due_pause, in_due_write, want_ping, starved, claimed,
	    dispatched, releasing;
	struct {
		struct session_frame *first, *last;
		size_t n, bytes;
	} out;
	struct {
		struct session_held *first, *last;
		size_t bytes;
		size_t *of_all; /* what all sessions hold */
	} held;
	int64_t connected_ms, seen_ms; /* wall clock */
	int64_t rx_at_ms, ping_due_ms; /* boot clock */
	int64_t stuck_since_ms;	       /* boot clock: output waits since; 0: none */
	int64_t partial_since_ms;      /* boot clock: half a frame since; 0: none */
	size_t beat;		       /* where among all->beats */
	int64_t *violation_ms;	       /* boot clock, the last ones; NULL: none yet */
	unsigned violations;
	struct ring ring, result; /* telemetry; the last RESULT, masked */
	char *version, *site, *journal_id, *fingerprint;
	int close_code;
	const char *close_reason; /* a static word: goes to log, metric, event and peer */
	char agent_id[AGENT_ID_MAX + 1];
	char conn_id[UUID_LEN + 1];
	char ip[NETADDR_TEXT_MAX];
};

/* The one function that changes a state; a move that is not in its table is a bug. */
void session_move(struct session *s, enum session_state to);
/* Decides the close; the socket follows. The first decision stays. */
void session_close(struct session *s, int code, const char *reason);
static inline bool session_is_open(const struct session *s)
{
	return s->state < SESSION_CLOSING;
}
struct store_conn session_conn(const struct session *s);

/* Queues a frame. -ENOBUFS: over a cap, the session is closed as a slow reader; -ENOMEM: the same;
 * -ENOTCONN: closing. */
int session_send(struct session *s, const struct session_limits *l, const struct wire_frame *f);
/* The queue is at most half full. */
bool session_has_room(const struct session *s, const struct session_limits *l);
/* Takes the next frame to send out of the queue, or NULL; the caller frees it. */
struct session_frame *session_next(struct session *s);

/* Keeps a copy for later and pauses reading; at the cap the session is closed 4013. */
void session_hold(struct session *s, const struct session_limits *l, const char *bytes, size_t n);
struct session_held *session_unhold(struct session *s); /* the oldest, or NULL; caller frees */

/* Notes that the peer broke the protocol; true: it was the tenth within a minute. */
bool session_violated(struct session *s, int64_t boot_ms);

/* Replaces text (NULL allowed both ways). -ENOMEM. */
int session_set_text(char **field, struct span text) MUST_CHECK;
/* Frees what it owns but not itself; its ring must be empty. */
void session_fini(struct session *s);
