/*
 * See settings_file.h. A line-oriented reader: each statement is read whole or, at the first
 * fault, skipped to its line's end. What it accepts is TOML 1.0 and means the same there.
 */
#include "base/settings_file.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

#define VALUE_MAX_BYTES 65536
#define KEY_MAX_BYTES	128
#define FAULTS_MAX	20

struct reader {
	const char *path, *p, *end;
	unsigned line;
	struct settings_faults *faults;
	struct settings_pairs *pairs;
	struct buf value;
	const char *why; /* static text of the first fault in this statement */
};

static int fail(struct reader *r, const char *why)
{
	r->why = why;
	return -EINVAL;
}

static bool at_end(const struct reader *r)
{
	return r->p == r->end;
}

static bool take(struct reader *r, char c)
{
	if (at_end(r) || *r->p != c)
		return false;
	r->p++;
	return true;
}

static void skip_blanks(struct reader *r)
{
	while (!at_end(r) && (*r->p == ' ' || *r->p == '\t'))
		r->p++;
}

static void skip_line(struct reader *r)
{
	while (!at_end(r) && *r->p != '\n')
		r->p++;
}

/* A newline, also as CR LF; counts lines. */
static bool take_newline(struct reader *r)
{
	if (!at_end(r) && *r->p == '\r' && r->p + 1 < r->end && r->p[1] == '\n')
		r->p++;
	if (!take(r, '\n'))
		return false;
	r->line++;
	return true;
}

static int take_comment(struct reader *r)
{
	if (!take(r, '#'))
		return 0;
	for (; !at_end(r) && *r->p != '\n'; r->p++) {
		unsigned char c = (unsigned char)*r->p;
		bool cr_of_crlf = c == '\r' && r->p + 1 < r->end && r->p[1] == '\n';
		if ((c < 0x20 && c != '\t' && !cr_of_crlf) || c == 0x7f)
			return fail(r, "a control byte in a comment");
		if (cr_of_crlf)
			break;
	}
	return 0;
}

static int put_code_point(struct reader *r, uint32_t c)
{
	char out[4];
	size_t n;
	if (c == 0 || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return fail(r, "\\u must name a Unicode character other than NUL");
	if (c < 0x80) {
		out[0] = (char)c, n = 1;
	} else if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), n = 2;
	} else if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63));
		out[2] = (char)(0x80 | (c & 63)), n = 3;
	} else {
		out[0] = (char)(0xf0 | c >> 18), out[1] = (char)(0x80 | (c >> 12 & 63));
		out[2] = (char)(0x80 | (c >> 6 & 63)), out[3] = (char)(0x80 | (c & 63)), n = 4;
	}
	return buf_append(&r->value, out, n);
}

static int read_hex_escape(struct reader *r, unsigned digits)
{
	uint32_t v = 0;
	while (digits--) {
		char c = at_end(r) ? '\0' : *r->p++;
		unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
			     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
			     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
						    : 16;
		if (d == 16)
			return fail(r, "\\u needs 4 and \\U 8 hex digits");
		v = v << 4 | d;
	}
	return put_code_point(r, v);
}

static int read_escape(struct reader *r)
{
	static const char from[] = "btnfr\"\\", to[] = "\b\t\n\f\r\"\\";
	char c = at_end(r) ? '\0' : *r->p++;
	const char *at = c ? strchr(from, c) : NULL;
	if (at)
		return buf_append_char(&r->value, to[at - from]);
	if (c == 'u')
		return read_hex_escape(r, 4);
	if (c == 'U')
		return read_hex_escape(r, 8);
	return fail(r, "unknown escape; use 'single quotes' for text with backslashes");
}

