/* What the files of session share: the conversation. */
#pragma once

#include "session.h"

#include "agent_metrics.h"
#include "base/ident.h"
#include "base/log_limit.h"
#include "crypto/crypto.h"
#include "ring.h"
#include "uplink.h"

enum session_state { WAITING, DIALLING, OPEN, READY, CLOSED };

struct session {
	struct loop *loop;
	struct metrics *metrics;
	const struct agent_settings *cfg;
	const struct session_ops *ops;
	void *arg;
	struct uplink *uplink;
	struct redial link;
	struct wire_decoder *decoder;
	struct loop_timer *dial, *welcome, *tick;
	struct ring ring;
	struct ring_gap declaring; /* told in the next frame */
	char boot_id[UUID_LEN + 1];
	char journal_id[65];
	uint8_t hello_digest[SHA256_BYTES]; /* of the last HELLO */
	enum session_state state;
	uint64_t seq;

	char conn_id[65];
	uint64_t epoch, highest_epoch, max_frame_bytes;
	int64_t stale_since_ms;
	int64_t server_ms, server_boot_ms; /* the bridge's clock at our boot clock */
	int64_t heartbeat_ms, last_rx_ms, last_heartbeat_ms;
	int64_t ready_at_ms, connected_wall_ms; /* boot clock; wall clock */
	uint64_t welcomes;
	unsigned bad_frames;
	struct log_limit refused;
	int64_t bad_since_ms;
	struct redial_end last_end;
	int64_t last_end_wall_ms;
	unsigned same_ends;
	int64_t next_dial_at_ms;
};

/* session.c */
struct metric *session_metric(struct session *s, int id, const char *v1, const char *v2);

/* session_out.c: frames to the bridge. 0 or -errno. */
int session_send_frame(struct session *s, const struct wire_frame *f) MUST_CHECK;
int session_hello(struct session *s, bool changed_only) MUST_CHECK;
void session_flush(struct session *s); /* TELEMETRY that waits */
void session_heartbeat(struct session *s);
