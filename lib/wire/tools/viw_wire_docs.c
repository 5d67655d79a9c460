/* viw-wire-docs markdown|schema|dictionary: prints what the table of frames generates. Used by the
 * documentation and by the fuzz runs; not installed. */
#include <stdio.h>
#include <string.h>

#include "wire/wire.h"

struct document {
	const char *word;
	int (*write)(struct buf *out);
};
static const struct document documents[] = {
    {"markdown", wire_markdown},
    {"schema", wire_json_schema},
    {"dictionary", wire_fuzz_dictionary},
};

static int print_document(const struct document *d)
{
	struct buf out;
	int r;

	buf_init(&out, 1 << 20);
	r = d->write(&out);
	if (r == 0 && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout)))
		r = -1;
	buf_fini(&out);
	return r == 0 ? 0 : 71;
}

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 2 && i < ARRAY_LEN(documents); i++) {
		if (!strcmp(argv[1], documents[i].word))
			return print_document(&documents[i]);
	}
	(void)fputs("usage: viw-wire-docs markdown|schema|dictionary\n", stderr);
	return 78;
}
