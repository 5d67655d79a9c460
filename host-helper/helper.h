/* The dispatcher's state, and the seams between its files. One process, one thread, no blocking. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "audit.h"
#include "audit_counts.h"
#include "base/buf.h"
#include "crypto/crypto.h"
#include "crypto/nonces.h"
#include "health.h"
#include "host_helper_settings.h"
#include "journal.h"
#include "loop.h"
#include "verbs/verbs.h"
#include "wire/wire.h"

#define HELPER_CONN_IN_FLIGHT 64
#define HELPER_SKEW_MS	      60000
#define HELPER_LIFETIME_MS    60000
#define HELPER_DEADLINE_MS    (24LL * 3600 * 1000)

struct conn;
struct run;

struct helper {
	struct host_helper_settings *cfg;
	struct loop loop;
	struct verbs *verbs;
	struct journal journal;
	struct audit audit;
	struct audit_counts audit_counts;
	struct nonces *nonces;
	int lock;      /* of the state folder */
	int nonce_log; /* nonces outlive a restart */
	int64_t nonce_log_since;
	struct wire_decoder *decoder;
	struct buf secret;
	struct watch listener, signals, inotify;
	uid_t *uid; /* who may connect */
	size_t uids;
	struct conn *conns;		 /* newest first */
	size_t conn_count, queued_bytes; /* replies not yet read */
	struct run *runs;
	uint64_t next_conn_id;
	double rate_tokens;
	int64_t rate_at_ms;
	struct cpu_sample cpu, cpu_older; /* about a second apart */
	int64_t started_boot_ms, aged_at_ms, synced_at_ms;
	bool owns_cgroup, owns_children, had_orphans;
	bool listener_short; /* of descriptors: nothing was accepted since */
};

/* One request that passed authentication, while it is being answered. */
struct request {
	struct conn *conn;
	const struct wire_helper_request *m;
	char correlation_id[CORRELATION_ID_MAX + 1];
	char agent_id[AGENT_ID_MAX + 1];
	char verb[129];
	char op[17];
};

/* listen.c */
/* Accepts again when a want of descriptors had stopped it. */
void listen_tick(struct helper *h);
int listen_open(struct helper *h) MUST_CHECK;
int listen_load_uids(struct helper *h) MUST_CHECK;
bool listen_uid_allowed(const struct helper *h, uid_t uid);

/* conn.c */
struct conn *conn_find(struct helper *h, uint64_t id);
uint64_t conn_id(const struct conn *c);
const struct ucred *conn_peer(const struct conn *c);
void conn_accept(struct helper *h, int fd, const struct ucred *peer);
/* Frames and queues one reply; drops the connection when its queue is over its cap. */
void conn_send(struct helper *h, struct conn *c, const struct buf *json);
void conn_close_after_reply(struct conn *c);
/* One request more or fewer unanswered on it; false when there are too many. */
bool conn_begin(struct conn *c);
void conn_end(struct conn *c);
void conn_tick(struct helper *h);
/* Drops those whose uid is not allowed any more. */
void conn_drop_refused(struct helper *h);
void conn_close_all(struct helper *h);

/* request.c: one line as received, without its newline. */
void request_handle(struct helper *h, struct conn *c, const char *line, size_t n);
/* A line longer than any request may be. */
void request_refuse_long(struct helper *h, struct conn *c);

/* dispatch.c: an authentic, fresh request. */
void dispatch_request(struct helper *h, struct request *q);

/* reply.c */
struct reply_to {
	uint64_t conn_id;
	struct ucred peer;
	char correlation_id[CORRELATION_ID_MAX + 1];
	char agent_id[AGENT_ID_MAX + 1];
	char verb[65];
	char op[17];
	char args_hash[17]; /* keyed, short: equal requests can be recognised in the audit log */
	int64_t received_boot_ms;
};
void reply_to_request(const struct request *q, struct reply_to *ret);
/* code NULL: ok. Each writes the audit record and sends. */
void reply_error(struct helper *h, const struct reply_to *to, const char *code, const char *msg);
void reply_data(struct helper *h, const struct reply_to *to, const struct buf *data);
/* state NULL: answer to run; else also data.state. */
void reply_outcome(struct helper *h, const struct reply_to *to, const struct outcome *o,
		   bool replayed, const char *state);

/* run.c */
struct job;
/* Forks a supervisor; takes over args and secrets of the job. */
int run_start(struct helper *h, struct job *job, const struct reply_to *to) MUST_CHECK;
/* The active run, void or settling of that command, or NULL. */
struct run *run_find(struct helper *h, const char *correlation_id);
const char *run_digest(const struct run *r);
bool run_is_void(const struct run *r);
/* Answers when it ends. -ENOSPC when too many wait. */
int run_wait(struct helper *h, struct run *r, const struct reply_to *to) MUST_CHECK;
/* Runs that go on, those of an earlier helper too; verb NULL: all. */
size_t run_count(const struct helper *h, const char *verb);
/* Creates the VOID file in a process of its own, then answers. */
int run_start_void(struct helper *h, const struct reply_to *to) MUST_CHECK;
/* A run of an earlier helper: waits for its supervisor. */
int run_adopt(struct helper *h, const struct journal_entry *e,
	      const struct reply_to *to) MUST_CHECK;
/* Takes up, at the start, whatever runs an earlier helper left going. */
int run_adopt_all(struct helper *h) MUST_CHECK;
/* INTENT, no DONE, no supervisor: makes its processes dead, then answers outcome_unknown. */
int run_settle(struct helper *h, const struct journal_entry *e,
	       const struct reply_to *to) MUST_CHECK;
/* Syncs the audit log in a process of its own; then answers hello (`to` NULL: nobody waits). */
int run_start_sync(struct helper *h, const struct reply_to *to) MUST_CHECK;
void run_start_ageing(struct helper *h);
int run_watch_journal(struct helper *h) MUST_CHECK;
void run_tick(struct helper *h);
void run_forget_all(struct helper *h);

/* dispatch.c, for others */
struct jsonw;
#define DIGEST_MISMATCH_MSG "this correlation_id belongs to another verb or other arguments"
int dispatch_write_checkpoint(const struct helper *h, struct buf *out) MUST_CHECK;
/* checkpoint NULL: the audit log could not be synced. */
void dispatch_answer_hello(struct helper *h, const struct reply_to *to,
			   const struct buf *checkpoint);
/* Answers run, query or void from a journal entry. */
void dispatch_answer(struct helper *h, const struct reply_to *to, const struct journal_entry *e);
void dispatch_write_verbs(const struct verbs *verbs, struct jsonw *w);
