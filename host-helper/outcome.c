/* Outcomes and journal records to bytes and back. */
#include "outcome.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/jsonw.h"
#include "crypto/crypto.h"

#define MAGIC "VIWJ1 "

void outcome_init(struct outcome *o, size_t max_output_bytes)
{
	*o = (struct outcome){0};
	buf_init(&o->out, max_output_bytes);
	buf_init(&o->err, max_output_bytes);
}

void outcome_fini(struct outcome *o)
{
	buf_fini(&o->out);
	buf_fini(&o->err);
}

void outcome_fail(struct outcome *o, const char *code, const char *fmt, ...)
{
	va_list ap;

	snprintf(o->code, sizeof o->code, "%s", code);
	va_start(ap, fmt);
	vsnprintf(o->msg, sizeof o->msg, fmt, ap);
	va_end(ap);
}

int outcome_encode(const struct outcome *o, struct buf *out)
{
	struct buf meta;
	struct jsonw w;

	buf_init(&meta, 4096);
	jsonw_init(&w, &meta);
	jsonw_obj(&w, NULL);
	jsonw_bool(&w, "started", o->started);
	jsonw_bool(&w, "data", o->data);
	if (o->has_rc)
		jsonw_int(&w, "rc", o->rc);
	if (o->code[0]) {
		jsonw_str(&w, "code", o->code);
		jsonw_str(&w, "msg", o->msg);
	}
	jsonw_int(&w, "started_ms", o->started_ms);
	jsonw_int(&w, "finished_ms", o->finished_ms);
	jsonw_int(&w, "duration_ms", o->duration_ms);
	jsonw_bool(&w, "out_cut", o->out_cut);
	jsonw_bool(&w, "err_cut", o->err_cut);
	jsonw_obj_end(&w);
	int r = jsonw_finish(&w);
	if (r == 0)
		r = buf_appendf(out, "%zu %zu %zu\n", meta.len, o->out.len, o->err.len);
	if (r == 0)
		r = buf_append(out, meta.data, meta.len);
	if (r == 0 && o->out.len)
		r = buf_append(out, o->out.data, o->out.len);
	if (r == 0 && o->err.len)
		r = buf_append(out, o->err.data, o->err.len);
	buf_fini(&meta);
	return r;
}

static bool get_bool(struct span obj, const char *key)
{
	struct json_member m;

	return json_find(obj, key, &m) && m.type == JSON_T_BOOL && span_eq(m.raw, "true");
}

static bool get_int(struct span obj, const char *key, int64_t *ret)
{
	struct json_member m;

	return json_find(obj, key, &m) && m.type == JSON_T_INT && json_int(m.raw, ret) == 0;
}

static void get_str(struct span obj, const char *key, char *out, size_t cap)
{
	struct json_member m;
	struct buf text;

	out[0] = 0;
	if (!json_find(obj, key, &m) || m.type != JSON_T_STR)
		return;
	buf_init(&text, cap - 1);
	if (json_unescape(m.raw, &text) == 0 && text.len > 0) {
		memcpy(out, text.data, text.len);
		out[text.len] = 0;
	}
	buf_fini(&text);
}

/* Decimal digits up to `end`, then that byte. */
static int take_size(struct span *s, char end, size_t *ret)
{
	size_t v = 0, i = 0;

	for (; i < s->n && i < 9 && s->p[i] >= '0' && s->p[i] <= '9'; i++)
		v = v * 10 + (size_t)(s->p[i] - '0');
	if (i == 0 || i >= s->n || s->p[i] != end)
		return -EBADMSG;
	s->p += i + 1;
	s->n -= i + 1;
	*ret = v;
	return 0;
}

int outcome_decode(struct span payload, struct outcome *ret)
{
	size_t meta_n, out_n, err_n;
	struct json_fault fault;
	int64_t rc;

	if (take_size(&payload, ' ', &meta_n) < 0 || take_size(&payload, ' ', &out_n) < 0 ||
	    take_size(&payload, '\n', &err_n) < 0 || payload.n != meta_n + out_n + err_n)
		return -EBADMSG;
	struct span meta = {payload.p, meta_n};
	if (meta_n < 2 || meta.p[0] != '{' || json_validate(meta.p, meta_n, 4, &fault) < 0)
		return -EBADMSG;
	ret->started = get_bool(meta, "started");
	ret->data = get_bool(meta, "data");
	ret->out_cut = get_bool(meta, "out_cut");
	ret->err_cut = get_bool(meta, "err_cut");
	ret->has_rc = get_int(meta, "rc", &rc);
	ret->rc = ret->has_rc ? (int)rc : 0;
	get_str(meta, "code", ret->code, sizeof ret->code);
	get_str(meta, "msg", ret->msg, sizeof ret->msg);
	if (!get_int(meta, "started_ms", &ret->started_ms) ||
	    !get_int(meta, "finished_ms", &ret->finished_ms) ||
	    !get_int(meta, "duration_ms", &ret->duration_ms))
		return -EBADMSG;
	int r = out_n ? buf_append(&ret->out, payload.p + meta_n, out_n) : 0;
	if (r == 0 && err_n)
		r = buf_append(&ret->err, payload.p + meta_n + out_n, err_n);
	return r;
}

int record_append(struct buf *out, const char *kind, const void *payload, size_t n)
{
	uint8_t hash[SHA256_BYTES];
	char hex[SHA256_HEX_LEN + 1];

	crypto_sha256(payload, n, hash);
	crypto_hex(hash, sizeof hash, hex);
	int r = buf_appendf(out, MAGIC "%s %s %zu\n", kind, hex, n);
	if (r == 0 && n)
		r = buf_append(out, payload, n);
	return r == 0 ? buf_append_char(out, '\n') : r;
}

int record_next(struct span *rest, struct record *ret)
{
	uint8_t want[SHA256_BYTES], got[SHA256_BYTES];
	struct span s = *rest;
	size_t n;

	if (s.n == 0 || s.p[0] == 0)
		return 0;
	if (s.n < sizeof MAGIC || memcmp(s.p, MAGIC, sizeof MAGIC - 1) != 0)
		return -EBADMSG;
	s.p += sizeof MAGIC - 1;
	s.n -= sizeof MAGIC - 1;
	const char *blank = memchr(s.p, ' ', s.n < 16 ? s.n : 16);
	if (!blank || s.n < (size_t)(blank - s.p) + 1 + SHA256_HEX_LEN + 2)
		return -EBADMSG;
	ret->kind = (struct span){s.p, (size_t)(blank - s.p)};
	if (crypto_unhex(blank + 1, SHA256_HEX_LEN, want) < 0 || blank[1 + SHA256_HEX_LEN] != ' ')
		return -EBADMSG;
	s.n -= (size_t)(blank - s.p) + 2 + SHA256_HEX_LEN;
	s.p = blank + 2 + SHA256_HEX_LEN;
	if (take_size(&s, '\n', &n) < 0 || s.n < n + 1 || s.p[n] != '\n')
		return -EBADMSG;
	ret->payload = (struct span){s.p, n};
	crypto_sha256(s.p, n, got);
	if (memcmp(want, got, sizeof want) != 0)
		return -EBADMSG;
	*rest = (struct span){s.p + n + 1, s.n - n - 1};
	return 1;
}
