/*
 * Summaries of the helper's audit log for AUDIT frames. The helper tells its log's head and counts
 * that only rise; a summary says how many requests of each verb ended in which outcome after
 * from_seq up to seq, and the hash of seq. Nothing acknowledges an AUDIT frame: what was sent on a
 * connection counts as told only when the next summary goes out on the same one; otherwise that
 * next one begins at the same from_seq again. So a summary replaces all earlier ones that begin
 * at or after its from_seq, and none is missing.
 */
#pragma once

#include "base/buf.h"
#include "wire/json_scan.h"

#define AUDIT_SUMMARY_MAX 65536

struct audit_summary {
	struct buf now;	 /* data.audit of the last hello */
	struct buf sent; /* the one of the last summary on this connection */
	struct buf told; /* where the next summary begins */
};

void audit_summary_init(struct audit_summary *s);
void audit_summary_fini(struct audit_summary *s);
/* data.audit of a hello; what is no such object is dropped. 0 or -errno. */
int audit_summary_learn(struct audit_summary *s, struct span audit) MUST_CHECK;
/* The record of the next AUDIT frame, appended. -ENODATA: the helper has told nothing yet. */
int audit_summary_compose(const struct audit_summary *s, struct buf *out) MUST_CHECK;
void audit_summary_sent(struct audit_summary *s); /* what compose gave is on its way */
void audit_summary_session_end(struct audit_summary *s);
