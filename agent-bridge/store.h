/*
 * What the bridge writes to Redis: stream entries and HTTP-posted commands. Owns the bridge's two
 * redis connections (data, and one blocked on wake hints). Knows nothing of sockets or sessions.
 *
 * Redis slow or away: hello, events and results wait in a capped queue here and are never
 * dropped (at its cap the sessions that feed it are paused); telemetry waits in a capped ring, the
 * oldest is dropped and counted. on_pressure(true) asks the socket side to stop reading,
 * on_pressure(false) to go on.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"
#include "wire/json_scan.h"

struct loop;
struct metrics;
struct redis_reply;
struct store;

struct store_config {
	const char *redis_url, *prefix, *bridge_id;
	int64_t telemetry_maxlen, telemetry_max_bytes; /* bounds of the telemetry stream */
};
struct store_ops {
	void (*on_up)(void *arg);
	void (*on_down)(void *arg, const char *why);
	void (*on_pressure)(void *arg, bool pressed);
};
/* Who a frame came from. Text lives as long as the call. */
struct store_conn {
	const char *agent_id, *conn_id, *ip;
	uint64_t epoch;
};

int store_open(struct loop *l, struct metrics *m, const struct store_config *cfg,
	       const struct store_ops *ops, void *arg, struct store **ret) MUST_CHECK;
/* Writes out what waits (bounded by wait_ms), then done(arg). */
void store_drain(struct store *s, int64_t wait_ms, void (*done)(void *arg), void *arg);
void store_close(struct store *s);
/* Tells the socket side when Redis is behind, or no more. Not every answer looks by itself: called
 * every second too. */
void store_check_pressure(struct store *s);
/* What Redis can refuse for good (a key of another type, a right taken away) while it takes the
 * rest. */
enum store_refused {
	STORE_REFUSED_TELEMETRY,
	STORE_REFUSED_LEADING,
	STORE_REFUSED_ROUTING,
	STORE_REFUSED_ENDING,
	STORE_REFUSED_CLAIM,
	STORE_REFUSED_OFFER,
	STORE_REFUSED_CHECK,
	STORE_REFUSED_LEASE,
	STORE_REFUSED_WAKE,
	STORE_REFUSED_POST,
	STORE_REFUSALS
};
/* Logs it where reply says so, a few lines a minute each; agent may be NULL. Away or unwilling for
 * now is told elsewhere. */
void store_tell_refused(struct store *s, enum store_refused what, const char *agent,
			const struct redis_reply *reply);
/* That, and store_note_passing where it asks to wait. */
void store_note_refused(struct store *s, enum store_refused what, const char *agent,
			const struct redis_reply *reply);
bool store_is_up(const struct store *s);
const char *store_down_reason(const struct store *s); /* "" when up */

/* ---- for dispatch and router ---- */
#include "scripts.h"

struct redis *store_redis(struct store *s); /* the data connection */
/* A part of the bridge that follows the connection. on_hint: one text of wake.<bridge>. */
struct store_part {
	void (*on_up)(void *arg);
	void (*on_hint)(void *arg, struct span hint);
	void (*on_moved)(void *arg); /* other connections to Redis should be made anew */
	void *arg;
	struct store_part *next; /* ours */
};
void store_join(struct store *s, struct store_part *p);
void store_leave(struct store *s, struct store_part *p);

/* Kept until Redis has answered for good: repeated after a lost connection and while Redis answers
 * OOM, READONLY, LOADING, MISCONF, BUSY; so it must be safe to repeat. done gets NULL only when the
 * store closes. Copies. -ENOBUFS at the cap. */
int store_keep_script(struct store *s, enum script script, size_t argc, const struct span *argv,
		      redis_cb done, void *arg) MUST_CHECK;
int store_keep_cmd(struct store *s, size_t argc, const struct span *argv, redis_cb done,
		   void *arg) MUST_CHECK;
/* An answer that asks to wait: readiness says why, writes are probed until it passes. */
void store_note_passing(struct store *s, enum redis_error_class c);
/* XADD to dead_letters; lost only at the cap. */
void store_dead_letter(struct store *s, const char *stream, struct span entry_id,
		       const char *reason, struct span payload);
/* How many offers this bridge has made, as it was told last, in text: what Redis must not forget.
 */
struct span store_offers(const struct store *s);
/* Since the parts were told that it is up, the server was lost or a replica (not OOM, MISCONF,
 * BUSY): until they have been told so again, after on_up. */
bool store_may_have_forgotten(const struct store *s);
/* An answer of lib/doubt.lua: the number, and 1 when Redis has forgotten some. */
void store_note_offers(struct store *s, const struct redis_reply *offers,
		       const struct redis_reply *lost);
const char *store_prefix(const struct store *s);
const char *store_bridge_id(const struct store *s);
/* The wall clock as the contract writes it, of this loop turn; valid until the next call. */
struct span store_now_text(struct store *s);

/* Hot path. frame is the JSON as received. 0 taken (or shed and counted). */
int store_telemetry(struct store *s, const struct store_conn *c, struct span frame) MUST_CHECK;
/* -ENOBUFS: at the cap, pause that socket and offer it again. */
int store_hello(struct store *s, const struct store_conn *c, struct span frame) MUST_CHECK;
/* event: connected, disconnected, audit. frame may be absent, reason NULL. */
int store_event(struct store *s, const struct store_conn *c, const char *event, const char *reason,
		struct span frame) MUST_CHECK;

/* A command posted over HTTP. cb(arg, result, retry_after_s) once. */
enum store_command_result {
	STORE_COMMAND_QUEUED,	   /* new, or the same content again: 202 */
	STORE_COMMAND_CONFLICT,	   /* 409 */
	STORE_COMMAND_OFFLINE,	   /* connected to no bridge: 404 where asked */
	STORE_COMMAND_FULL,	   /* 429: QUEUE_MAX wait for this agent */
	STORE_COMMAND_UNAVAILABLE, /* 503 */
};
struct store_command {
	const char *agent_id, *correlation_id, *command, *params_json, *op /* run|cancel */,
	    *issued_by;
	int64_t ttl_s;
	bool require_connected;
	int64_t queue_max;
};
int store_post_command(struct store *s, const struct store_command *c,
		       void (*cb)(void *arg, enum store_command_result r), void *arg) MUST_CHECK;
