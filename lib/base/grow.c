#include "base/grow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int grow(void *array, size_t n, size_t *cap, size_t first, size_t item_bytes)
{
	size_t more = *cap ? *cap * 2 : first;
	void *item, *larger;

	if (n < *cap)
		return 0;
	memcpy(&item, array, sizeof item);
	larger = reallocarray(item, more, item_bytes);
	if (!larger)
		return -ENOMEM;
	memcpy(array, &larger, sizeof larger);
	*cap = more;
	return 0; /* cppcheck-suppress memleak; it is in *array */
}
