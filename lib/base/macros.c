/* The two cleanup functions of macros.h. */
#include "base/macros.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void freep(void *pp)
{
	void *p;
	memcpy(&p, pp, sizeof p); /* pp points at a pointer of any type */
	free(p);
}

void closep(int *fd)
{
	if (*fd < 0)
		return;
	int saved = errno;
	close(*fd);
	errno = saved;
	*fd = -1;
}
