/*
 * The bridge as a whole: which part calls which. Owns all of them. The embedded fields are for
 * lifecycle.c and endpoints.c; nobody else looks in.
 *
 *   OPEN ──SIGTERM──▶ DRAINING (1001 spread over DRAIN_S) ──▶ FLUSHING (Redis) ──▶ CLOSED
 */
#pragma once

#include "bridge_settings.h"
#include "denylist.h"
#include "dispatch.h"
#include "frames.h"
#include "handshake.h"
#include "http/http.h"
#include "router.h"
#include "sessions.h"
#include "store.h"
#include "ws_server.h"

struct loop;
struct loop_timer;
struct metrics;
struct endpoints;

enum bridge_phase { BRIDGE_OPEN, BRIDGE_DRAINING, BRIDGE_FLUSHING, BRIDGE_CLOSED };

struct bridge {
	struct loop *loop;
	struct bridge_settings *settings;
	char id[65];
	int64_t started_ms; /* boot clock */
	struct metrics *metrics;
	struct sessions sessions;
	struct store *store;
	struct dispatch *dispatch;
	struct router *router;
	struct denylist *denylist;
	struct handshake *handshake;
	struct frames *frames;
	struct endpoints *endpoints;
	struct ws_server *ws;
	struct http_server *internal; /* with INTERNAL_BIND */
	struct loop_timer *tick;      /* every second */
	struct loop_timer *beat;      /* part of the sessions */
	size_t max_conn, max_sockets; /* MAX_CONN, or what the limit of open files leaves */
	bool pressed;
	size_t most_sessions, last_sessions; /* since memory was given back; a second ago */
	unsigned trim_in_s;
	struct bridge_event *unsent, *unsent_last; /* disconnects the store had no room for */
	struct tls_watch *tls_watch;		   /* with native TLS */
	/* lifecycle.c */
	enum bridge_phase phase;
	struct loop_timer *drain_timer;
	int64_t drain_from_ms;
	int64_t answers_until_ms; /* from there: how long HTTP answers under way are waited for */
	int64_t drain_told_ms;	  /* from there: when close frames last waited for their turn */
	size_t drain_total, drain_closed;
	void (*on_closed)(void *arg);
	void *on_closed_arg;
};

/* An exit code of enum program_exit; everything was logged when it is not PROGRAM_OK. The settings
 * stay the caller's and must outlive the bridge. */
int bridge_open(struct loop *l, struct bridge_settings *s, struct bridge **ret) MUST_CHECK;
void bridge_free(struct bridge *b); /* after the loop ran dry */

/* After settings changed. */
void bridge_configure(struct bridge *b);

/* ---- bridge_sockets.c ---- */
extern const struct ws_server_ops bridge_socket_ops; /* arg: the bridge */
/* Offers unsent disconnect events again. */
void bridge_send_events(struct bridge *b);
void bridge_drop_events(struct bridge *b);
