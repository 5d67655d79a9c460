/* Tables for people, JSON for programs: the same columns serve both. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonw.h"
#include "viwctl.h"

#define CELL_WIDTH_MAX 48
#define OUTPUT_MAX     (64U << 20)

/* Bytes of the control character at i: terminals obey C0, DEL and C1 (U+0080 to U+009F). 0: none.
 */
static size_t control_bytes(struct span s, size_t i)
{
	unsigned char ch = (unsigned char)s.p[i];

	if (ch < 0x20 || ch == 0x7f)
		return 1;
	return ch == 0xc2 && i + 1 < s.n && (unsigned char)s.p[i + 1] < 0xa0 ? 2 : 0;
}

void ctl_print_safe(struct span s)
{
	for (size_t i = 0; i < s.n;) {
		size_t control = control_bytes(s, i);
		bool layout = s.p[i] == '\n' || s.p[i] == '\t';
		putchar(control && !layout ? '?' : s.p[i]);
		i += control ? control : 1;
	}
}

static void put_member(struct jsonw *w, const struct col *col, struct span v)
{
	if (!v.p)
		return;
	if (col->kind == COL_TEXT)
		jsonw_strn(w, col->name, v.p, v.n);
	else
		jsonw_raw(w, col->name, v.p, v.n);
}

static void put_object(struct jsonw *w, const struct col *col, size_t cols, const struct pg_rows *r,
		       size_t row)
{
	jsonw_obj(w, NULL);
	for (size_t i = 0; i < cols; i++)
		put_member(w, &col[i], pg_rows_text(r, row, i));
	jsonw_obj_end(w);
}

static void print_json(struct buf *out, struct jsonw *w)
{
	if (jsonw_finish(w) < 0)
		ctl_error("the answer is larger than %u bytes; ask for fewer rows", OUTPUT_MAX);
	else
		printf("%.*s\n", (int)out->len, out->data);
	buf_fini(out);
}

/* Columns of text on a terminal: a UTF-8 continuation byte takes no place. */
static size_t text_width(struct span s)
{
	size_t n = 0;
	for (size_t i = 0; i < s.n; i++)
		n += ((unsigned char)s.p[i] & 0xc0U) != 0x80U;
	return n;
}

static size_t column_width(const struct col *col, size_t i, const struct pg_rows *r)
{
	size_t width = strlen(col->name);
	for (size_t row = 0; row < pg_rows_len(r); row++) {
		size_t n = text_width(pg_rows_text(r, row, i));
		width = n > width ? n : width;
	}
	return width < CELL_WIDTH_MAX ? width : CELL_WIDTH_MAX;
}

static void print_cell(const struct col *col, struct span v, size_t width, bool last)
{
	char cell[CELL_WIDTH_MAX * 4 + 1];
	size_t columns = 0, n = 0;
	for (size_t i = 0; i < v.n && n < sizeof cell - 1; i++) {
		unsigned char ch = (unsigned char)v.p[i];
		bool starts = (ch & 0xc0U) != 0x80U;
		if (starts && columns == width)
			break;
		columns += starts;
		size_t control = control_bytes(v, i);
		cell[n++] = control ? '?' : (char)ch;
		i += control == 2;
	}
	cell[n] = '\0';
	int pad = (int)(width - columns);
	if (col->kind == COL_NUM)
		printf("%*s%s", pad, "", cell);
	else if (last)
		printf("%s", cell);
	else
		printf("%s%*s", cell, pad, "");
	fputs(last ? "\n" : "  ", stdout);
}

static void print_table(const struct col *col, size_t cols, const struct pg_rows *r)
{
	size_t width[24];
	for (size_t i = 0; i < cols && i < ARRAY_LEN(width); i++)
		width[i] = column_width(&col[i], i, r);
	for (size_t i = 0; i < cols; i++) {
		char heading[CELL_WIDTH_MAX + 1];
		size_t n = 0;
		for (; n < CELL_WIDTH_MAX && col[i].name[n]; n++)
			heading[n] = (char)toupper((unsigned char)col[i].name[n]);
		heading[n] = '\0';
		print_cell(&col[i], span_of(heading), width[i], i + 1 == cols);
	}
	for (size_t row = 0; row < pg_rows_len(r); row++) {
		for (size_t i = 0; i < cols; i++)
			print_cell(&col[i], pg_rows_text(r, row, i), width[i], i + 1 == cols);
	}
}

void ctl_put_rows(struct jsonw *w, const char *key, const struct col *col, size_t cols,
		  const struct pg_rows *r)
{
	jsonw_arr(w, key);
	for (size_t row = 0; row < pg_rows_len(r); row++)
		put_object(w, col, cols, r, row);
	jsonw_arr_end(w);
}

void ctl_print_rows(const struct ctl *c, const struct col *col, size_t cols,
		    const struct pg_rows *r)
{
	if (!c->json) {
		print_table(col, cols, r);
		return;
	}
	struct buf out;
	struct jsonw w;
	buf_init(&out, OUTPUT_MAX);
	jsonw_init(&w, &out);
	ctl_put_rows(&w, NULL, col, cols, r);
	print_json(&out, &w);
}

void ctl_print_row(const struct ctl *c, const struct col *col, size_t cols, const struct pg_rows *r,
		   size_t row)
{
	if (c->json) {
		struct buf out;
		struct jsonw w;
		buf_init(&out, OUTPUT_MAX);
		jsonw_init(&w, &out);
		put_object(&w, col, cols, r, row);
		print_json(&out, &w);
		return;
	}
	for (size_t i = 0; i < cols; i++) {
		struct span v = pg_rows_text(r, row, i);
		if (!v.p || v.n == 0)
			continue;
		bool lines = memchr(v.p, '\n', v.n) != NULL;
		printf("%-20s%s", col[i].name, lines ? "\n" : "");
		ctl_print_safe(v);
		if (v.n == 0 || v.p[v.n - 1] != '\n')
			putchar('\n');
	}
}
