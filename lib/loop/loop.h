/*
 * The event loop of bridge, agent and the workers' HTTP thread: libuv behind our own names.
 * Objects that own handles are closed, never freed by scope: x_close(), then the memory goes in
 * the last close callback. Callbacks run on the loop's thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/macros.h"
#include "base/netaddr.h"

struct loop;
int loop_new(struct loop **ret) MUST_CHECK;
/* Runs until loop_stop or nothing is left. */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);
/* Runs what is closing dry, then frees. Bugs: asserts when handles stay open after 2 s. */
void loop_free(struct loop *l);
/* uv_loop_t, for lib/redis and for libwebsockets' foreign loop only. */
void *loop_native(struct loop *l);
/* clock_boot_ms cached at the start of this turn. */
int64_t loop_now_ms(const struct loop *l);

/* For the next for_ms, turns begin at least us microseconds apart (it sleeps before it looks for
 * events): each then finds several, and wakes, polls and what is done once a turn are shared.
 * Readable urgent descriptors end the sleep. */
void loop_pace(struct loop *l, unsigned us, int64_t for_ms);
/* How far apart at most while it hurries: 500 at first. */
void loop_pace_hurried(struct loop *l, unsigned us);
unsigned loop_pace_us(const struct loop *l); /* as it is now, hurried or not; 0: not paced */
/* by 1, later by -1: between the two somebody waits for this loop, and turns are as far apart as
 * loop_pace_hurried says. */
void loop_hurry(struct loop *l, int by);
void loop_hurry_once(struct loop *l); /* the next turn only */
void loop_hurry_for(struct loop *l, int64_t ms);
#define LOOP_ANSWER_MS 100 /* who connected, asked or has a command is heard soon for so long */
/* by 1, later by -1: between the two nobody should open a descriptor, since libwebsockets, while it
 * is destroyed, closes a number of its own twice. */
void loop_hold_opens(struct loop *l, int by);
bool loop_opens_held(const struct loop *l);

/* Timers fire once unless every_ms > 0. The struct is heap-owned by the loop module. */
struct loop_timer;
typedef void (*loop_cb)(void *arg);
int loop_timer_new(struct loop *l, loop_cb cb, void *arg, struct loop_timer **ret) MUST_CHECK;
void loop_timer_start(struct loop_timer *t, int64_t after_ms, int64_t every_ms);
void loop_timer_stop(struct loop_timer *t);
bool loop_timer_active(const struct loop_timer *t);
void loop_timer_close(struct loop_timer *t); /* NULL is fine */
/* How far apart to look at parts of n, so that each comes once in every_ms and nobody waits for
 * all of them. */
int64_t loop_part_ms(size_t n, size_t part, int64_t every_ms);

/* Called once at the end of the current loop turn (after I/O); coalesces repeated asks. */
struct loop_later;
int loop_later_new(struct loop *l, loop_cb cb, void *arg, struct loop_later **ret) MUST_CHECK;
void loop_later_ask(struct loop_later *x);
void loop_later_close(struct loop_later *x);

/* Wakes the loop from another thread; coalesces. */
struct loop_wake;
int loop_wake_new(struct loop *l, loop_cb cb, void *arg, struct loop_wake **ret) MUST_CHECK;
void loop_wake_send(struct loop_wake *w); /* any thread, async-signal-safe */
void loop_wake_close(struct loop_wake *w);

/* Signals: the handler gets the number. */
int loop_on_signal(struct loop *l, int signum, void (*cb)(void *arg, int signum),
		   void *arg) MUST_CHECK;

/* A descriptor watched for readiness; errors are reported as readable|writable so that the
 * owner's read sees them (trap 20). The owner closes fd after loop_poll_close's `closed`. */
enum { LOOP_READ = 1, LOOP_WRITE = 2 };
struct loop_poll;
int loop_poll_new(struct loop *l, int fd, void (*cb)(void *arg, int events), void *arg,
		  struct loop_poll **ret) MUST_CHECK;
int loop_poll_set(struct loop_poll *p, int events) MUST_CHECK;
/* What can be read here is worth a turn of its own in a paced loop, or not. Four at once are; more
 * are as all others. */
void loop_poll_urgent(struct loop_poll *p, bool is);
void loop_poll_close(struct loop_poll *p, loop_cb closed, void *arg);

/* Byte stream over a unix socket, for the agent's talk with the helper. */
struct loop_stream;
struct loop_stream_ops {
	void (*on_connect)(void *arg, int error); /* 0 or -errno */
	void (*on_bytes)(void *arg, const char *bytes, size_t n);
	void (*on_end)(void *arg, int error); /* peer closed (0) or -errno; called once */
};
int loop_stream_connect_unix(struct loop *l, const char *path, const struct loop_stream_ops *ops,
			     void *arg, struct loop_stream **ret) MUST_CHECK;
/* Copies; -ENOBUFS when more than max_queued_bytes would wait (default 1 MiB). */
int loop_stream_write(struct loop_stream *s, const void *bytes, size_t n) MUST_CHECK;
void loop_stream_close(struct loop_stream *s); /* no callback after this */

/* Runs fn on a worker thread, done on the loop. */
int loop_work(struct loop *l, void (*fn)(void *arg), void (*done)(void *arg), void *arg) MUST_CHECK;

/* Resolves host asynchronously (getaddrinfo in the pool). addrs are valid during the callback, and
 * ret until it. */
struct loop_resolve;
int loop_resolve(struct loop *l, const char *host, uint16_t port,
		 void (*cb)(void *arg, int error, const struct netaddr *addr, size_t n), void *arg,
		 struct loop_resolve **ret) MUST_CHECK;
/* No callback any more. getaddrinfo(3) cannot be called back: a thread may go on with it. */
void loop_resolve_forget(struct loop_resolve *q);
/* Such a thread there is. exit(3) would wait for it (libuv joins its threads): leave by _exit(2).
 */
bool loop_resolver_hangs(void);

/* A file's or folder's change (inotify through uv_fs_event), debounced by 200 ms. */
struct loop_watch;
int loop_watch_new(struct loop *l, const char *path, loop_cb cb, void *arg,
		   struct loop_watch **ret) MUST_CHECK;
void loop_watch_close(struct loop_watch *w);
