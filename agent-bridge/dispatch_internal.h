/*
 * What the files of dispatch share. A holding is this bridge's hold on one agent through one
 * connection; struct session, of the socket side, is known here by its sid alone.
 */
#pragma once

#include "dispatch.h"
#include "map.h"
#include "ops.h"
#include "ratelimit.h"

#include "base/log.h"
#include "base/metrics.h"
#include "loop/loop.h"
#include "verbs/verbs.h"

#define DISPATCH_CLOSE_SUPERSEDED 4000
#define DISPATCH_LEDGER_FIRST_MS  20
/* Twice the largest frame: our own encoding may be longer. */
#define DISPATCH_RESULT_MAX_BYTES ((size_t)32 << 20)

/* A command sent on this connection and not answered. */
struct slot {
	char cid[CORRELATION_ID_MAX + 1];
	bool commanded, accepted;
	bool seen;	      /* in the answer of a full OFFER */
	int64_t cancelled_ms; /* when CANCEL was sent last; 0 never */
};

enum holding_state {
	HOLDING_CLAIMING, /* CLAIM under way */
	HOLDING_OWNED,	  /* ours; HELLO not yet seen */
	HOLDING_READY,	  /* offers may be made */
};

struct holding {
	struct map_link by_sid, by_agent;
	struct holding *next, *prev; /* all sessions, for the periodic check */
	uint64_t sid, epoch;
	enum holding_state state;
	bool gone_while_claiming;
	bool offering;	    /* OFFER under way */
	bool wanted, again; /* another OFFER is due; with what was offered already */
	bool blocked;	    /* the socket's queue is full: dispatch_writable will come */
	bool ledger_waits;  /* results-writer is to look up what comes next */
	bool reclaiming;
	struct slot *slot;
	size_t slots, slots_cap;
	uint64_t left; /* commands in the mailbox, as last seen */
	char *agent, *conn, *owner /* "bridge|epoch|conn" */, *journal;
};

struct dispatch {
	struct loop *loop;
	struct store *store;
	const struct dispatch_ops *ops;
	void *arg;
	struct dispatch_config cfg;
	char window[24];
	struct verbs *verbs;
	struct wire_decoder *decoder;
	struct map by_sid, by_agent;
	struct holding *first;
	struct holding *cursor; /* where the periodic check goes on */
	struct store_part part;
	struct loop_timer *check, *retry, *ledger;
	int64_t ledger_ms;   /* until the next OFFER of those that wait for results-writer */
	size_t result_bytes; /* of RESULTs that are not stored yet */
	uint64_t results_open;
	struct ratelimit *dead_letters; /* by agent */
	size_t calls;			/* answers still to come; they keep the memory alive */
	bool closed;
	struct metric *m_in_flight, *m_waiting, *m_dispatch;
};

/* Pieces of an answer's callback: the session may be gone by then. */
struct dispatch_call {
	struct dispatch *d;
	uint64_t sid;
	int64_t sent_ms;
	bool again; /* OFFER of all that is open */
};
struct dispatch_call *dispatch_call_new(struct dispatch *d, uint64_t sid);
void dispatch_call_free(struct dispatch_call *c); /* NULL is fine */
void dispatch_hold(struct dispatch *d);
void dispatch_unhold(struct dispatch *d); /* may free d when it is closed */

struct holding *dispatch_find(const struct dispatch *d, uint64_t sid);
struct holding *dispatch_find_agent(const struct dispatch *d, const char *agent);
/* dispatch_find_agent finds it no more. */
void dispatch_forget_agent(struct dispatch *d, struct holding *s);
void dispatch_set_left(struct dispatch *d, struct holding *s, uint64_t left);
/* OFFER now, or as soon as the one under way is answered or Redis is back. */
void dispatch_want_offer(struct dispatch *d, struct holding *s, bool again);
/* All at once; or the next of so many parts that all are asked about every five seconds: d->check's
 * callback, arg the dispatch, which starts the timer again. */
void dispatch_check_all(struct dispatch *d);
void dispatch_check_next(void *arg);
void dispatch_close_superseded(struct dispatch *d, struct holding *s);
/* Redis does not know that the session owns its agent: assert it, or learn that it does not. */
void dispatch_reclaim(struct dispatch *d, struct holding *s);
void dispatch_retry_soon(struct dispatch *d);
/* An OFFER's answer: whether commands wait until results-writer has looked them up. */
void dispatch_ledger_waits(struct dispatch *d, uint64_t sid, bool waits);
void dispatch_ledger_ask_again(void *arg); /* a timer's callback, arg the dispatch */

struct slot *dispatch_slot_find(struct holding *s, const char *cid);
struct slot *dispatch_slot_add(struct dispatch *d, struct holding *s, const char *cid);
void dispatch_slot_remove(struct dispatch *d, struct holding *s, const char *cid);
