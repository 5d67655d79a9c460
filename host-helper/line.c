/* Nothing here knows JSON: what is not authentic is never parsed. */
#include "line.h"

#include <string.h>

#include "crypto/crypto.h"

void line_take_all(struct buf *in, bool (*on_line)(void *arg, const char *line, size_t n),
		   void *arg)
{
	size_t at = 0;
	bool go_on = true;

	while (go_on && at < in->len) {
		const char *line = in->data + at, *nl = memchr(line, '\n', in->len - at);
		if (!nl)
			break;
		at += (size_t)(nl - line) + 1;
		go_on = on_line(arg, line, (size_t)(nl - line));
	}
	if (at == in->len) {
		buf_wipe(in);
		buf_trim(in, 16384);
	} else {
		buf_consume(in, at);
	}
}

bool line_open(const struct buf *key, const char *line, size_t n, struct span *ret)
{
	uint8_t want[SHA256_BYTES], got[SHA256_BYTES];

	if (n < SHA256_HEX_LEN + 2 || line[SHA256_HEX_LEN] != ' ' ||
	    crypto_unhex(line, SHA256_HEX_LEN, got) < 0)
		return false;
	struct span json = {line + SHA256_HEX_LEN + 1, n - SHA256_HEX_LEN - 1};
	crypto_hmac_sha256(key->data, key->len, json.p, json.n, want);
	if (!crypto_equal(want, got, sizeof want))
		return false;
	*ret = json;
	return true;
}

int line_append(const struct buf *key, const struct buf *json, struct buf *out)
{
	uint8_t mac[SHA256_BYTES];
	char hex[SHA256_HEX_LEN + 1];

	crypto_hmac_sha256(key->data, key->len, json->data, json->len, mac);
	crypto_hex(mac, sizeof mac, hex);
	int r = buf_appendf(out, "%s ", hex);
	if (r == 0)
		r = buf_append(out, json->data, json->len);
	return r == 0 ? buf_append_char(out, '\n') : r;
}
