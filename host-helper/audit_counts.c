/* Counts beside the audit log. See audit_counts.h. */
#include "audit_counts.h"

#include <stdio.h>
#include <string.h>

static struct audit_count *find(struct audit_counts *c, const char *name, const char *outcome)
{
	for (size_t i = 0; i < c->items; i++)
		if (strcmp(c->item[i].name, name) == 0 && strcmp(c->item[i].outcome, outcome) == 0)
			return &c->item[i];
	return NULL;
}

void audit_counts_add(struct audit_counts *c, const char *name, const char *outcome)
{
	struct audit_count *i = find(c, name, outcome);

	if (!i && c->items >= AUDIT_COUNTS_MAX - 1) { /* the last place is for the rest */
		name = outcome = "*";
		i = find(c, name, outcome);
	}
	if (!i) {
		i = &c->item[c->items++];
		snprintf(i->name, sizeof i->name, "%s", name);
		snprintf(i->outcome, sizeof i->outcome, "%s", outcome);
	}
	i->n++;
}

void audit_counts_write(const struct audit_counts *c, struct jsonw *w)
{
	jsonw_uint(w, "from_seq", c->from_seq);
	jsonw_obj(w, "counts");
	for (size_t i = 0; i < c->items; i++) {
		size_t first = 0;

		while (strcmp(c->item[first].name, c->item[i].name) != 0)
			first++;
		if (first < i)
			continue; /* written with the first of its name */
		jsonw_obj(w, c->item[i].name);
		for (size_t k = i; k < c->items; k++)
			if (strcmp(c->item[k].name, c->item[i].name) == 0)
				jsonw_uint(w, c->item[k].outcome, c->item[k].n);
		jsonw_obj_end(w);
	}
	jsonw_obj_end(w);
}
