/*
 * What a frame of an agent makes happen: decode, check against the session's state, hand on to
 * store and dispatch, answer. One table of handlers; one place that maps refusals to ERROR, count
 * and close. No lws, no libuv, no Redis types.
 */
#pragma once

#include "bridge_settings.h"
#include "dispatch.h"
#include "sessions.h"

struct metrics;
struct frames;

struct frames_config {
	struct metrics *metrics;
	struct sessions *sessions;
	struct store *store;
	struct dispatch *dispatch;
	const struct bridge_settings *settings; /* live: reloads show */
	struct session_limits limits;
};
int frames_new(const struct frames_config *cfg, struct frames **ret) MUST_CHECK;
void frames_free(struct frames *f);

/* One whole text frame. What cannot be taken now is held by the session, which stops reading. */
void frames_receive(struct frames *f, struct session *s, const char *json, size_t n,
		    int64_t boot_ms);
/* Offers what is held again, and goes on reading when all of it was taken. */
void frames_release(struct frames *f, struct session *s, int64_t boot_ms);

/* CLAIM succeeded: HELLO_ACK goes out, held frames are taken. */
void frames_greet(struct frames *f, struct session *s, int64_t boot_ms, int64_t redis_ms);
/* A frame was sent: counts. */
void frames_sent(struct frames *f, const struct session_frame *q);

/* What dispatch asks to be sent. As struct dispatch_ops says. */
int frames_send_command(struct frames *f, struct session *s, const struct dispatch_command *c);
int frames_send_cancel(struct frames *f, struct session *s, const char *correlation_id,
		       const char *reason);
void frames_send_result_fate(struct frames *f, struct session *s, const char *correlation_id,
			     enum dispatch_result_fate fate);
