/* The registry: built-in verbs and every manifest of a folder, sorted by name. Owns its verbs. */
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/settings.h"
#include "verbs/verbs_private.h"

struct verbs {
	struct verb **item;
	size_t n;
};

void verbs_fault_add(struct verbs_faults *f, const char *file, const char *key, const char *fmt,
		     ...)
{
	struct verbs_fault *grown = realloc(f->item, (f->n + 1) * sizeof *grown);
	va_list ap;

	if (!grown)
		return;
	f->item = grown;
	struct verbs_fault *x = &grown[f->n];
	*x = (struct verbs_fault){.file = strdup(file), .key = strdup(key)};
	va_start(ap, fmt);
	if (vasprintf(&x->text, fmt, ap) < 0)
		x->text = NULL;
	va_end(ap);
	if (x->file && x->key && x->text) {
		f->n++;
		return;
	}
	free(x->file);
	free(x->key);
	free(x->text);
}

void verbs_faults_fini(struct verbs_faults *f)
{
	for (size_t i = 0; i < f->n; i++) {
		free(f->item[i].file);
		free(f->item[i].key);
		free(f->item[i].text);
	}
	free(f->item);
	*f = (struct verbs_faults){0};
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(struct verb *const *)a)->name, (*(struct verb *const *)b)->name);
}

int verbs_add(struct verbs *vs, struct verb *v)
{
	if (verbs_find(vs, v->name))
		return -EEXIST;
	struct verb **grown = realloc(vs->item, (vs->n + 1) * sizeof *grown);
	if (!grown)
		return -ENOMEM;
	vs->item = grown;
	vs->item[vs->n++] = v;
	qsort(vs->item, vs->n, sizeof *vs->item, by_name);
	return 0;
}

void verbs_free(struct verbs *v)
{
	if (!v)
		return;
	for (size_t i = 0; i < v->n; i++)
		verb_free(v->item[i]);
	free(v->item);
	free(v);
}

int verbs_set_folder(struct verbs *v, const char *folder)
{
	for (size_t i = 0; i < v->n; i++) {
		struct verb *verb = v->item[i];
		char *path;
		if (!verb->builtin || verb->local)
			continue;
		if (asprintf(&path, "%s/%s", folder, strrchr(verb->exec, '/') + 1) < 0)
			return -ENOMEM;
		free(verb->exec);
		verb->exec = path;
	}
	return 0;
}

const struct verb *verbs_find(const struct verbs *v, const char *name)
{
	for (size_t lo = 0, hi = v->n; lo < hi;) {
		size_t mid = (lo + hi) / 2;
		int c = strcmp(name, v->item[mid]->name);
		if (c == 0)
			return v->item[mid];
		if (c < 0)
			hi = mid;
		else
			lo = mid + 1;
	}
	return NULL;
}

size_t verbs_count(const struct verbs *v)
{
	return v->n;
}

const struct verb *verbs_at(const struct verbs *v, size_t i)
{
	return v->item[i];
}

/* Faults go to `faults`; only a machine failure is returned. */
static int load_file(struct verbs *vs, const char *path, enum verbs_trust trust,
		     struct verbs_faults *faults)
{
	struct verb *v = NULL;
	char why[256];
	struct buf text;

	if (trust == VERBS_TRUST_ROOT && trust_check_path(path, TRUST_FILE, why, sizeof why) < 0) {
		verbs_fault_add(faults, path, "(file)", "%s", why);
		return 0;
	}
	buf_init(&text, VERB_MANIFEST_MAX_BYTES);
	int r = file_read(path, &text);
	if (r < 0)
		verbs_fault_add(faults, path, "(file)", "cannot be read: %s", strerror(-r));
	else if ((r = verb_parse(text.data ? text.data : "", text.len, path, &v, faults)) == 0) {
		r = verbs_add(vs, v);
		if (r == -EEXIST)
			verbs_fault_add(faults, path, "verb",
					"%s is already a built-in verb or another file's", v->name);
		if (r < 0)
			verb_free(v);
	}
	buf_fini(&text);
	return r == -ENOMEM ? r : 0;
}

static int is_manifest(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return n > 5 && d->d_name[0] != '.' && strcmp(d->d_name + n - 5, ".json") == 0;
}

static int load_dir(struct verbs *vs, const char *dir, enum verbs_trust trust,
		    struct verbs_faults *faults)
{
	struct dirent **name = NULL;
	char why[256];
	int r = 0;

	if (trust == VERBS_TRUST_ROOT && trust_check_path(dir, TRUST_DIR, why, sizeof why) < 0) {
		verbs_fault_add(faults, dir, "(folder)", "%s", why);
		return 0;
	}
	int n = scandir(dir, &name, is_manifest, alphasort);
	if (n < 0) {
		verbs_fault_add(faults, dir, "(folder)", "cannot be read: %s", strerror(errno));
		return 0;
	}
	for (int i = 0; i < n; i++) {
		char *path = NULL;
		if (r == 0 && asprintf(&path, "%s/%s", dir, name[i]->d_name) < 0)
			r = -ENOMEM;
		if (r == 0)
			r = load_file(vs, path, trust, faults);
		free(path);
		free(name[i]);
	}
	free(name);
	return r;
}

int verbs_load(const char *dir, enum verbs_trust trust, bool partial, struct verbs **ret,
	       struct verbs_faults *faults)
{
	struct verbs *v = calloc(1, sizeof *v);
	size_t before = faults->n;

	*ret = NULL;
	if (!v)
		return -ENOMEM;
	int r = verbs_add_builtins(v);
	if (r == 0 && dir)
		r = load_dir(v, dir, trust, faults);
	if (r == 0 && faults->n > before)
		r = -EINVAL;
	if (r == 0 || (r == -EINVAL && partial))
		*ret = v;
	else
		verbs_free(v);
	return r;
}

void verbs_check(const char *dir, const char *setting, bool starts_anyway,
		 struct settings_faults *ret)
{
	struct verbs_faults found = {0};
	struct verbs *v = NULL;
	int r = verbs_load(dir, VERBS_TRUST_ANY, false, &v, &found);

	for (size_t i = 0; r < 0 && i < found.n; i++)
		(starts_anyway ? settings_warning_add
			       : settings_fault_add)(ret, setting, "%s: %s: %s", found.item[i].file,
						     found.item[i].key, found.item[i].text);
	verbs_faults_fini(&found);
	verbs_free(v);
}
