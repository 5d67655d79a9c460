/*
 * See settings.h. Loading goes row by row: find() picks the source of highest precedence and gives
 * its text and its name for faults, store() turns text into the field. settings_show.c prints.
 */
#include "base/settings.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/netaddr.h"
#include "base/settings_file.h"
#include "base/utf8.h"

#define NAME_MAX_BYTES	       160
#define TEXT_MAX_BYTES_DEFAULT 4096
#define FILE_MAX_BYTES	       262144

struct loader {
	const struct settings_spec *spec;
	char *const *envp;
	void *cfg;
	struct settings_faults *faults;
	struct settings_pairs pairs;
	const char *path; /* of the file, for faults */
	void (*on_file)(void *arg, const char *path);
	void *on_file_arg;
};

/* Where a value came from. text is owned and may be secret. */
struct source {
	char *text;
	char where[512];
	bool array;
};

/* ---- faults ---- */

PRINTF_LIKE(4, 0)
static void add(struct settings_fault **list, size_t *n, const char *setting, const char *fmt,
		va_list ap)
{
	struct settings_fault f = {.setting = strdup(setting)};
	if (vasprintf(&f.text, fmt, ap) < 0)
		f.text = NULL;
	struct settings_fault *grown = realloc(*list, (*n + 1) * sizeof *grown);
	if (!grown || !f.setting || !f.text)
		abort(); /* at start, without memory for one line: nothing left to say */
	grown[(*n)++] = f;
	*list = grown;
}

void settings_fault_add(struct settings_faults *f, const char *setting, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	add(&f->item, &f->n, setting, fmt, ap);
	va_end(ap);
}

void settings_warning_add(struct settings_faults *f, const char *setting, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	add(&f->warning, &f->warnings, setting, fmt, ap);
	va_end(ap);
}

static void list_fini(struct settings_fault *list, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		free(list[i].setting);
		free(list[i].text);
	}
	free(list);
}

void settings_faults_fini(struct settings_faults *f)
{
	list_fini(f->item, f->n);
	list_fini(f->warning, f->warnings);
	*f = (struct settings_faults){0};
}

/* ---- fields ---- */

static void *field_of(const struct setting *row, void *cfg)
{
	return (char *)cfg + row->offset;
}

static bool is_text(const struct setting *row)
{
	return row->kind != SETTING_KIND_BOOL && row->kind != SETTING_KIND_INT;
}

static bool may_be_file(const struct setting *row)
{
	return row->kind == SETTING_KIND_SECRET || row->kind == SETTING_KIND_URL;
}

static void wipe_free(char *text)
{
	if (text)
		explicit_bzero(text, strlen(text));
	free(text);
}

static size_t max_bytes(const struct setting *row)
{
	return row->max > 0 ? (size_t)row->max : TEXT_MAX_BYTES_DEFAULT;
}

static bool parse_bool(const char *text, bool *ret)
{
	static const char *const yes[] = {"true", "1", "yes", "on"};
	static const char *const no[] = {"false", "0", "no", "off"};
	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
			*ret = strcasecmp(text, yes[i]) == 0;
			return true;
		}
	}
	return false;
}

static bool parse_int(const struct setting *row, const char *text, int64_t *ret)
{
	const char *digits = text + (*text == '-' || *text == '+');
	if (*digits == '\0' || digits[strspn(digits, "0123456789")] != '\0')
		return false;
	errno = 0;
	long long v = strtoll(text, NULL, 10);
	if (errno || ((row->min || row->max) && (v < row->min || v > row->max)))
		return false;
	*ret = v;
	return true;
}

static bool is_word_of(const char *words, const char *text)
{
	size_t len = strlen(text);
	for (const char *p = words; p && *p;) {
		size_t n = strcspn(p, "|");
		if (n == len && memcmp(p, text, n) == 0)
			return true;
		p += n + (p[n] == '|');
	}
	return false;
}

