/* What a run wrote, made fit to be shown. */
#include <string.h>

#include "base/utf8.h"
#include "verbs/verbs.h"

/* Raw output that was cut may end within a secret: drops the longest tail that begins one. */
static size_t without_partial_secret(const struct secret_set *s, const char *raw, size_t n)
{
	size_t drop = 0;

	for (size_t i = 0; s && i < s->n; i++) {
		size_t len = strlen(s->value[i]);
		for (size_t k = len < n ? len : n; k > drop; k--)
			if (memcmp(raw + n - k, s->value[i], k) == 0) {
				drop = k;
				break;
			}
	}
	return n - drop;
}

/* Bytes of the valid UTF-8 character at s, 0 when it is none, or NUL. */
static size_t character(const char *s, size_t n)
{
	unsigned char c = (unsigned char)s[0];
	size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;

	return c != 0 && len <= n && (len == 1 || utf8_is_valid(s, len)) ? len : 0;
}

/* Appends valid UTF-8 as it is and any other byte, and NUL, as \xHH; stops at the cap. */
static int append_clean(struct buf *out, const char *s, size_t n, size_t cap, bool *cut)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n;) {
		size_t len = character(s + i, n - i);
		if (out->len + (len ? len : 4) > cap) {
			*cut = true;
			return 0;
		}
		r = len ? buf_append(out, s + i, len)
			: buf_appendf(out, "\\x%02x", (unsigned char)s[i]);
		i += len ? len : 1;
	}
	return r;
}

int redact_output(const struct secret_set *secrets, const char *raw, size_t n, bool was_cut,
		  size_t cap, struct buf *out, bool *cut)
{
	struct buf masked;

	*cut = was_cut;
	if (was_cut)
		n = without_partial_secret(secrets, raw, n);
	buf_init(&masked, 4 * n + 64);
	int r = redact_text(secrets, raw, n, &masked);
	if (r == 0 && masked.len)
		r = append_clean(out, masked.data, masked.len, cap, cut);
	buf_wipe(&masked);
	buf_fini(&masked);
	return r;
}
