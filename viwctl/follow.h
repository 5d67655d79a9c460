/* Sending a command and following its states in agent_commands. Shared by send, logs and lost. */
#pragma once

#include "base/buf.h"
#include "base/ident.h"
#include "viwctl.h"

#define TTL_S_MAX 86400

struct command_out {
	const char *correlation_id; /* NULL: a new UUID is written into id */
	char id[CORRELATION_ID_MAX + 1];
	const char *agent_id, *verb, *params_json;
	long ttl_s;
};

/* XADD viw.commands; CTL_OK, or an exit code after saying why. Fills o->id. */
int command_send(struct ctl *c, struct command_out *o) MUST_CHECK;
/* XADD op=cancel. */
int command_send_cancel(struct ctl *c, const char *correlation_id, const char *agent_id) MUST_CHECK;

struct command_state {
	char status[16]; /* empty: no row yet */
	bool terminal;
	bool has_rc;
	int rc;
	char error_code[64];
	int64_t at_ms[4]; /* queued, offered, accepted, completed; 0: not yet */
};
int command_look(struct ctl *c, const char *correlation_id, struct command_state *ret) MUST_CHECK;
/* What `send --wait` exits with. */
int command_exit_code(const struct command_state *s);
/* Waits until terminal or timeout_ms; prints each new state on stderr when `live`. */
int command_wait(struct ctl *c, const char *correlation_id, int64_t timeout_ms, bool live,
		 struct command_state *ret) MUST_CHECK;
/* Prints the command with its result, as table lines or JSON. CTL_NO: no such command. */
int command_print(struct ctl *c, const char *correlation_id);
/* Names of the first n arguments key=value into one JSON object; "key=@file" reads the value from
 * a file and "key=-" from stdin, so that secrets stay out of argv. CTL_OK or CTL_USAGE. */
int command_params(int argc, char **argv, struct buf *out) MUST_CHECK;
