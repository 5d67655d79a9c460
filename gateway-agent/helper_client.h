/*
 * The agent's end of the helper's socket (contract section 5): connects, reconnects, frames with
 * the MAC, keeps several requests in flight and matches replies by correlation_id. A reply whose
 * MAC is wrong ends the connection. `hello` is asked after connecting and then every 15 s, so that
 * a frozen helper is noticed too.
 *
 * Owned by the agent; every ask gets exactly one answer, on the loop, never from inside
 * helper_client_ask.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"
#include "wire/wire.h"

struct loop;
struct helper_client;

enum helper_op { HELPER_RUN, HELPER_QUERY, HELPER_VOID };

struct helper_ask {
	enum helper_op op;
	const char *correlation_id, *verb /* RUN */;
	struct span args;    /* RUN */
	int64_t deadline_ms; /* wall clock; 0: none (read-only verbs) */
	int64_t
	    give_up_ms; /* after this long the answer is NULL; 0: as long as the connection lives */
};
/* reply NULL: the helper went away or did not answer in time; what it did is not known. */
typedef void (*helper_answer)(void *arg, const char *correlation_id,
			      const struct wire_helper_reply *reply);

struct helper_client_config {
	const char *socket, *secret /* NULL: no helper, always down */, *agent_id;
};
struct helper_client_ops {
	/* hello was answered. data: its data object (journal_id, verbs), valid during the call. */
	void (*on_up)(void *arg, struct span data);
	void (*on_down)(void *arg, const char *why);
};

int helper_client_open(struct loop *l, const struct helper_client_config *cfg,
		       const struct helper_client_ops *ops, void *arg,
		       struct helper_client **ret) MUST_CHECK;
/* What is asked and not answered gets NULL, as when the connection breaks. */
void helper_client_answer_lost(struct helper_client *h);
void helper_client_close(struct helper_client *h);
bool helper_client_is_up(const struct helper_client *h);
const char *helper_client_why_down(const struct helper_client *h);
/* -ENOTCONN down, -EEXIST that id is in flight already, -ENOBUFS too many, -EMSGSIZE, -ENOMEM. */
int helper_client_ask(struct helper_client *h, const struct helper_ask *ask, helper_answer cb,
		      void *arg) MUST_CHECK;

/* One request as a line ready to send; for `check` and tests. */
int helper_client_encode(const char *secret, const char *agent_id, const char *op,
			 const struct helper_ask *ask, struct buf *out) MUST_CHECK;
/* One line without its newline: checks the MAC, then points ret_json into it. -EBADMSG. */
int helper_client_open_line(const char *secret, const char *line, size_t n,
			    struct span *ret_json) MUST_CHECK;
