#include "verbs_program.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int verbs_program_folder(char *out, size_t cap)
{
	ssize_t n = readlink("/proc/self/exe", out, cap);
	char *slash = n > 0 && (size_t)n < cap ? memrchr(out, '/', (size_t)n) : NULL;

	if (!slash)
		return n < 0 ? -errno : -ENAMETOOLONG;
	*slash = 0;
	return 0;
}

char *verbs_program_put_cpu(const struct cpu_sample *s)
{
	char *text = NULL;

	return asprintf(&text, "%" PRIu64 " %" PRIu64, s->busy, s->total) < 0 ? NULL : text;
}

struct cpu_sample verbs_program_get_cpu(const char *text)
{
	struct cpu_sample s;

	if (!text || sscanf(text, "%" SCNu64 " %" SCNu64, &s.busy, &s.total) != 2)
		return (struct cpu_sample){0};
	return s;
}

int verbs_program_parse_ports(const char *text, int *ret_first, int *ret_last)
{
	int first, last, used = 0;

	if (sscanf(text, "%5d-%5d%n", &first, &last, &used) != 2 || text[used] || first < 1 ||
	    last > 65535 || first > last)
		return -EINVAL;
	*ret_first = first;
	*ret_last = last;
	return 0;
}
