/* viw-docgen WORD: prints the documents made from the table of frames (lib/wire/frames.def). */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "wire/wire.h"

static const struct {
	const char *word;
	int (*print)(struct buf *out);
} documents[] = {
	{"protocol", wire_markdown},
	{"schema", wire_json_schema},
	{"dictionary", wire_fuzz_dictionary},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 2 && i < ARRAY_LEN(documents); i++) {
		if (strcmp(argv[1], documents[i].word) != 0)
			continue;
		struct buf out;
		buf_init(&out, 1U << 20);
		int r = documents[i].print(&out);
		if (r == 0 && fwrite(out.data, 1, out.len, stdout) != out.len)
			r = -1;
		buf_fini(&out);
		return r == 0 && fflush(stdout) == 0 ? 0 : 71;
	}
	fputs("usage: viw-docgen protocol|schema|dictionary\n", stderr);
	return 64;
}