static bool has_control(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return true;
	return false;
}

/* What is wrong with text for this row, as a remedy; NULL when it is right. static text. */
static const char *check_text(const struct setting *row, const char *text)
{
	struct netaddr a;
	if (row->kind == SETTING_KIND_SECRET)
		return NULL; /* PEM and binary-looking secrets are fine */
	if (!utf8_is_valid(text, strlen(text)) || has_control(text))
		return "must be UTF-8 text without control bytes";
	if (row->kind == SETTING_KIND_ADDR && netaddr_parse_hostport(text, &a) < 0)
		return "must be address:port, as 127.0.0.1:8082 or [::1]:8082; names are not "
		       "resolved";
	if (row->kind == SETTING_KIND_URL && !strstr(text, "://"))
		return "must be a URL, as scheme://user:password@host:port/path";
	return NULL;
}

static void fault_int(struct loader *l, const struct setting *row, const struct source *s)
{
	if (row->min || row->max)
		settings_fault_add(
		    l->faults, s->where,
		    "must be a whole number from %" PRId64 " to %" PRId64 "%s%s, not "
		    "\"%.64s\"",
		    row->min, row->max, row->unit ? " " : "", row->unit ? row->unit : "", s->text);
	else
		settings_fault_add(l->faults, s->where, "must be a whole number, not \"%.64s\"",
				   s->text);
}

static bool store_scalar(struct loader *l, const struct setting *row, const struct source *s)
{
	if (row->kind == SETTING_KIND_BOOL) {
		if (parse_bool(s->text, field_of(row, l->cfg)))
			return true;
		settings_fault_add(l->faults, s->where, "must be true or false, not \"%.64s\"",
				   s->text);
	} else {
		if (parse_int(row, s->text, field_of(row, l->cfg)))
			return true;
		fault_int(l, row, s);
	}
	return false;
}

static bool store_text(struct loader *l, const struct setting *row, struct source *s)
{
	size_t n = strlen(s->text);
	const char *why = check_text(row, s->text);
	if (n > max_bytes(row)) {
		settings_fault_add(l->faults, s->where,
				   "is %zu bytes long; at most %zu are allowed", n, max_bytes(row));
	} else if (why && may_be_file(row)) {
		settings_fault_add(l->faults, s->where, "%s", why);
	} else if (why) {
		settings_fault_add(l->faults, s->where, "%s, not \"%.64s\"", why, s->text);
	} else if (row->kind == SETTING_KIND_ENUM && !is_word_of(row->unit, s->text)) {
		settings_fault_add(l->faults, s->where, "must be one of %s, not \"%.64s\"",
				   row->unit, s->text);
	} else if (s->array && row->kind != SETTING_KIND_CSV) {
		settings_fault_add(l->faults, s->where, "takes one value, not an array");
	} else {
		*(char **)field_of(row, l->cfg) = TAKE(s->text);
		return true;
	}
	return false;
}

/* True when the field was set. */
static bool store(struct loader *l, const struct setting *row, struct source *s)
{
	return is_text(row) ? store_text(l, row, s) : store_scalar(l, row, s);
}

/* ---- sources ---- */

static const char *env_get(char *const *envp, const char *name)
{
	size_t n = strlen(name);
	for (; envp && *envp; envp++)
		if (strncmp(*envp, name, n) == 0 && (*envp)[n] == '=')
			return *envp + n + 1;
	return NULL;
}

static void full_name(const struct settings_spec *spec, const struct setting *row,
		      const char *suffix, char *out)
{
	snprintf(out, NAME_MAX_BYTES, "%s_%s%s", spec->prefix, row->name, suffix);
}

static void file_name(const struct setting *row, const char *suffix, char *out)
{
	snprintf(out, NAME_MAX_BYTES, "%s%s", row->name, suffix);
	for (; *out; out++)
		*out = (char)tolower((unsigned char)*out);
}

