/* Summaries of the helper's audit log. See audit_summary.h. */
#include "audit_summary.h"

#include <errno.h>
#include <string.h>

#include "base/jsonw.h"

void audit_summary_init(struct audit_summary *s)
{
	buf_init(&s->now, AUDIT_SUMMARY_MAX);
	buf_init(&s->sent, AUDIT_SUMMARY_MAX);
	buf_init(&s->told, AUDIT_SUMMARY_MAX);
}

void audit_summary_fini(struct audit_summary *s)
{
	buf_fini(&s->now);
	buf_fini(&s->sent);
	buf_fini(&s->told);
}

static struct span span_of_buf(const struct buf *b)
{
	return (struct span){b->data ? b->data : "", b->len};
}

static bool number(struct span obj, const char *key, int64_t *ret)
{
	struct json_member m;

	return obj.n && json_find(obj, key, &m) && m.type == JSON_T_INT &&
	       json_int(m.raw, ret) == 0 && *ret >= 0;
}

static struct span counts_of(struct span audit)
{
	struct json_member m;

	return audit.n && json_find(audit, "counts", &m) && m.type == JSON_T_OBJ ? m.raw
										 : SPAN("{}");
}

/* counts[name][outcome]; 0 when it is not there. */
static int64_t count_at(struct span counts, struct span name, const char *outcome)
{
	struct json_member m;
	struct json_iter it;
	int64_t n = 0;

	json_iter_init(&it, counts);
	while (json_iter_next(&it, &m)) {
		if (m.key.n != name.n || memcmp(m.key.p, name.p, name.n) != 0)
			continue;
		return m.type == JSON_T_OBJ && number(m.raw, outcome, &n) ? n : 0;
	}
	return 0;
}

/* Keys go out as they came: names of verbs and outcomes need no escape, anything else is left. */
static bool plain(struct span key, char *out, size_t cap)
{
	return span_copy(key, out, cap) == 0 && !memchr(key.p, '\\', key.n);
}

/* now - base of one verb. False when a count fell: base is another helper life's. */
static bool put_name(struct jsonw *w, const char *name, const struct json_member *of,
		     struct span base)
{
	struct json_member m;
	struct json_iter it;
	bool open = false;
	char outcome[64];
	int64_t n, before;

	json_iter_init(&it, of->raw);
	while (json_iter_next(&it, &m)) {
		if (!plain(m.key, outcome, sizeof outcome) || m.type != JSON_T_INT ||
		    json_int(m.raw, &n) < 0)
			continue;
		before = count_at(base, of->key, outcome);
		if (n < before)
			return false;
		if (n == before)
			continue;
		if (!open)
			jsonw_obj(w, name);
		open = true;
		jsonw_int(w, outcome, n - before);
	}
	if (open)
		jsonw_obj_end(w);
	return true;
}

static int put(const struct audit_summary *s, struct span base, int64_t from, struct buf *out)
{
	struct span now = span_of_buf(&s->now);
	struct json_member m;
	struct json_iter it;
	struct jsonw w;
	char name[128];
	int64_t seq;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	if (number(now, "seq", &seq))
		jsonw_int(&w, "seq", seq);
	if (json_find(now, "hash", &m) && m.type == JSON_T_STR)
		jsonw_raw(&w, "hash", m.raw.p - 1, m.raw.n + 2);
	if (json_find(now, "ts", &m) && m.type == JSON_T_STR)
		jsonw_raw(&w, "ts", m.raw.p - 1, m.raw.n + 2);
	if (json_find(now, "counts", &m) && m.type == JSON_T_OBJ) {
		jsonw_int(&w, "from_seq", from);
		jsonw_obj(&w, "counts");
		json_iter_init(&it, m.raw);
		while (json_iter_next(&it, &m)) {
			if (m.type == JSON_T_OBJ && plain(m.key, name, sizeof name) &&
			    !put_name(&w, name, &m, counts_of(base)))
				return -ESTALE;
		}
		jsonw_obj_end(&w);
	}
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

int audit_summary_learn(struct audit_summary *s, struct span audit)
{
	int64_t seq;
	int r;

	if (!number(audit, "seq", &seq))
		return -EBADMSG;
	buf_clear(&s->now);
	r = buf_append(&s->now, audit.p, audit.n);
	if (r < 0)
		buf_clear(&s->now);
	return r;
}

int audit_summary_compose(const struct audit_summary *s, struct buf *out)
{
	struct span now = span_of_buf(&s->now);
	struct span base = span_of_buf(s->sent.len ? &s->sent : &s->told);
	int64_t from = 0, base_from, seq, base_seq;
	size_t was = out->len;
	int r = -ESTALE;

	if (!now.n)
		return -ENODATA;
	(void)number(now, "from_seq", &from);
	if (number(now, "seq", &seq) && number(base, "from_seq", &base_from) &&
	    number(base, "seq", &base_seq) && base_from == from && base_seq <= seq)
		r = put(s, base, base_seq, out);
	if (r == -ESTALE) { /* the helper started anew: all that it has counted */
		out->len = was;
		r = put(s, SPAN("{}"), from, out);
	}
	return r;
}

static void take(struct buf *to, struct buf *from)
{
	buf_fini(to);
	*to = *from;
	buf_init(from, AUDIT_SUMMARY_MAX);
}

void audit_summary_sent(struct audit_summary *s)
{
	if (s->sent.len)
		take(&s->told, &s->sent);
	buf_clear(&s->sent);
	if (buf_append(&s->sent, s->now.data, s->now.len) < 0)
		buf_clear(&s->sent); /* the next one begins where this one did */
}

void audit_summary_session_end(struct audit_summary *s)
{
	buf_clear(&s->sent);
}
