/*
 * Redis for loop programs: one connection with reconnect, timeouts, scripts. hiredis stays inside.
 *
 * A command's callback is called exactly once: with a reply, or with NULL when its outcome is
 * unknown (connection lost or timed out after sending) or it was never sent (see why). Repeat
 * idempotently. Between up and down callbacks the connection has answered HELLO/AUTH/SELECT/PING.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/macros.h"
#include "wire/json_scan.h" /* struct span */

/* ---- replies (owned by the library, valid during the callback or until redis_sync's next call)
 * ---- */
struct redis_reply;
enum redis_type { REDIS_NIL, REDIS_STR, REDIS_INT, REDIS_ARR, REDIS_STATUS, REDIS_ERR };
enum redis_type redis_type(const struct redis_reply *r);
struct span redis_str(const struct redis_reply *r); /* STR, STATUS, ERR text; else absent */
int64_t redis_int(const struct redis_reply *r);	    /* INT, or a STR that is a number; else 0 */
size_t redis_len(const struct redis_reply *r);	    /* ARR */
const struct redis_reply *redis_at(const struct redis_reply *r, size_t i);

/* What an error reply means for the caller. */
enum redis_error_class {
	REDIS_E_NONE,
	REDIS_E_NOGROUP,
	REDIS_E_BUSYGROUP,
	REDIS_E_NOSCRIPT,
	REDIS_E_OOM,
	REDIS_E_READONLY,
	REDIS_E_LOADING,
	REDIS_E_MISCONF,
	REDIS_E_AUTH,
	REDIS_E_BUSY,
	REDIS_E_OTHER
};
enum redis_error_class redis_error_class(const struct redis_reply *r); /* NONE unless REDIS_ERR */
/* OOM, READONLY, LOADING, MISCONF, BUSY, MASTERDOWN…: wait and repeat. */
bool redis_error_is_passing(enum redis_error_class c);
/* A key of another type, a right that is missing: somebody has to mend it. */
bool redis_error_is_lasting(enum redis_error_class c);

/* ---- URL ---- */
/* redis://[user:password@]host[:port][/db], unix:///path[?db=n], rediss:// refused where hiredis
 * has no TLS. -EINVAL with a text naming what is wrong (no password in it). */
int redis_url_check(const char *url, char *msg, size_t msg_cap) MUST_CHECK;

/* ---- loop connection ---- */
struct loop;
struct redis;
struct redis_ops {
	void (*on_up)(void *arg);
	void (*on_down)(void *arg, const char *why); /* also at each failed attempt */
};
struct redis_limits {
	size_t max_in_flight;	    /* commands; 0 = 16384 */
	size_t max_in_flight_bytes; /* request bytes; 0 = 64 MiB */
	int64_t timeout_ms;	    /* oldest unanswered command; 0 = 5000 */
	/* Commands of redis_commit may wait this long for company, unless the loop's turns are as
	 * far apart already, or half as far; the few who wait for an answer of redis_cmd hurry it.
	 * 0: neither. */
	int64_t gather_ms;
	bool urgent; /* its answers do not wait for the pace of the loop */
};
int redis_open(struct loop *l, const char *url, const struct redis_limits *limits,
	       const struct redis_ops *ops, void *arg, struct redis **ret) MUST_CHECK;
/* Pending callbacks get NULL before it returns; no callback after. */
void redis_close(struct redis *r);
bool redis_is_up(const struct redis *r);
/* Drops the connection and makes it anew: the name may lead elsewhere by now (a failover). */
void redis_reconnect(struct redis *r, const char *why);
size_t redis_in_flight(const struct redis *r);
size_t redis_in_flight_bytes(const struct redis *r); /* of requests unanswered */
/* Age of the oldest unanswered command, 0 when none. */
int64_t redis_oldest_ms(const struct redis *r);

typedef void (*redis_cb)(void *arg, const struct redis_reply *reply_or_null);
/* -ENOTCONN when down, -ENOBUFS at a limit: cb is then not called. cb may be NULL. Commands sent
 * in one loop turn leave in one write. */
int redis_cmd(struct redis *r, redis_cb cb, void *arg, size_t argc,
	      const struct span *argv) MUST_CHECK;
/* printf-like for the rare ones: words are split at spaces of fmt, %s and %b(span), %d(int),
 * %lld (int64) fill whole words or parts. */
int redis_cmdf(struct redis *r, redis_cb cb, void *arg, const char *fmt, ...) MUST_CHECK;

/* Hot path: one RESP command written in place. Reserve at most max_bytes (same errors), write, then
 * commit what was written at once; committing 0 bytes gives the room back. */
int redis_reserve(struct redis *r, size_t max_bytes, char **ret_at) MUST_CHECK;
void redis_commit(struct redis *r, size_t n, redis_cb cb, void *arg);

/* A script: sent by EVALSHA; NOSCRIPT is answered by EVAL of the body, unseen by the caller. */
struct redis_script {
	const char *name, *body; /* embedded at build time */
	char sha1[41];		 /* filled on first use */
};
int redis_eval(struct redis *r, struct redis_script *s, redis_cb cb, void *arg, size_t keys,
	       size_t argc, const struct span *argv) MUST_CHECK;

/* ---- blocking connection, for workers and tools ---- */
struct redis_sync;
/* Not connected yet; the first call connects. */
int redis_sync_new(const char *url, int64_t timeout_ms, struct redis_sync **ret) MUST_CHECK;
void redis_sync_free(struct redis_sync *r);
/* NULL reply with -ENOTCONN/-ETIMEDOUT/-errno in *ret_error when the connection failed (it is
 * dropped and made anew by the next call). The reply lives until the next call. */
const struct redis_reply *redis_sync_cmd(struct redis_sync *r, int *ret_error, size_t argc,
					 const struct span *argv);
/* The same in two halves, so that the caller works while the server does: as many receives as there
 * were successful sends, in their order, before any other call. */
int redis_sync_send(struct redis_sync *r, size_t argc, const struct span *argv) MUST_CHECK;
const struct redis_reply *redis_sync_receive(struct redis_sync *r, int *ret_error);
/* A receive in small steps that never waits, 64 KiB at most: 1 and the reply; 0: some of it came,
 * call again; -EAGAIN: nothing is there, redis_sync_fd turns readable when there is; -errno. */
int redis_sync_take(struct redis_sync *r, const struct redis_reply **ret) MUST_CHECK;
int redis_sync_fd(const struct redis_sync *r);
const struct redis_reply *redis_sync_cmdf(struct redis_sync *r, int *ret_error, const char *fmt,
					  ...);
/* Longer wait for one blocking command (XREADGROUP BLOCK). 0: back to the default. */
void redis_sync_set_timeout(struct redis_sync *r, int64_t timeout_ms);
/* A longer reply, or one that takes more than twice as much memory, fails with -EMSGSIZE and ends
 * the connection, so that what a peer put into Redis does not decide how much is used. 0: no limit.
 */
void redis_sync_set_reply_max(struct redis_sync *r, size_t bytes);
/* Connects also to a server that refuses PING and writes for its full disk (MISCONF): for asking it
 * what is wrong. */
void redis_sync_bear_misconf(struct redis_sync *r);
const char *redis_sync_error(const struct redis_sync *r); /* text of the last failure */
