/*
 * The agent's part of a command's life (contract section 3): what was offered, what the helper was
 * asked, the RESULT until RESULT_ACK. Pure logic: frames and answers come in, ops go out; no
 * sockets, no loop. With effects only the helper's answer is an outcome: without one the command
 * is held, and asked for again by the same correlation_id, which the helper's journal answers.
 *
 * States: QUEUED (waits for a slot, the helper or a pause) → RUNNING (helper asked to run) → DONE
 * (RESULT kept until acknowledged). CHECKING: to be refused, but an earlier life of this agent may
 * have run it: the journal is asked first. VOIDING: cancelled or expired: the helper is asked to
 * make sure that it never starts, or says what happened.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"
#include "helper_client.h"
#include "verbs/verbs.h"
#include "wire/wire.h"

struct commands;

#define COMMANDS_MAX 64 /* held at once; more are not taken and will be offered again */

struct commands_config {
	const char *agent_id;
	bool exec_enable;
	const char *allowed_verbs; /* CSV; NULL: all */
	int64_t max_concurrency, cmd_timeout_ms;
	bool helper_configured;
};
struct commands_ops {
	/* One frame to the bridge. Not 0: there is no session or no room; it is sent again later.
	 */
	int (*send)(void *arg, enum wire_type type, const char *json, size_t n);
	bool (*helper_up)(void *arg);
	/* 0: exactly one commands_on_answer follows, later. */
	int (*ask)(void *arg, const struct helper_ask *ask);
	const struct verb *(*find_verb)(void *arg, const char *name); /* NULL: not known (yet) */
	bool (*verbs_known)(void *arg);		     /* the helper has told its verbs */
	void (*wake_at)(void *arg, int64_t boot_ms); /* call commands_tick then */
	void (*finished)(void *arg, const char *status);
	void (*shutdown)(void *arg);
};

int commands_new(const struct commands_config *cfg, const struct commands_ops *ops, void *arg,
		 struct commands **ret) MUST_CHECK;
void commands_free(struct commands *c);
/* After a reload. Texts are copied. */
int commands_configure(struct commands *c, const struct commands_config *cfg) MUST_CHECK;

/* server_now_ms: the bridge's clock now, as told in HELLO_ACK and counted on since; 0: unknown. */
void commands_on_command(struct commands *c, const struct wire_command *f, int64_t server_now_ms);
void commands_on_cancel(struct commands *c, const struct wire_cancel *f);
void commands_on_result_ack(struct commands *c, struct span correlation_id);
/* WELCOME: sends every kept RESULT. max_frame_bytes: largest frame the bridge takes. */
void commands_on_session(struct commands *c, uint64_t max_frame_bytes);
void commands_on_session_end(struct commands *c);
void commands_on_helper(struct commands *c); /* up or down */
/* Another backend, or one trusted anew: what the former gave and the helper was not asked to run
 * yet is not run on its word. If it stands, it is offered again. */
void commands_forget_unstarted(struct commands *c);
/* The helper's journal is another one: what was asked of the old one can never be learned. */
void commands_on_journal_changed(struct commands *c);
void commands_on_answer(struct commands *c, const char *correlation_id,
			const struct wire_helper_reply *reply);
void commands_tick(struct commands *c);
/* No new commands from now on. */
void commands_drain(struct commands *c);

/* A command given on this host (POST /execute); cb gets the RESULT frame, once, or NULL from
 * commands_leave_local. -EEXIST, -EBUSY. */
typedef void (*commands_local_cb)(void *arg, const char *result_json, size_t n);
int commands_local(struct commands *c, const char *correlation_id, const char *verb,
		   struct span args, int64_t ttl_ms, commands_local_cb cb, void *arg) MUST_CHECK;

/* The agent stops: those who wait learn that now, their commands go on in the helper. */
void commands_leave_local(struct commands *c);

struct commands_counts {
	unsigned queued, running, held, results;
};
struct commands_counts commands_counts_of(const struct commands *c);
/* Whether this agent would run it: allowlist and effects. */
bool commands_allows(const struct commands *c, const char *verb, bool effects);
