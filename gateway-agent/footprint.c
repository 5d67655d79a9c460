/* See footprint.h. */
#include "footprint.h"

#include <link.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void footprint_stay_small(void)
{
	(void)mallopt(M_ARENA_MAX, 1);
	(void)mallopt(M_TRIM_THRESHOLD, 65536);
	(void)mallopt(M_MMAP_THRESHOLD, 65536);
	(void)setenv("UV_THREADPOOL_SIZE", "1", 1);
}

/* A loaded segment without PF_W was never written, not even by the dynamic linker (RELRO lies in
 * a PF_W segment): elf(5). So MADV_DONTNEED loses nothing: madvise(2). */
static int drop_object(struct dl_phdr_info *o, size_t size, void *arg)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	size_t i;

	(void)size, (void)arg;
	if (strstr(o->dlpi_name, "vdso"))
		return 0;
	for (i = 0; i < o->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &o->dlpi_phdr[i];
		uintptr_t from = o->dlpi_addr + p->p_vaddr, to = from + p->p_memsz;

		if (p->p_type != PT_LOAD || p->p_flags & PF_W)
			continue;
		from &= ~(page - 1);
		to &= ~(page - 1); /* the last page may hold the next segment's begin */
		if (to > from)
			(void)madvise((void *)from, to - from, MADV_DONTNEED);
	}
	return 0;
}

void footprint_trim(void)
{
	(void)malloc_trim(0);
	(void)dl_iterate_phdr(drop_object, NULL);
}
