/* Gives up, for good, what a verb will not need. */
#pragma once

#include "base/macros.h"

/* From here on only files below these paths (NULL-terminated; those that do not exist are passed
 * over), and the libraries', can be opened for reading, whatever capabilities say. By Landlock: 0
 * also where the kernel has none. -errno. */
int confine_reads(const char *const *paths) MUST_CHECK;
