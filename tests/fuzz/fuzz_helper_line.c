/*
 * The helper's socket as bytes: lines cut out of a stream that comes in pieces, and their MACs.
 * First byte: how long the pieces are; second: bit 0 puts a right MAC before every line, the rest
 * says which bit of a right line is then flipped.
 */
#include <string.h>

#include "crypto/crypto.h"
#include "fuzz.h"
#include "line.h"

static struct buf key;

struct seen {
	struct buf all; /* the lines, each with its newline */
	size_t lines, opened;
};

/* What line_open says, worked out another way. */
static bool mac_is_right(const char *line, size_t n)
{
	uint8_t mac[SHA256_BYTES];
	char hex[SHA256_HEX_LEN + 1];

	if (n < SHA256_HEX_LEN + 2 || line[SHA256_HEX_LEN] != ' ')
		return false;
	crypto_hmac_sha256(key.data, key.len, line + SHA256_HEX_LEN + 1, n - SHA256_HEX_LEN - 1,
			   mac);
	crypto_hex(mac, sizeof mac, hex);
	return strncasecmp(hex, line, SHA256_HEX_LEN) == 0;
}

static bool on_line(void *arg, const char *line, size_t n)
{
	struct seen *s = arg;
	struct span json;

	FUZZ_CHECK(!memchr(line, '\n', n));
	bool opened = line_open(&key, line, n, &json);
	FUZZ_CHECK(opened == mac_is_right(line, n));
	if (opened)
		FUZZ_CHECK(json.p == line + SHA256_HEX_LEN + 1 && json.n == n - SHA256_HEX_LEN - 1);
	s->opened += opened;
	s->lines++;
	FUZZ_CHECK(buf_append(&s->all, line, n) == 0 && buf_append_char(&s->all, '\n') == 0);
	return true;
}

/* As a connection does it: a buffer with a cap, emptied of its lines after each piece. */
static void in_pieces(const char *bytes, size_t n, size_t piece, struct seen *s)
{
	struct buf in;

	buf_init(&in, LINE_MAX_BYTES + 1);
	for (size_t at = 0; at < n && in.len < in.max; at += piece) {
		size_t take = n - at < piece ? n - at : piece;
		if (buf_append(&in, bytes + at, take) < 0)
			break;
		line_take_all(&in, on_line, s);
		FUZZ_CHECK(!in.len || !memchr(in.data, '\n', in.len));
	}
	buf_fini(&in);
}

static void with_right_macs(const char *bytes, size_t n, struct buf *out, size_t *ret_lines)
{
	struct buf json;

	buf_init(&json, 1 << 16);
	while (n && *ret_lines < 8) { /* more would only be slower */
		const char *nl = memchr(bytes, '\n', n);
		size_t len = nl ? (size_t)(nl - bytes) : n;
		buf_clear(&json);
		if (len && buf_append(&json, bytes, len) == 0) {
			FUZZ_CHECK(line_append(&key, &json, out) == 0);
			(*ret_lines)++;
		}
		bytes += len + (nl != NULL);
		n -= len + (nl != NULL);
	}
	buf_fini(&json);
}

/* One bit of one right line: refused, unless it is the case of a hex digit. */
static void flipped(struct buf *line, size_t bit)
{
	struct span json;
	size_t at = bit / 8 % (line->len - 1);
	char was = line->data[at];

	line->data[at] = (char)(was ^ (1 << bit % 8));
	bool same = at < SHA256_HEX_LEN && (was ^ line->data[at]) == 0x20 && was >= 'A';
	FUZZ_CHECK(line_open(&key, line->data, line->len - 1, &json) == same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct seen whole = {0}, pieces = {0};
	struct buf stream;
	size_t right = 0;

	if (!key.data) {
		buf_init(&key, 64);
		FUZZ_CHECK(buf_append_str(&key, "0123456789abcdef0123456789abcdef") == 0);
	}
	if (n < 2 || n > 16384)
		return 0;
	buf_init(&stream, 1 << 21);
	buf_init(&whole.all, 1 << 21);
	buf_init(&pieces.all, 1 << 21);
	const char *bytes = (const char *)data + 2;
	if (data[1] & 1)
		with_right_macs(bytes, n - 2, &stream, &right);
	else
		FUZZ_CHECK(buf_append(&stream, bytes, n - 2) == 0);
	if (stream.len && stream.len <= LINE_MAX_BYTES) {
		in_pieces(stream.data, stream.len, stream.len, &whole);
		in_pieces(stream.data, stream.len, 1 + data[0], &pieces);
		FUZZ_CHECK(whole.lines == pieces.lines && whole.opened == pieces.opened);
		FUZZ_CHECK(whole.all.len == pieces.all.len && whole.all.len <= stream.len);
		FUZZ_CHECK(!whole.all.len ||
			   (memcmp(whole.all.data, stream.data, whole.all.len) == 0 &&
			    memcmp(pieces.all.data, stream.data, whole.all.len) == 0));
		if (data[1] & 1)
			FUZZ_CHECK(whole.lines == right && whole.opened == right);
		if (right == 1)
			flipped(&stream, ((size_t)data[1] >> 1) * 8 + data[0]);
	}
	buf_fini(&stream);
	buf_fini(&whole.all);
	buf_fini(&pieces.all);
	return 0;
}
