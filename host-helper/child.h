/* The first process of a run, between fork and execve. */
#pragma once

#include "supervisor.h"

struct child_fds {
	int in, out, err; /* become 0, 1, 2 */
	int go;		  /* a byte arrives when the start is recorded; end of file: do not start */
	int fault;	  /* close-on-exec; gets a struct child_fault when execve was not reached */
};

struct child_fault {
	int error;     /* errno */
	char step[32]; /* what failed */
};

_Noreturn void child_main(const struct job *job, const struct child_fds *fds);
/* Fills the templates; NULL-terminated, first element the program. NULL: no memory. */
char **child_build_argv(const struct verb *v, const struct verb_args *a);
