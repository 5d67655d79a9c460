#include "dead_notes.h"

#include <errno.h>
#include <stdlib.h>

#include "base/grow.h"
#include "base/ident.h"
#include "base/log.h"
#include "worker_metrics.h"

/* Whoever can fill a stream with what is no row must not fill the log. */
enum { LINES_A_MINUTE = 30 };

void dead_notes_fini(struct dead_notes *d)
{
	free(d->item);
	*d = (struct dead_notes){0};
}

void dead_notes_clear(struct dead_notes *d)
{
	d->n = 0;
}

int dead_notes_add(struct dead_notes *d, const struct intake_entry *x, const char *reason,
		   const char *detail)
{
	if (grow(&d->item, d->n, &d->cap, 16, sizeof *d->item) < 0)
		return -ENOMEM;
	d->item[d->n++] = (struct dead_note){x, reason, detail};
	return 0;
}

/* A field as a word for the log; NULL when it is no such id. Redis' words end with a NUL. */
static const char *id_of(const struct stream_entry *e, const char *field,
			 bool (*is_id)(const char *, size_t))
{
	struct span s = stream_field(e, field);

	return s.p && is_id(s.p, s.n) ? s.p : NULL;
}

static void tell(const struct dead_note *x, const char *stream, long left_out)
{
	const struct stream_entry *e = &x->x->e;

	LOG_WARN(FIELDS(.event = "dead_letter", .stream = stream, .error = x->reason,
			.detail = x->detail, .agent_id = id_of(e, "agent_id", ident_is_agent_id),
			.correlation_id = id_of(e, "correlation_id", ident_is_correlation_id),
			.has_count = left_out > 0, .count = left_out),
		 "entry " SPAN_FMT " cannot be stored; it is kept in dead_letters",
		 SPAN_ARG(e->id));
}

void dead_notes_tell(const struct dead_notes *d, const struct intake *in, struct metrics *m,
		     struct log_limit *lines)
{
	for (size_t i = 0; i < d->n; i++) {
		const struct dead_note *x = &d->item[i];
		metric_add(metrics_get(m, M_dead, x->reason, NULL), 1);
		long left_out = log_limit_pass(lines, LINES_A_MINUTE);
		if (left_out >= 0)
			tell(x, intake_stream_name(in, x->x->stream), left_out);
	}
}
