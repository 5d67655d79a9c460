/* What the files of commands share: a command, the list of them, and the moves between states. */
#pragma once

#include "commands.h"

#include "base/buf.h"
#include "base/ident.h"
#include "base/log_limit.h"

#define POLL_MS	    250
#define POLL_CAP_MS 5000

enum state { QUEUED, RUNNING, CHECKING, VOIDING, DONE, STATES };
enum kind { KIND_UNKNOWN, KIND_ECHO, KIND_SHUTDOWN, KIND_READ_ONLY, KIND_EFFECTS };

struct command {
	struct command *next;
	char correlation_id[CORRELATION_ID_MAX + 1];
	char *verb; /* NULL: only a CANCEL was seen */
	char *args; /* JSON; may hold secrets: wiped */
	enum kind kind;
	enum state state;
	bool asked;	/* a request is at the helper */
	bool sent_once; /* the helper was asked to run it in this life */
	bool told_held; /* in the log */
	bool cancelled;
	enum wire_status cancel_status;
	int64_t deadline_ms; /* boot clock */
	int64_t retry_at_ms, pause_ms;
	const char *refusal; /* CHECKING: the code; static */
	char refusal_msg[200];
	struct buf result; /* DONE: the RESULT frame */
	int64_t resend_at_ms, resend_ms;
	commands_local_cb local_cb;
	void *local_arg;
};

struct commands {
	char *agent_id, *allowed_verbs;
	bool exec_enable, helper_configured;
	int64_t max_concurrency, cmd_timeout_ms;
	const struct commands_ops *ops;
	void *arg;
	struct nonces *nonces, *nonces_before; /* both are looked at */
	struct command *first;
	unsigned count;
	bool session, draining, pumping, pump_again;
	size_t max_frame;
	struct log_limit limit;
};

/* commands.c: the list and the pump */
void commands_move(struct commands *c, struct command *m, enum state to);
struct command *commands_find(struct commands *c, struct span id);
/* NULL: max are held, or no memory. */
struct command *commands_add(struct commands *c, struct span id, unsigned max);
void commands_drop(struct commands *c, struct command *m);
void commands_wipe_args(struct command *m);
void commands_pump(struct commands *c); /* every command takes the steps it can */
void commands_ack(struct commands *c, struct command *m);
bool commands_may_log(struct commands *c); /* a line that a frame of the bridge causes */

/* commands_policy.c */
enum kind commands_kind_of(struct commands *c, const char *verb);
void commands_judge(struct commands *c,
		    struct command *m); /* sets the refusal, or leaves it NULL */

/* commands_outcome.c: each makes the RESULT, keeps and sends it */
void commands_send_result(struct commands *c, struct command *m);
void commands_finish(struct commands *c, struct command *m, struct wire_result r);
void commands_finish_error(struct commands *c, struct command *m, const char *code,
			   const char *msg);
void commands_finish_unknown(struct commands *c, struct command *m, const char *msg);
/* It never started and never will. */
void commands_finish_unstarted(struct commands *c, struct command *m);
/* A reply that is an outcome. Built-in verbs answer with data: it travels as stdout. */
void commands_finish_from_reply(struct commands *c, struct command *m,
				const struct wire_helper_reply *r, bool data_is_output);