/* 1: found; 0: not there; -1: at fault, which was told. */
static int read_referred(struct loader *l, const struct setting *row, const char *path,
			 struct source *s)
{
	struct buf b;
	if (l->on_file)
		l->on_file(l->on_file_arg, path);
	buf_init(&b, max_bytes(row) + 2); /* and its newline */
	int r = file_read_secret(path, &b);
	if (r == 0 && memchr(b.data, '\0', b.len))
		r = -EILSEQ;
	s->text = r == 0 ? strdup(b.data) : NULL;
	if (r == 0 && !s->text)
		r = -ENOMEM;
	buf_wipe(&b);
	buf_fini(&b);
	if (r < 0) {
		settings_fault_add(l->faults, s->where, "%s: %s", path,
				   r == -EILSEQ ? "holds a NUL byte" : file_secret_remedy(r));
		return -1;
	}
	return 1;
}

/* One source of a row: `plain` is its value and `file` the path of its _FILE form, either may be
 * NULL or empty. s->where names the plain form. */
static int pick(struct loader *l, const struct setting *row, const char *plain, const char *file,
		const char *file_where, struct source *s)
{
	bool has_plain = plain && *plain, has_file = file && *file;
	if (has_plain && has_file) {
		settings_fault_add(l->faults, file_where,
				   "is set and so is its value itself (%s): "
				   "keep one of the two",
				   s->where);
		return -1;
	}
	if (has_file) {
		snprintf(s->where, sizeof s->where, "%s", file_where);
		return read_referred(l, row, file, s);
	}
	if (!has_plain)
		return 0;
	s->text = strdup(plain);
	if (!s->text)
		abort();
	return 1;
}

static int find_env(struct loader *l, const struct setting *row, const char *name, struct source *s)
{
	char with_file[NAME_MAX_BYTES + 8];
	snprintf(with_file, sizeof with_file, "%s_FILE", name);
	snprintf(s->where, sizeof s->where, "%s", name);
	return pick(l, row, env_get(l->envp, name),
		    may_be_file(row) ? env_get(l->envp, with_file) : NULL, with_file, s);
}

static int find_in_file(struct loader *l, const struct setting *row, struct source *s)
{
	char name[NAME_MAX_BYTES], with_file[NAME_MAX_BYTES], where[512] = "";
	file_name(row, "", name);
	file_name(row, "_file", with_file);
	struct settings_pair *plain = settings_pairs_find(&l->pairs, name);
	struct settings_pair *file =
	    may_be_file(row) ? settings_pairs_find(&l->pairs, with_file) : NULL;
	if (plain) {
		plain->used = true;
		s->array = plain->array;
		snprintf(s->where, sizeof s->where, "%s:%u (%s)", l->path, plain->line, name);
	}
	if (file) {
		file->used = true;
		snprintf(where, sizeof where, "%s:%u (%s)", l->path, file->line, with_file);
	}
	return pick(l, row, plain ? plain->text : NULL, file ? file->text : NULL, where, s);
}

/* The environment under its own name, then under its alias, then the file. */
static int find(struct loader *l, const struct setting *row, struct source *s)
{
	char name[NAME_MAX_BYTES];
	struct source in_file = {0};
	full_name(l->spec, row, "", name);
	int r = find_env(l, row, name, s);
	if (r == 0 && row->env_alias)
		r = find_env(l, row, row->env_alias, s);
	if (r == 0)
		return find_in_file(l, row, s);
	/* looked at all the same, so that its names count as known */
	if (find_in_file(l, row, &in_file) == 1)
		wipe_free(in_file.text);
	return r;
}

static void set_default(struct loader *l, const struct setting *row)
{
	struct source s = {.text = row->default_text ? strdup(row->default_text) : NULL};
	snprintf(s.where, sizeof s.where, "default of %s", row->name);
	if (s.text && *s.text) {
		bool ok = store(l, row, &s);
		assert(ok);
		(void)ok;
	}
	free(s.text);
}

