/*
 * Redaction (contract section 6). Parameters: by manifest or by name, at any depth. Text: every
 * byte that belongs to a secret value or to a pattern is marked first, then each marked run is
 * written as
 * ***, so overlapping secrets leave nothing behind.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/jsonw.h"
#include "crypto/crypto.h"
#include "verbs/verbs_private.h"

#define MASK		 "***"
#define MIN_SECRET_BYTES 4
#define MAX_DEPTH	 32

static bool contains(const char *s, size_t n, const char *word)
{
	size_t len = strlen(word);

	for (size_t i = 0; i + len <= n; i++)
		if (strncasecmp(s + i, word, len) == 0)
			return true;
	return false;
}

bool verb_name_is_secret(const char *name, size_t n)
{
	static const char *const words[] = {"pass", "secret", "token", "psk", "key"};
	const char public_key[] = "public_key";
	size_t len = sizeof public_key - 1;

	for (size_t w = 0; w < ARRAY_LEN(words) - 1; w++)
		if (contains(name, n, words[w]))
			return true;
	for (size_t i = 0; i + 3 <= n; i++) {
		if (strncasecmp(name + i, "key", 3) != 0)
			continue;
		size_t at = i + 3 >= len ? i + 3 - len : n;
		if (at + len > n || strncasecmp(name + at, public_key, len) != 0)
			return true;
	}
	return false;
}

bool verb_param_is_secret(const struct verb *v, const char *name, size_t n)
{
	for (size_t i = 0; v && i < v->params; i++)
		if (strlen(v->param[i].name) == n && memcmp(v->param[i].name, name, n) == 0)
			return v->param[i].secret || verb_name_is_secret(name, n);
	return verb_name_is_secret(name, n);
}

/* ---- parameters ---- */

/* A walk over nested containers without recursion; each level knows whether it is secret. */
struct level {
	struct json_iter it;
	bool object, secret;
};

void secret_set_fini(struct secret_set *s)
{
	for (size_t i = 0; i < s->n; i++) {
		crypto_wipe(s->value[i], strlen(s->value[i]));
		free(s->value[i]);
	}
	free(s->value);
	*s = (struct secret_set){0};
}

static int add_secret(struct secret_set *s, const struct json_member *m)
{
	struct buf text;

	buf_init(&text, 1 << 20);
	int r = m->type == JSON_T_STR ? json_unescape(m->raw, &text)
				      : buf_append(&text, m->raw.p, m->raw.n);
	char **grown = r == 0 ? realloc(s->value, (s->n + 1) * sizeof *grown) : NULL;
	if (r == 0 && !grown)
		r = -ENOMEM;
	if (grown)
		s->value = grown;
	if (r == 0 && text.len >= MIN_SECRET_BYTES) {
		s->value[s->n] = strndup(text.data, text.len);
		if (s->value[s->n])
			s->n++;
		else
			r = -ENOMEM;
	}
	buf_wipe(&text);
	buf_fini(&text);
	return r;
}

static int member_is_secret(const struct verb *v, const struct json_member *m, bool top, bool *ret,
			    struct buf *key)
{
	buf_clear(key);
	int r = json_unescape(m->key, key);
	if (r == 0)
		*ret = verb_param_is_secret(top ? v : NULL, key->data ? key->data : "", key->len);
	return r;
}

int secret_set_from_params(const struct verb *v, struct span params, struct secret_set *ret)
{
	struct level level[MAX_DEPTH] = {{.object = true}};
	struct secret_set s = {0};
	struct json_member m;
	struct buf key;
	size_t depth = 1;
	int r = 0;

	buf_init(&key, 1 << 20);
	json_iter_init(&level[0].it, params);
	while (r == 0 && depth > 0) {
		struct level *l = &level[depth - 1];
		bool secret = l->secret;
		if (!json_iter_next(&l->it, &m)) {
			depth--;
			continue;
		}
		if (l->object && !secret)
			r = member_is_secret(v, &m, depth == 1, &secret, &key);
		if (r < 0)
			break;
		if (m.type != JSON_T_OBJ && m.type != JSON_T_ARR) {
			if (secret &&
			    (m.type == JSON_T_STR || m.type == JSON_T_INT || m.type == JSON_T_REAL))
				r = add_secret(&s, &m);
		} else if (depth == MAX_DEPTH) {
			r = -EINVAL;
		} else {
			level[depth] =
			    (struct level){.object = m.type == JSON_T_OBJ, .secret = secret};
			json_iter_init(&level[depth++].it, m.raw);
		}
	}
	buf_fini(&key);
	if (r < 0)
		secret_set_fini(&s);
	else
		*ret = s;
	return r;
}

