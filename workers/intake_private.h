/* What intake.c (reading) and intake_ack.c (afterwards) share. */
#pragma once

#include "intake.h"

enum ahead { AHEAD_NONE, AHEAD_ASKED, AHEAD_ANSWERED };

struct intake {
	struct intake_config c;
	char *name[INTAKE_STREAMS_MAX], *group, *consumer, *url;
	size_t streams;
	struct redis_sync *reader[2]; /* the batch's entries live in reader[at]'s last reply */
	unsigned at;
	enum ahead ahead;		       /* what of the next batch the other reader has */
	const struct redis_reply *ahead_reply; /* ANSWERED; NULL: ahead_error */
	int ahead_error;
	struct redis_sync *control;
	bool ready;			      /* groups exist */
	bool fresh;			      /* the batch is of new entries */
	bool own_pending[INTAKE_STREAMS_MAX]; /* more of our own is still to be read, behind
						 own_from */
	size_t careful; /* streams whose next one is still to be read alone: one may be too large */
	char own_from[INTAKE_STREAMS_MAX][48];
	char claim_cursor_text[INTAKE_STREAMS_MAX][48];
	int64_t claim_at_ms;
	unsigned claim_next;
	int64_t kept_at_ms;
	size_t count, ceiling;	  /* entries of a read; ceiling: what the database bears */
	struct entries now, next; /* next: ahead_reply's, if its serial is set */
	uint64_t serial;
	uint64_t lost[INTAKE_STREAMS_MAX];
	uint64_t generation;
	char error[240];
};

/* r failed: the groups are made again, and our own pending entries read, before anything else. */
int intake_fail(struct intake *in, struct redis_sync *r, int error) MUST_CHECK;
int intake_refused(struct intake *in, const struct redis_reply *reply) MUST_CHECK;
