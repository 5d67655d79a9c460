/* Tells when one of a few files was replaced or rewritten; once for several changed together. */
#pragma once

#include <stddef.h>

#include "base/macros.h"

struct loop;
struct tls_watch;

/* paths: NULL ones are skipped; at most 8; text must outlive it. */
int tls_watch_open(struct loop *l, const char *const *paths, size_t n, void (*changed)(void *arg),
		   void *arg, struct tls_watch **ret) MUST_CHECK;
void tls_watch_close(struct tls_watch *w);
