/* Stream entries out of XRANGE, XREADGROUP and XCLAIM answers. */
#include "redis/streams.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"

int stream_entry_parse(const struct redis_reply *r, struct stream_entry *ret)
{
	const struct redis_reply *fields;

	if (redis_type(r) != REDIS_ARR || redis_len(r) != 2 ||
	    redis_type(redis_at(r, 0)) != REDIS_STR)
		return -EBADMSG;
	fields = redis_at(r, 1);
	if (redis_type(fields) != REDIS_ARR && redis_type(fields) != REDIS_NIL)
		return -EBADMSG;
	if (redis_len(fields) % 2)
		return -EBADMSG;
	ret->id = redis_str(redis_at(r, 0));
	ret->fields = redis_type(fields) == REDIS_ARR ? fields : NULL;
	return 0;
}

struct span stream_field(const struct stream_entry *e, const char *name)
{
	for (size_t i = 0; i + 1 < redis_len(e->fields); i += 2)
		if (span_eq(redis_str(redis_at(e->fields, i)), name))
			return redis_str(redis_at(e->fields, i + 1));
	return (struct span){0};
}

const struct redis_reply *stream_read_entries(const struct redis_reply *r)
{
	const struct redis_reply *stream = redis_at(r, 0);

	if (redis_type(r) != REDIS_ARR || redis_type(stream) != REDIS_ARR || redis_len(stream) != 2)
		return NULL;
	stream = redis_at(stream, 1);
	return redis_type(stream) == REDIS_ARR && redis_len(stream) ? stream : NULL;
}

int stream_id_ms(struct span id, int64_t *ret_ms)
{
	uint64_t v = 0;
	size_t i = 0;

	for (; i < id.n && id.p[i] >= '0' && id.p[i] <= '9'; i++) {
		unsigned digit = (unsigned)(id.p[i] - '0');

		if (v > (UINT64_MAX - digit) / 10)
			return -EINVAL;
		v = v * 10 + digit;
	}
	if (!i || i + 1 >= id.n || id.p[i] != '-')
		return -EINVAL;
	for (size_t k = i + 1; k < id.n; k++)
		if (id.p[k] < '0' || id.p[k] > '9')
			return -EINVAL;
	*ret_ms = v > INT64_MAX ? INT64_MAX : (int64_t)v;
	return 0;
}

int stream_entry_ms(struct span id, int64_t *ret_wall_ms)
{
	enum { DAY_MS = 86400000 };
	int64_t ms, now_ms = clock_wall_ms();
	int r = stream_id_ms(id, &ms);

	if (r < 0)
		return r;
	*ret_wall_ms = ms - DAY_MS > now_ms ? now_ms : ms;
	return 0;
}
