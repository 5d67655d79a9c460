/* Compiler attributes and small idioms used everywhere. */
#pragma once

#include <stddef.h>

#define MUST_CHECK			__attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, first)		__attribute__((format(printf, fmt, first)))
#define UNUSED				__attribute__((unused))
#define ARRAY_LEN(a)			(sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* So many bytes from at on come into the CPU's cache, if they can be read, while it goes on. */
#define CPU_WARM(at, bytes)                                             \
	do {                                                            \
		const char *warm_ = (const char *)(at);                 \
		for (size_t i_ = 0; i_ < (bytes); i_ += CPU_LINE_BYTES) \
			__builtin_prefetch(warm_ + i_);                 \
	} while (0)
#define CPU_LINE_BYTES 64

/* Runs fn(&variable) when the variable leaves its scope. */
#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* Hands ownership out of a CLEANUP variable: evaluates to p and leaves p NULL. */
#define TAKE(p)                            \
	__extension__({                    \
		__typeof__(p) take_ = (p); \
		(p) = NULL;                \
		take_;                     \
	})

/* free() for CLEANUP: static void CLEANUP(freep) char *s. */
void freep(void *pp);
/* close() for CLEANUP on an int descriptor; -1 is ignored. Keeps errno. */
void closep(int *fd);
