#include "allowlist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int compare_ids(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

void allowlist_fini(struct allowlist *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->id[i]);
	free((void *)l->id);
	*l = (struct allowlist){0};
}

int allowlist_parse(const char *csv, struct allowlist *ret)
{
	struct allowlist l = {0};
	size_t most = 1;

	for (const char *p = csv ? csv : ""; *p; p++)
		most += *p == ',';
	l.id = calloc(most, sizeof(*l.id));
	if (!l.id)
		return -ENOMEM;
	for (const char *p = csv ? csv : ""; *p;) {
		size_t n = strcspn(p, ",");

		if (n) {
			l.id[l.n] = strndup(p, n);
			if (!l.id[l.n]) {
				allowlist_fini(&l);
				return -ENOMEM;
			}
			l.n++;
		}
		p += n + (p[n] != '\0');
	}
	qsort((void *)l.id, l.n, sizeof(*l.id), compare_ids);
	*ret = l;
	return 0;
}

bool allowlist_has(const struct allowlist *l, const char *agent_id)
{
	return l->n == 0 || bsearch(&agent_id, l->id, l->n, sizeof(*l->id), compare_ids) != NULL;
}
