/* Spans, and walking through JSON that was validated before. */
#include <errno.h>
#include <stdlib.h>

#include "wire/json_core.h"

bool span_eq(struct span a, const char *text)
{
	size_t n = strlen(text);

	return a.p && a.n == n && memcmp(a.p, text, n) == 0;
}

struct span span_of(const char *text)
{
	return (struct span){text, text ? strlen(text) : 0};
}

int span_copy(struct span s, char *out, size_t cap)
{
	if (s.n >= cap)
		return -ENOBUFS;
	if (s.n)
		memcpy(out, s.p, s.n);
	out[s.n] = '\0';
	return 0;
}

char *span_dup(struct span s)
{
	char *copy = s.p ? malloc(s.n + 1) : NULL;

	if (copy) {
		memcpy(copy, s.p, s.n);
		copy[s.n] = '\0';
	}
	return copy;
}

void json_iter_init(struct json_iter *it, struct span container)
{
	const char *end = container.p + container.n;

	it->p = json_skip_space(container.p, end);
	it->end = end;
	it->object = it->p < end && *it->p == '{';
	it->first = true;
	if (it->p < end)
		it->p++;
}

/* Behind the closing quote; p is behind the opening one. */
static const char *skip_string(const char *p, const char *end)
{
	while (p < end && *p != '"')
		p += *p == '\\' ? 2 : 1;
	return p < end ? p + 1 : end;
}

static const char *skip_container(const char *p, const char *end)
{
	size_t depth = 0;

	while (p < end) {
		char c = *p++;

		if (c == '"')
			p = skip_string(p, end);
		else if (c == '{' || c == '[')
			depth++;
		else if ((c == '}' || c == ']') && --depth == 0)
			break;
	}
	return p;
}

static const char *skip_scalar(const char *p, const char *end, enum json_type *ret_type)
{
	*ret_type = *p == 't' || *p == 'f' ? JSON_T_BOOL : *p == 'n' ? JSON_T_NULL : JSON_T_INT;
	for (; p < end && !strchr(",}] \t\r\n", *p); p++) {
		if (*ret_type == JSON_T_INT && (*p == '.' || *p == 'e' || *p == 'E'))
			*ret_type = JSON_T_REAL;
	}
	return p;
}

static const char *take_value(const char *p, const char *end, struct json_member *ret)
{
	const char *start = p;

	switch (*p) {
	case '"':
		p = skip_string(p + 1, end);
		ret->type = JSON_T_STR;
		ret->raw = (struct span){start + 1, (size_t)(p - start) - 2};
		return p;
	case '{':
	case '[':
		ret->type = *p == '{' ? JSON_T_OBJ : JSON_T_ARR;
		p = skip_container(p, end);
		break;
	default:
		p = skip_scalar(p, end, &ret->type);
	}
	ret->raw = (struct span){start, (size_t)(p - start)};
	return p;
}

bool json_iter_next(struct json_iter *it, struct json_member *ret)
{
	const char *p = json_skip_space(it->p, it->end), *start;

	if (p < it->end && *p == ',' && !it->first)
		p = json_skip_space(p + 1, it->end);
	if (p >= it->end || *p == '}' || *p == ']')
		return false;
	it->first = false;
	ret->key = (struct span){NULL, 0};
	if (it->object) {
		start = p + 1;
		p = skip_string(start, it->end);
		ret->key = (struct span){start, (size_t)(p - start) - 1};
		p = json_skip_space(p, it->end);
		p = json_skip_space(p + 1, it->end); /* the colon */
	}
	it->p = take_value(p, it->end, ret);
	return true;
}

bool json_find(struct span object, const char *key, struct json_member *ret)
{
	size_t n = strlen(key);
	struct json_iter it;
	struct json_member m;

	json_iter_init(&it, object);
	while (it.object && json_iter_next(&it, &m)) {
		if (json_raw_eq(m.key, key, n)) {
			*ret = m;
			return true;
		}
	}
	return false;
}