static bool is_unset(const struct setting *row, void *cfg)
{
	return is_text(row) && !*(char **)field_of(row, cfg);
}

/* True unless a required value is missing. */
static bool load_row(struct loader *l, const struct setting *row)
{
	struct source s = {0};
	int r = find(l, row, &s);
	if (r == 1 && (row->flags & SETTING_DEPRECATED))
		settings_warning_add(l->faults, s.where, "is deprecated: %s", row->doc);
	bool stored = r == 1 && store(l, row, &s);
	wipe_free(s.text);
	if (!stored)
		set_default(l, row);
	if (!(row->flags & SETTING_REQUIRED) || !is_unset(row, l->cfg))
		return true;
	if (r == 0) {
		char name[NAME_MAX_BYTES];
		full_name(l->spec, row, "", name);
		settings_fault_add(l->faults, name, "must be set: %s", row->doc);
	}
	return false;
}

/* ---- unknown names ---- */

static bool ends_with(const char *s, size_t n, const char *end)
{
	size_t m = strlen(end);
	return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* What Kubernetes injects for a service that is named like the program. */
static bool is_injected(const char *name)
{
	size_t n = strlen(name);
	return ends_with(name, n, "_SERVICE_HOST") || ends_with(name, n, "_PORT") ||
	       strstr(name, "_SERVICE_PORT") || strstr(name, "_PORT_");
}

static bool is_known_env(const struct settings_spec *spec, const char *name)
{
	char known[NAME_MAX_BYTES];
	if (spec->file_env && strcmp(name, spec->file_env) == 0)
		return true;
	for (size_t i = 0; i < spec->rows; i++) {
		const struct setting *row = &spec->row[i];
		const char *alias = row->env_alias;
		full_name(spec, row, "", known);
		if (strcmp(name, known) == 0 || (alias && strcmp(name, alias) == 0))
			return true;
		if (!may_be_file(row))
			continue;
		full_name(spec, row, "_FILE", known);
		if (strcmp(name, known) == 0 ||
		    (alias && strncmp(name, alias, strlen(alias)) == 0 &&
		     strcmp(name + strlen(alias), "_FILE") == 0))
			return true;
	}
	return false;
}

static void refuse_unknown(struct loader *l)
{
	size_t prefix_n = strlen(l->spec->prefix);
	for (char *const *e = l->envp; e && *e; e++) {
		char name[NAME_MAX_BYTES];
		size_t n = strcspn(*e, "=");
		if (strncmp(*e, l->spec->prefix, prefix_n) != 0 || (*e)[prefix_n] != '_')
			continue;
		snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name - 1),
			 *e);
		if (!is_known_env(l->spec, name) && !is_injected(name))
			settings_fault_add(
			    l->faults, name,
			    "is no setting of %s: correct or remove it (--help lists all)",
			    l->spec->program);
	}
	for (size_t i = 0; i < l->pairs.n; i++) {
		char where[512];
		if (l->pairs.item[i].used)
			continue;
		snprintf(where, sizeof where, "%s:%u", l->path, l->pairs.item[i].line);
		settings_fault_add(
		    l->faults, where,
		    "`%s` is no setting of %s: correct or remove it (--help lists all)",
		    l->pairs.item[i].key, l->spec->program);
	}
}

/* ---- all together ---- */

static int read_file(struct loader *l)
{
	const char *named = l->spec->file_env ? env_get(l->envp, l->spec->file_env) : NULL;
	bool must_exist = named && *named;
	struct buf b;
	l->path = must_exist ? named : l->spec->default_file;
	if (!l->path)
		return 0;
	if (l->on_file)
		l->on_file(l->on_file_arg, l->path);
	buf_init(&b, FILE_MAX_BYTES);
	int r = file_read(l->path, &b);
	if (r == 0) {
		r = settings_file_parse(l->path, b.data ? b.data : "", b.len, &l->pairs, l->faults);
	} else if (r != -ENOMEM && (must_exist || r != -ENOENT)) {
		settings_fault_add(l->faults, l->path, "cannot be read as a settings file: %s",
				   strerror(-r));
		r = 0;
	} else if (r == -ENOENT) {
		r = 0;
	}
	buf_wipe(&b);
	buf_fini(&b);
	return r;
}

