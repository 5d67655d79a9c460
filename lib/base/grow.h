/* Arrays that double. What bounds them is with their owner. */
#pragma once

#include <stddef.h>

#include "base/macros.h"

/* Makes room for one item more than n in the array that *array (a pointer to its pointer) leads to,
 * of *cap items; `first` are made at first. -ENOMEM: nothing has changed. */
int grow(void *array, size_t n, size_t *cap, size_t first, size_t item_bytes) MUST_CHECK;