static void write_member(struct jsonw *w, const char *key, const struct json_member *m, bool secret)
{
	if (secret)
		jsonw_str(w, key, MASK);
	else if (m->type == JSON_T_STR) /* raw is between the quotes */
		jsonw_raw(w, key, m->raw.p - 1, m->raw.n + 2);
	else
		jsonw_raw(w, key, m->raw.p, m->raw.n);
}

int redact_params(const struct verb *v, struct span params, struct buf *out, bool *ret_masked)
{
	struct level level[MAX_DEPTH] = {{.object = true}};
	struct json_member m;
	struct jsonw w;
	struct buf key;
	size_t depth = 1;
	int r = 0;

	*ret_masked = false;
	buf_init(&key, 1 << 20);
	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	json_iter_init(&level[0].it, params);
	while (r == 0 && depth > 0) {
		struct level *l = &level[depth - 1];
		bool secret = false;
		if (!json_iter_next(&l->it, &m)) {
			(l->object ? jsonw_obj_end : jsonw_arr_end)(&w);
			depth--;
			continue;
		}
		if (l->object)
			r = member_is_secret(v, &m, depth == 1, &secret, &key);
		const char *name = l->object ? (key.data ? key.data : "") : NULL;
		*ret_masked |= secret;
		if (secret || (m.type != JSON_T_OBJ && m.type != JSON_T_ARR)) {
			write_member(&w, name, &m, secret);
		} else if (depth == MAX_DEPTH) {
			r = -EINVAL;
		} else {
			(m.type == JSON_T_OBJ ? jsonw_obj : jsonw_arr)(&w, name);
			level[depth] = (struct level){.object = m.type == JSON_T_OBJ};
			json_iter_init(&level[depth++].it, m.raw);
		}
	}
	buf_fini(&key);
	int e = r == 0 ? jsonw_finish(&w) : r;
	return e;
}

/* ---- text ---- */

struct marks {
	const char *s;
	size_t n;
	uint8_t *on; /* one byte a byte of s */
};

static void mark(struct marks *m, size_t from, size_t to)
{
	if (to > from)
		memset(m->on + from, 1, to - from);
}

/* Every occurrence, overlapping ones too. */
static void mark_value(struct marks *m, const char *value)
{
	size_t len = strlen(value), marked = 0;

	if (len < MIN_SECRET_BYTES)
		return;
	for (size_t i = 0; i + len <= m->n; i++) {
		const char *at = memchr(m->s + i, value[0], m->n - len - i + 1);
		if (!at)
			return;
		i = (size_t)(at - m->s);
		if (memcmp(at, value, len) != 0)
			continue;
		mark(m, i > marked ? i : marked, i + len);
		marked = i + len;
	}
}

static bool word_at(const struct marks *m, size_t i, const char *word)
{
	size_t len = strlen(word);

	return i + len <= m->n && strncasecmp(m->s + i, word, len) == 0;
}

static size_t skip_blank(const struct marks *m, size_t i)
{
	while (i < m->n && (m->s[i] == ' ' || m->s[i] == '\t'))
		i++;
	return i;
}

/* The quote that ends a string within JSON: what follows it is not the string's any more, and
 * masking it would break the document. */
static bool ends_json_string(const struct marks *m, size_t i)
{
	return m->s[i] == '"' && i > 0 && m->s[i - 1] != '\\' &&
	       (i + 1 == m->n || memchr(",}]:", m->s[i + 1], 4));
}

