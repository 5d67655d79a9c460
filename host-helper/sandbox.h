/* What a process gives up: system calls, capabilities, inherited state. */
#pragma once

#include <stdbool.h>

#include "base/macros.h"

/* For the whole tree, scripts included: no new privileges, and a list of system calls that nothing
 * under the helper needs answers EPERM. */
int sandbox_enter(void) MUST_CHECK;

/* Sockets other than AF_UNIX answer EAFNOSUPPORT from here on, in every process below. */
int sandbox_deny_network(void) MUST_CHECK;

/*
 * From here on files can be made, changed and removed below these paths only (NULL-terminated;
 * those that do not exist are passed over), and below /tmp and /var/tmp, by Landlock, in every
 * process below. Modes and owners are not its matter. -EOPNOTSUPP: the kernel has no Landlock.
 */
int sandbox_limit_writes(char *const *paths) MUST_CHECK;
bool sandbox_can_limit_writes(void);

/* Keeps only these capabilities (names, NULL-terminated) of those held, over an execve too, whoever
 * the process is by now. -EINVAL: unknown name. */
int sandbox_keep_capabilities(char *const *names) MUST_CHECK;
/* The number of a capability by name, -1. */
int sandbox_capability(const char *name);
