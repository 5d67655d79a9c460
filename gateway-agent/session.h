/*
 * The conversation with a bridge over the uplink: dial and redial as redial.h says, HELLO_ACK →
 * HELLO → WELCOME, then frames both ways; HEARTBEAT, silence, epochs. TELEMETRY goes through a
 * ring, so that what was read while offline is sent later and what was dropped is known.
 *
 * States: WAITING (for the next dial) → DIALLING → OPEN (upgraded; waits for HELLO_ACK, sends
 * HELLO, waits for WELCOME) → READY.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "agent_settings.h"
#include "base/jsonw.h"
#include "base/macros.h"
#include "redial.h"
#include "ring.h"
#include "trust.h"
#include "wire/wire.h"

struct loop;
struct metrics;
struct session;

struct session_ops {
	void (*on_ready)(void *arg, uint64_t max_frame_bytes); /* WELCOME */
	void (*on_end)(void *arg);			       /* was READY, is no more */
	/* server_now_ms: the bridge's clock now. */
	void (*on_command)(void *arg, const struct wire_command *f, int64_t server_now_ms);
	void (*on_cancel)(void *arg, const struct wire_cancel *f);
	void (*on_result_ack)(void *arg, struct span correlation_id);
	/* Writes the array members of HELLO's supported_verbs. */
	void (*put_verbs)(void *arg, struct jsonw *w);
	void (*on_change)(void *arg); /* something that `status` shows */
};

int session_open(struct loop *l, struct metrics *m, const struct agent_settings *s,
		 const struct trust *t, const struct session_ops *ops, void *arg,
		 struct session **ret) MUST_CHECK;
/* Says 1000 and ends for good. */
void session_close(struct session *s);
void session_start(struct session *s);
/* Settings or trust changed. dial_anew: what is open was made with the old ones. */
int session_reload(struct session *s, const struct trust *t, bool dial_anew) MUST_CHECK;

/* What HELLO says; a change while connected dials anew. NULL: not known. */
void session_set_journal(struct session *s, const char *journal_id);
/* What HELLO says may be another now, journal aside: it is said again if so. */
void session_tell_changes(struct session *s);
/* 0; -ENOTCONN not READY; -ENOBUFS. */
int session_send(struct session *s, enum wire_type type, const char *json, size_t n) MUST_CHECK;
int session_audit(struct session *s, struct span record) MUST_CHECK;
/* metrics: the object. Gives it seq and time, sends it or keeps it in the ring. */
void session_telemetry(struct session *s, struct span metrics);
/* What was dropped from the ring and is not declared yet: the next frame declares it. */
struct ring_gap session_take_gap(struct session *s);

struct session_view {
	const char *state; /* waiting, dialling, open, ready */
	const char *url;
	const char *conn_id; /* "" when not connected */
	const char *journal_id;
	uint64_t epoch, reconnects, seq, max_frame_bytes;
	int64_t connected_ms;	 /* wall clock; 0 */
	int64_t next_dial_in_ms; /* -1: not waiting */
	struct redial_end last_end;
	int64_t last_end_ms; /* wall clock; 0: none */
	size_t ring_frames;
	const struct trust_peer *peer;
	const struct redial *link;
};
void session_view(const struct session *s, struct session_view *ret);
bool session_is_ready(const struct session *s);
