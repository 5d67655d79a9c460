/* See command_rules.h. */
#include "wire/command_rules.h"

#include <string.h>

#include "base/utf8.h"

enum { VERB_MAX_BYTES = 128, PARAMS_MAX_DEPTH = 14 /* inside a frame of depth 16 */ };

bool command_is_verb(struct span s)
{
	for (size_t i = 0; i < s.n; i++)
		if (s.p[i] <= ' ' || s.p[i] > '~' || s.p[i] == '"' || s.p[i] == '\\')
			return false;
	return s.n >= 1 && s.n <= VERB_MAX_BYTES;
}

bool command_is_text(struct span s, size_t max)
{
	for (size_t i = 0; i < s.n; i++)
		if ((unsigned char)s.p[i] < ' ')
			return false;
	return s.n <= max && (s.n == 0 || utf8_is_valid(s.p, s.n));
}

bool command_is_params(struct span s, struct json_fault *fault)
{
	struct json_fault found = {.offset = COMMAND_PARAMS_MAX_BYTES, .what = "not over yet"};
	bool well = s.n <= COMMAND_PARAMS_MAX_BYTES;

	if (well) {
		size_t i = 0;

		while (i < s.n && strchr(" \t\r\n", s.p[i]))
			i++;
		found = (struct json_fault){.offset = i, .what = "it is not an object"};
		well = i < s.n && s.p[i] == '{' &&
		       json_validate(s.p, s.n, PARAMS_MAX_DEPTH, &found) == 0;
	}
	if (fault)
		*fault = found;
	return well;
}