static int load(struct loader *l)
{
	size_t before = l->faults->n;
	bool complete = true;
	memset(l->cfg, 0, l->spec->struct_size);
	int r = read_file(l);
	for (size_t i = 0; i < l->spec->rows && r == 0; i++)
		complete &= load_row(l, &l->spec->row[i]);
	if (r == 0) {
		refuse_unknown(l);
		if (complete && l->spec->validate)
			l->spec->validate(l->cfg, l->faults);
	}
	settings_pairs_fini(&l->pairs);
	return r < 0 ? r : l->faults->n > before ? -EINVAL : 0;
}

int settings_load(const struct settings_spec *spec, char *const *envp, void *cfg,
		  struct settings_faults *faults)
{
	return load(&(struct loader){.spec = spec, .envp = envp, .cfg = cfg, .faults = faults});
}

int settings_files(const struct settings_spec *spec, char *const *envp,
		   void (*on_file)(void *arg, const char *path), void *arg)
{
	struct settings_faults faults = {0};
	struct loader l = {.spec = spec, .envp = envp, .faults = &faults};
	l.on_file = on_file;
	l.on_file_arg = arg;
	l.cfg = malloc(spec->struct_size);
	if (!l.cfg)
		return -ENOMEM;
	int r = load(&l);
	settings_free(spec, l.cfg);
	free(l.cfg);
	settings_faults_fini(&faults);
	return r == -ENOMEM ? r : 0;
}

void settings_free(const struct settings_spec *spec, void *cfg)
{
	for (size_t i = 0; i < spec->rows; i++) {
		if (!is_text(&spec->row[i]))
			continue;
		char **field = field_of(&spec->row[i], cfg);
		if (may_be_file(&spec->row[i]))
			wipe_free(*field);
		else
			free(*field);
		*field = NULL;
	}
}

static bool same(const struct setting *row, void *a, void *b)
{
	const char *x, *y;
	switch (row->kind) {
	case SETTING_KIND_BOOL:
		return *(bool *)field_of(row, a) == *(bool *)field_of(row, b);
	case SETTING_KIND_INT:
		return *(int64_t *)field_of(row, a) == *(int64_t *)field_of(row, b);
	default:
		x = *(char **)field_of(row, a);
		y = *(char **)field_of(row, b);
		return x == y || (x && y && strcmp(x, y) == 0);
	}
}

static void swap(const struct setting *row, void *a, void *b)
{
	char t[sizeof(int64_t) > sizeof(char *) ? sizeof(int64_t) : sizeof(char *)];
	size_t n = row->kind == SETTING_KIND_BOOL  ? sizeof(bool)
		   : row->kind == SETTING_KIND_INT ? sizeof(int64_t)
						   : sizeof(char *);
	memcpy(t, field_of(row, a), n);
	memcpy(field_of(row, a), field_of(row, b), n);
	memcpy(field_of(row, b), t, n);
}

size_t settings_apply_reload(const struct settings_spec *spec, void *live, void *fresh,
			     void (*on_ignored)(const char *name))
{
	size_t copied = 0;
	for (size_t i = 0; i < spec->rows; i++) {
		const struct setting *row = &spec->row[i];
		char name[NAME_MAX_BYTES];
		if (same(row, live, fresh))
			continue;
		if (row->flags & SETTING_RELOAD) {
			swap(row, live, fresh);
			copied++;
		} else if (on_ignored) {
			full_name(spec, row, "", name);
			on_ignored(name);
		}
	}
	return copied;
}