/* "basic" and 'literal' strings on one line. */
static int read_string(struct reader *r)
{
	char quote = *r->p++;
	if (r->end - r->p >= 2 && r->p[0] == quote && r->p[1] == quote)
		return fail(r, "multi-line strings are not supported");
	for (;;) {
		if (at_end(r) || *r->p == '\n')
			return fail(r, "the string is not closed on its line");
		unsigned char c = (unsigned char)*r->p;
		if (take(r, quote))
			return 0;
		if ((c < 0x20 && c != '\t') || c == 0x7f)
			return fail(r, "a control byte in a string");
		int rc;
		if (quote == '"' && take(r, '\\')) {
			rc = read_escape(r);
		} else {
			rc = buf_append_char(&r->value, (char)c);
			r->p++;
		}
		if (rc < 0)
			return rc == -ENOBUFS ? fail(r, "the value is too long") : rc;
	}
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* true, false, or an integer: digits with an optional sign, underscores between digits. */
static int read_word(struct reader *r)
{
	static const char help[] = "the value must be \"text\", a whole number, true, false or "
				   "[\"a\", \"b\"]";
	const char *begin = r->p;
	while (!at_end(r) && !strchr(" \t\r\n#,]", *r->p))
		r->p++;
	size_t n = (size_t)(r->p - begin);
	if ((n == 4 && memcmp(begin, "true", 4) == 0) || (n == 5 && memcmp(begin, "false", 5) == 0))
		return buf_append(&r->value, begin, n);
	size_t i = n && (*begin == '+' || *begin == '-');
	if (i == n || !is_digit(begin[i]))
		return fail(r, help);
	if (begin[i] == '0' && n > i + 1)
		return fail(r, "a number must not begin with 0");
	int rc = *begin == '-' ? buf_append_char(&r->value, '-') : 0;
	for (; i < n && rc == 0; i++) {
		if (is_digit(begin[i]))
			rc = buf_append_char(&r->value, begin[i]);
		else if (begin[i] != '_' || !is_digit(begin[i - 1]) || i + 1 == n ||
			 !is_digit(begin[i + 1]))
			return fail(r, help);
	}
	return rc;
}

/* Blanks, comments and newlines between the items of an array. */
static int skip_between(struct reader *r)
{
	for (;;) {
		skip_blanks(r);
		int rc = take_comment(r);
		if (rc < 0)
			return rc;
		if (!take_newline(r))
			return 0;
	}
}

static int read_item(struct reader *r, size_t items)
{
	if (at_end(r) || (*r->p != '"' && *r->p != '\''))
		return fail(r, "an array holds strings only: [\"a\", \"b\"]");
	if (items && buf_append_char(&r->value, ',') < 0)
		return fail(r, "the value is too long");
	size_t before = r->value.len;
	int rc = read_string(r);
	if (rc < 0)
		return rc;
	if (r->value.len > before && memchr(r->value.data + before, ',', r->value.len - before))
		return fail(r, "an item of an array must not hold a comma");
	return 0;
}

static int read_array(struct reader *r)
{
	r->p++;
	for (size_t items = 0;; items++) {
		int rc = skip_between(r);
		if (rc < 0 || take(r, ']'))
			return rc;
		rc = read_item(r, items);
		if (rc == 0)
			rc = skip_between(r);
		if (rc < 0)
			return rc;
		if (take(r, ','))
			continue;
		return take(r, ']') ? 0 : fail(r, "the array is not closed with ]");
	}
}

static int read_key(struct reader *r, char *key)
{
	size_t n = 0;
	if (*r->p == '[')
		return fail(r, "tables are not supported: the file is flat, `name = value` a line");
	if (*r->p == '"' || *r->p == '\'')
		return fail(r, "quoted names are not supported");
	for (; !at_end(r); r->p++) {
		char c = *r->p;
		if (!is_digit(c) && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') &&
		    c != '_' && c != '-')
			break;
		if (n == KEY_MAX_BYTES)
			return fail(r, "the name is too long");
		key[n++] = c;
	}
	key[n] = '\0';
	if (!at_end(r) && *r->p == '.')
		return fail(r, "dotted names are not supported");
	skip_blanks(r);
	if (n == 0 || !take(r, '='))
		return fail(r, "expected `name = value`");
	skip_blanks(r);
	return 0;
}

static int keep_pair(struct reader *r, const char *key, bool array, unsigned line)
{
	struct settings_pairs *ps = r->pairs;
	if (settings_pairs_find(ps, key))
		return fail(r, "this name was set before in this file");
	if (r->value.len && !utf8_is_valid(r->value.data, r->value.len))
		return fail(r, "the value is not valid UTF-8");
	struct settings_pair *grown = realloc(ps->item, (ps->n + 1) * sizeof *grown);
	if (!grown)
		return -ENOMEM;
	ps->item = grown;
	char *k = strdup(key), *v = strdup(r->value.data ? r->value.data : "");
	if (!k || !v) {
		free(k);
		free(v);
		return -ENOMEM;
	}
	ps->item[ps->n++] =
	    (struct settings_pair){.key = k, .text = v, .array = array, .line = line};
	return 0;
}

static int read_statement(struct reader *r)
{
	char key[KEY_MAX_BYTES + 1];
	unsigned line = r->line;
	buf_wipe(&r->value);
	int rc = read_key(r, key);
	if (rc < 0)
		return rc;
	bool array = !at_end(r) && *r->p == '[';
	if (array)
		rc = read_array(r);
	else if (!at_end(r) && (*r->p == '"' || *r->p == '\''))
		rc = read_string(r);
	else
		rc = read_word(r);
	if (rc < 0)
		return rc;
	skip_blanks(r);
	rc = take_comment(r);
	if (rc < 0)
		return rc;
	if (!at_end(r) && *r->p != '\n' && !(*r->p == '\r' && r->p + 1 < r->end && r->p[1] == '\n'))
		return fail(r, "something follows the value on its line");
	return keep_pair(r, key, array, line);
}

static int read_line(struct reader *r)
{
	unsigned line = r->line;
	skip_blanks(r);
	r->why = NULL;
	int rc = take_comment(r);
	if (rc == 0 && !at_end(r) && *r->p != '\n' && *r->p != '\r')
		rc = read_statement(r);
	if (rc == 0 && !at_end(r) && !take_newline(r))
		rc = fail(r, "a control byte outside of a string");
	if (rc == -EINVAL) {
		char where[512];
		snprintf(where, sizeof where, "%s:%u", r->path, line);
		settings_fault_add(r->faults, where, "%s", r->why);
		skip_line(r);
		take_newline(r);
	}
	return rc == -EINVAL ? 0 : rc;
}

int settings_file_parse(const char *path, const char *text, size_t n, struct settings_pairs *ret,
			struct settings_faults *faults)
{
	struct reader r = {
	    .path = path, .p = text, .end = text + n, .line = 1, .faults = faults, .pairs = ret};
	size_t before = faults->n;
	int rc = 0;
	*ret = (struct settings_pairs){0};
	buf_init(&r.value, VALUE_MAX_BYTES);
	while (rc == 0 && !at_end(&r) && faults->n - before < FAULTS_MAX)
		rc = read_line(&r);
	buf_wipe(&r.value);
	buf_fini(&r.value);
	return rc;
}

struct settings_pair *settings_pairs_find(const struct settings_pairs *p, const char *key)
{
	for (size_t i = 0; i < p->n; i++)
		if (strcmp(p->item[i].key, key) == 0)
			return &p->item[i];
	return NULL;
}

void settings_pairs_fini(struct settings_pairs *p)
{
	for (size_t i = 0; i < p->n; i++) {
		explicit_bzero(p->item[i].text, strlen(p->item[i].text));
		free(p->item[i].text);
		free(p->item[i].key);
	}
	free(p->item);
	*p = (struct settings_pairs){0};
}