static size_t line_end(const struct marks *m, size_t i)
{
	while (i < m->n && m->s[i] != '\n' && m->s[i] != '\r' && !ends_json_string(m, i))
		i++;
	return i;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* From the value's first byte: a quoted string, or everything up to white space. */
static size_t value_end(const struct marks *m, size_t i)
{
	char quote = i < m->n ? m->s[i] : 0;

	if (quote != '"' && quote != '\'') {
		while (i < m->n && !is_space(m->s[i]) && !ends_json_string(m, i))
			i++;
		return i;
	}
	for (i++; i < m->n && m->s[i] != quote && m->s[i] != '\n'; i++)
		if (m->s[i] == '\\' && i + 1 < m->n)
			i++;
	return i < m->n ? i : m->n;
}

/* word [quote] [blank] separator [blank] value: marks the value and gives its end, or 0. */
static size_t mark_assignment(struct marks *m, size_t i, const char *word, const char *seps)
{
	if (!word_at(m, i, word))
		return 0;
	i += strlen(word);
	bool quoted = i < m->n && (m->s[i] == '"' || m->s[i] == '\'');
	i = skip_blank(m, i + quoted);
	if (i >= m->n || !m->s[i] || !(strchr(seps, m->s[i]) || (quoted && m->s[i] == ':')))
		return 0;
	size_t from = skip_blank(m, i + 1), to = value_end(m, from);
	if (from < m->n && (m->s[from] == '"' || m->s[from] == '\''))
		from++;
	mark(m, from, to);
	return to;
}

static size_t mark_authorization(struct marks *m, size_t i)
{
	if (!word_at(m, i, "Authorization:"))
		return 0;
	size_t to = line_end(m, i);
	mark(m, skip_blank(m, i + 14), to);
	return to;
}

static size_t mark_pem(struct marks *m, size_t i)
{
	if (!word_at(m, i, "-----BEGIN "))
		return 0;
	const char *nl = memchr(m->s + i, '\n', m->n - i < 80 ? m->n - i : 80);
	size_t head = nl ? (size_t)(nl - m->s) - i : m->n - i < 80 ? m->n - i : 80;
	if (!contains(m->s + i, head, "PRIVATE KEY") && !contains(m->s + i, head, "Static key"))
		return 0;
	size_t from = i + 11;
	const char *end = memmem(m->s + from, m->n - from, "-----END", 8);
	const char *tail =
	    end ? memmem(end + 8, m->n - (size_t)(end + 8 - m->s), "-----", 5) : NULL;
	size_t to = tail ? (size_t)(tail - m->s) + 5 : m->n;
	mark(m, i, to);
	return to;
}

/* Each kind of pattern starts again only behind its last match: time stays linear in the text. */
static void mark_patterns(struct marks *m)
{
	static const struct {
		const char *word, *seps;
	} assigned[] = {
	    {"password", "="},	  {"token", "="},	  {"secret", "="},
	    {"PrivateKey", "=:"}, {"PresharedKey", "=:"},
	};
	size_t auth = 0, pem = 0, value[ARRAY_LEN(assigned)] = {0}, to;

	for (size_t i = 0; i < m->n; i++) {
		char c = (char)(m->s[i] | 0x20);
		if (c == 'a' && i >= auth && (to = mark_authorization(m, i)) > 0)
			auth = to;
		if (m->s[i] == '-' && i >= pem && (to = mark_pem(m, i)) > 0)
			pem = to;
		if (c != 'p' && c != 't' && c != 's')
			continue;
		for (size_t w = 0; w < ARRAY_LEN(assigned); w++)
			if (i >= value[w] &&
			    (to = mark_assignment(m, i, assigned[w].word, assigned[w].seps)) > 0)
				value[w] = to;
	}
}

static int write_marked(const struct marks *m, struct buf *out)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < m->n;) {
		const uint8_t *end = memchr(m->on + i, !m->on[i], m->n - i);
		size_t to = end ? (size_t)(end - m->on) : m->n;
		r = m->on[i] ? buf_append_str(out, MASK) : buf_append(out, m->s + i, to - i);
		i = to;
	}
	return r;
}

int redact_text(const struct secret_set *s, const char *text, size_t n, struct buf *out)
{
	struct marks m = {.s = text, .n = n};

	if (n == 0)
		return 0;
	m.on = calloc(n, 1);
	if (!m.on)
		return -ENOMEM;
	for (size_t i = 0; s && i < s->n; i++)
		mark_value(&m, s->value[i]);
	mark_patterns(&m);
	int r = write_marked(&m, out);
	free(m.on);
	return r;
}
