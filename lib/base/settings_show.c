/* The printing half of settings.h: masked dump, --help, docs/config.md. */
#include "base/settings.h"

#include <ctype.h>
#include <inttypes.h>
#include <string.h>

static const char *const kind_word[] = {
    [SETTING_KIND_BOOL] = "bool",    [SETTING_KIND_INT] = "int",       [SETTING_KIND_STR] = "text",
    [SETTING_KIND_PATH] = "path",    [SETTING_KIND_CSV] = "list",      [SETTING_KIND_ENUM] = "word",
    [SETTING_KIND_ADDR] = "address", [SETTING_KIND_SECRET] = "secret", [SETTING_KIND_URL] = "url",
};

static bool may_be_file(const struct setting *row)
{
	return row->kind == SETTING_KIND_SECRET || row->kind == SETTING_KIND_URL;
}

static void put_quoted(FILE *out, const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)s[i];
		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			fprintf(out, "\\u%04x", c);
		else
			putc(c, out);
	}
}

/* A URL without its password: what stands between the first ':' after the scheme and the last
 * '@' (a password may hold either), and values of query members named like passwords. */
static void put_url(FILE *out, const char *url)
{
	const char *scheme = strstr(url, "://"), *at = strrchr(url, '@');
	const char *p = url;
	if (scheme && at && at > scheme) {
		const char *colon = strchr(scheme + 3, ':');
		if (colon && colon < at) {
			put_quoted(out, url, (size_t)(colon + 1 - url));
			fprintf(out, "***");
			p = at;
		}
	}
	for (const char *mark; (mark = strcasestr(p, "password="));
	     p = mark + strcspn(mark, "& ")) {
		mark += strlen("password=");
		put_quoted(out, p, (size_t)(mark - p));
		fprintf(out, "***");
	}
	put_quoted(out, p, strlen(p));
}

static void put_text(FILE *out, const struct setting *row, const char *text)
{
	putc('"', out);
	if (text && row->kind == SETTING_KIND_SECRET)
		fprintf(out, "***");
	else if (text && row->kind == SETTING_KIND_URL)
		put_url(out, text);
	else if (text)
		put_quoted(out, text, strlen(text));
	putc('"', out);
}

static void put_lower(FILE *out, const char *s)
{
	for (; *s; s++)
		putc(tolower((unsigned char)*s), out);
}

void settings_dump(const struct settings_spec *spec, const void *cfg, FILE *out)
{
	for (size_t i = 0; i < spec->rows; i++) {
		const struct setting *row = &spec->row[i];
		const char *field = (const char *)cfg + row->offset;
		put_lower(out, row->name);
		fprintf(out, " = ");
		if (row->kind == SETTING_KIND_BOOL)
			fprintf(out, "%s", *(const bool *)field ? "true" : "false");
		else if (row->kind == SETTING_KIND_INT)
			fprintf(out, "%" PRId64, *(const int64_t *)(const void *)field);
		else
			put_text(out, row, *(char *const *)(const void *)field);
		putc('\n', out);
	}
}

static void put_range(FILE *out, const struct setting *row)
{
	if (row->kind == SETTING_KIND_ENUM)
		fprintf(out, "%s", row->unit);
	else if (row->kind == SETTING_KIND_INT && (row->min || row->max))
		fprintf(out, "%" PRId64 " to %" PRId64 "%s%s", row->min, row->max,
			row->unit ? " " : "", row->unit ? row->unit : "");
	else if (row->kind == SETTING_KIND_INT && row->unit)
		fprintf(out, "%s", row->unit);
	else if (row->max > 0)
		fprintf(out, "at most %" PRId64 " bytes", row->max);
}

static bool has_range(const struct setting *row)
{
	return row->kind == SETTING_KIND_ENUM ||
	       (row->kind == SETTING_KIND_INT ? row->min || row->max || row->unit : row->max > 0);
}

static void help_row(const struct settings_spec *spec, const struct setting *row, FILE *out)
{
	fprintf(out, "  %s_%s  (%s", spec->prefix, row->name, kind_word[row->kind]);
	if (has_range(row)) {
		fprintf(out, ", ");
		put_range(out, row);
	}
	if (row->flags & SETTING_REQUIRED)
		fprintf(out, ", required");
	else if (row->default_text && *row->default_text)
		fprintf(out, ", default %s", row->default_text);
	else
		fprintf(out, ", unset by default");
	if (row->flags & SETTING_RELOAD)
		fprintf(out, ", reloaded on SIGHUP");
	if (row->flags & SETTING_DEPRECATED)
		fprintf(out, ", deprecated");
	fprintf(out, ")\n");
	if (may_be_file(row))
		fprintf(out, "  %s_%s_FILE  (a file that holds it)\n", spec->prefix, row->name);
	if (row->env_alias)
		fprintf(out, "  %s  (another name of it)\n", row->env_alias);
	fprintf(out, "      %s\n", row->doc);
}

void settings_help(const struct settings_spec *spec, FILE *out)
{
	fprintf(out,
		"%s: %s\n\nUsage: %s [--config FILE] [--help | --version | --check-config | "
		"--dump-config]\n",
		spec->program, spec->summary, spec->program);
	if (spec->usage)
		fprintf(out, "%s\n", spec->usage);
	fprintf(out, "\nSettings come from the environment, else from the file");
	if (spec->file_env)
		fprintf(out, " (--config, or %s", spec->file_env);
	if (spec->file_env && spec->default_file)
		fprintf(out, ", or %s where it exists", spec->default_file);
	fprintf(out,
		"%s, else are the default. In the file a\nname is written in lower case "
		"without %s_, as `name = \"value\"`.\n\n",
		spec->file_env ? ")" : "", spec->prefix);
	for (size_t i = 0; i < spec->rows; i++)
		help_row(spec, &spec->row[i], out);
}

/* '|' would end the table's cell. */
static void put_cell(FILE *out, const char *s)
{
	for (; *s; s++)
		fprintf(out, *s == '|' ? "\\|" : "%c", *s);
}

void settings_markdown(const struct settings_spec *spec, FILE *out)
{
	fprintf(out, "| variable | kind | default | range | meaning |\n|---|---|---|---|---|\n");
	for (size_t i = 0; i < spec->rows; i++) {
		const struct setting *row = &spec->row[i];
		fprintf(out, "| `%s_%s`", spec->prefix, row->name);
		if (may_be_file(row))
			fprintf(out, ", `…_FILE`");
		if (row->env_alias)
			fprintf(out, ", `%s`", row->env_alias);
		fprintf(out, " | %s | ", kind_word[row->kind]);
		if (row->flags & SETTING_REQUIRED)
			fprintf(out, "required");
		else if (row->default_text && *row->default_text)
			fprintf(out, "`%s`", row->default_text);
		fprintf(out, " | ");
		if (row->kind == SETTING_KIND_ENUM)
			put_cell(out, row->unit);
		else
			put_range(out, row);
		fprintf(out, " | ");
		put_cell(out, row->doc);
		fprintf(out, "%s%s |\n", row->flags & SETTING_RELOAD ? " Reloaded on SIGHUP." : "",
			row->flags & SETTING_DEPRECATED ? " Deprecated." : "");
	}
}
