/*
 * The journal: one file per command, named by the SHA-256 of its correlation_id, in one folder.
 * A file becomes visible whole (written, synced, renamed without replacing, folder synced) before
 * anything starts; that rename is the dedupe. The run's supervisor holds flock(2) on it while it
 * lives: that is liveness. See ARCHITECTURE.md, "Execution".
 *
 * Files age by the time that helpers of this journal were seen to run, kept in
 * state_dir/journal.seen: a host may start with any time of day, and be connected only once that
 * has been put right. The count is never ahead of true time: it leaves out what nobody saw, and a
 * crash takes up to a minute off it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/ident.h"
#include "outcome.h"

#define JOURNAL_KEEP_MS	 (8LL * 86400 * 1000)
#define JOURNAL_NAME_LEN 64

struct journal {
	int dir; /* descriptor of the folder */
	char id[UUID_LEN + 1];
	int seen_fd;			      /* -1: there was no room for the file */
	int64_t seen_before_ms, kept_seen_ms; /* counted before opening; as on disk */
	int64_t opened_boot_ms;
};

enum journal_state { JOURNAL_ABSENT, JOURNAL_RUNNING, JOURNAL_DONE, JOURNAL_VOID, JOURNAL_UNKNOWN };
const char *journal_state_word(enum journal_state s);

/* What INTENT says. */
struct intent {
	char correlation_id[CORRELATION_ID_MAX + 1];
	char agent_id[AGENT_ID_MAX + 1];
	char verb[65];
	char digest[65];
	char nonce[UUID_LEN + 1];
	char run_id[33]; /* marks the run's processes: VIW_RUN_ID in their environment */
	char boot_id[UUID_LEN + 1];
	int64_t deadline_ms, created_ms;
	int64_t
	    seen_ms; /* read only: the count when it was written; 0 if from before it was kept */
};

struct journal_entry {
	enum journal_state state;
	const char *corrupt; /* static text: the file is torn or foreign (state is UNKNOWN) */
	struct intent intent;
	pid_t child;		/* the run's first process and session, 0: never recorded */
	uint64_t child_start;	/* its start time in clock ticks, from /proc */
	struct outcome outcome; /* when DONE */
};

/* Opens or creates state_dir/journal and the journal's id; a changed machine-id (a cloned disk)
 * makes a new id, told by *ret_new. Leftovers of torn creations are removed. */
int journal_open(struct journal *j, const char *state_dir, bool *ret_new) MUST_CHECK;
void journal_close(struct journal *j);
/* Puts the count of time seen on disk, once a minute; not synced, it must only outlive us. */
void journal_keep_seen(struct journal *j);
void journal_name(const char *correlation_id, char *out /* JOURNAL_NAME_LEN + 1 */);

/*
 * Creates the file with INTENT, holding reserve_bytes for what follows, all synced, and gives its
 * descriptor with the lock held. -EEXIST: there is one; -ENOSPC and others: nothing was left
 * behind. Called by the supervisor.
 */
int journal_begin(const struct journal *j, const struct intent *in, size_t reserve_bytes,
		  int *ret_fd) MUST_CHECK;
/* Names the first process, so that it can be made sure dead. Not synced: it must only outlive us.
 */
int journal_start(int fd, pid_t child, uint64_t child_start) MUST_CHECK;
/* Writes the outcome into the reserved space, syncs, gives the rest back. */
int journal_done(int fd, const struct outcome *o) MUST_CHECK;
/* Creates the file as VOID, synced. -EEXIST. */
int journal_void(const struct journal *j, const char *correlation_id,
		 const char *agent_id) MUST_CHECK;
/* Reads one; ret is always initialised. -errno on machine failure only. */
int journal_look(const struct journal *j, const char *correlation_id,
		 struct journal_entry *ret) MUST_CHECK;
/* The same by the file's name. */
int journal_look_file(const struct journal *j, const char *name,
		      struct journal_entry *ret) MUST_CHECK;
/* False when the entry is known to be of another verb or other arguments; what cannot be trusted
 * tells nothing of either. */
bool journal_is_of(const struct journal_entry *e, const char *digest);
void journal_entry_fini(struct journal_entry *e);
/* Unlinks files older than JOURNAL_KEEP_MS, both by now_ms and by the time seen to pass, that no
 * supervisor holds. One that cannot be read tells no age and stays. Reads the whole folder. */
int journal_age(const struct journal *j, int64_t now_ms, size_t *ret_removed) MUST_CHECK;
