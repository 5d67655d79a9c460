/* Whether the bridge's own certificate is valid now: OpenSSL serves it all the same, and only
 * agents notice. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* True with the words for it when the first certificate of this PEM file is over or not valid yet.
 * A file that cannot be read is no fault here: whoever loads it says so. */
bool tls_dates_fault(const char *path, char *out, size_t cap);
/* The same as a line of the log. path NULL: none. */
void tls_dates_warn(const char *path);
