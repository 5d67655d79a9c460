#include "staging.h"

#include <errno.h>
#include <string.h>

#include "arena.h"
#include "base/log.h"
#include "worker.h"

int staging_init(struct staging *s, const struct worker_ops *ops, void *arg,
		 const struct intake *in)
{
	*s = (struct staging){.ops = ops, .arg = arg, .intake = in};
	return dead_letters_init(&s->dead);
}

void staging_fini(struct staging *s)
{
	dead_letters_fini(&s->dead);
	dead_notes_fini(&s->dead_notes);
}

static void staging_clear(struct staging *s)
{
	s->ops->clear(s->arg);
	dead_letters_clear(&s->dead);
	dead_notes_clear(&s->dead_notes);
	s->serial = 0;
	s->staged = 0;
	s->err = 0;
}

static int staging_dead_letter(struct staging *s, const struct intake_entry *x, const char *reason,
			       const char *detail)
{
	struct span value = {0};
	const char *field = s->ops->mask ? s->ops->mask(s->arg, x->stream, &x->e, &value) : NULL;
	const char *stream = intake_stream_name(s->intake, x->stream);
	int r = dead_letters_add_entry(&s->dead, stream, &x->e, reason, detail, field, value);

	if (r == -ENOBUFS) /* over the cap of a payload: the reason alone is kept */
		r = dead_letters_add_raw(&s->dead, span_of(stream), x->e.id, span_of(reason),
					 SPAN("(entry too large to keep)"), true, (struct span){0});
	return r < 0 ? r : dead_notes_add(&s->dead_notes, x, reason, detail);
}

/* Kept by name alone: nobody but who added it can know more. */
static int staging_large(struct staging *s, const struct intake_entry *x)
{
	const char *stream = intake_stream_name(s->intake, x->stream);
	int r = dead_letters_add_raw(&s->dead, span_of(stream), x->e.id, SPAN("too_large"),
				     SPAN("(entry too large to read)"), true, (struct span){0});

	return r < 0 ? r : dead_notes_add(&s->dead_notes, x, "too_large", NULL);
}

static int staging_entry(struct staging *s, const struct intake_entry *x, const char *reason,
			 const char *detail)
{
	if (x->large)
		return staging_large(s, x);
	if (!x->e.fields)
		return 0; /* trimmed before it was stored; counted by intake */
	if (!reason)
		reason = s->ops->stage(s->arg, x->stream, &x->e);
	if (reason == no_memory)
		return -ENOMEM;
	return reason ? staging_dead_letter(s, x, reason, detail) : 0;
}

bool staging_ahead(struct staging *s, const struct intake_batch *b, size_t n)
{
	if (s->serial != b->serial) {
		staging_clear(s);
		s->serial = b->serial;
	}
	if (s->err < 0)
		return false;
	if (s->staged == b->n)
		return s->ops->fold && s->ops->fold(s->arg);
	for (; n && s->staged < b->n && s->err == 0; n--)
		s->err = staging_entry(s, &b->item[s->staged++], NULL, NULL);
	return s->err == 0;
}

int staging_range(struct staging *s, const struct intake_batch *b, size_t from, size_t to,
		  const char *reason, const char *detail)
{
	bool ahead = s->serial && s->serial == b->serial && s->err == 0 && from == 0 &&
		     s->staged <= to && !reason;

	if (!ahead)
		staging_clear(s);
	from += s->staged;
	s->serial = 0;
	s->staged = 0;
	for (; from < to && s->err == 0; from++)
		s->err = staging_entry(s, &b->item[from], reason, detail);
	return s->err;
}
