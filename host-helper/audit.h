/*
 * The audit log: one JSON line a request, each with the SHA-256 of the line before it, so that an
 * edited, removed, inserted or reordered record breaks the chain at that place. A head file and
 * checkpoints that leave the host (data.audit of `hello`) show a cut tail. Append-only.
 *
 * audit.log is put aside as audit-<seq of its last record>.log when it is full; the chain goes on.
 * The oldest are removed beyond a number of files, and a record of the chain says so first.
 *
 * Nothing here waits for the disk. audit_sync does, in a process of its own: before anything with
 * effects starts, before a checkpoint is told, and every AUDIT_SYNC_MS. So a power cut can cost the
 * records of those last seconds, but none of a start and none that a checkpoint named.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/buf.h"
#include "crypto/crypto.h"

#define AUDIT_NO_HASH "0000000000000000000000000000000000000000000000000000000000000000"
#define AUDIT_SYNC_MS 5000

/* A record of the chain. */
struct audit_mark {
	uint64_t seq;
	char hash[SHA256_HEX_LEN + 1]; /* 64 zeros before the first */
	int64_t ts_ms;
};

struct audit {
	int dir; /* the state folder */
	int fd, head_fd;
	int before; /* the file put aside last, until it was synced; -1: none */
	uint64_t before_seq;
	int journald;		/* datagram socket, -1: none */
	int64_t looked_boot_ms; /* for it, last */
	struct audit_mark last, synced;
	int64_t size, file_bytes;
	int files; /* how many put aside are kept */
};

struct audit_record {
	const char *event; /* request, start, checkpoint, begin, pruned, refused */
	const char *agent_id, *correlation_id, *verb, *op, *args_hash, *code;
	bool has_rc;
	int rc;
	int64_t duration_ms;
	bool has_output;
	uint32_t out_crc32, err_crc32;
	bool has_peer;
	uid_t uid;
	pid_t pid;
	const struct audit_mark *pruned; /* last record of a file that is removed */
};

int audit_open(struct audit *a, const char *state_dir, int64_t file_bytes, int files) MUST_CHECK;
void audit_close(struct audit *a);
int audit_write(struct audit *a, const struct audit_record *r) MUST_CHECK;
/* Waits for the disk: call it in a process of its own. */
int audit_sync(const struct audit *a) MUST_CHECK;
/* What such a process has synced: everything up to `mark`, taken when it was forked. */
void audit_synced(struct audit *a, const struct audit_mark *mark);
uint32_t audit_crc32(const void *bytes, size_t n);

/* ---- for audit_verify.c ---- */
/* seq and prev of one line. -EBADMSG. */
int audit_line_parse(const char *p, size_t n, struct audit_mark *ret_with_prev_hash) MUST_CHECK;
void audit_hash_line(const char *line, size_t n, char *out);
/* Names of the files put aside, oldest first, each freed by the caller; count or -errno. */
int audit_list_files(int dir, char ***ret) MUST_CHECK;
void audit_free_files(char **names, int n);

/* Reads the whole log. 0: good; 1: the first bad record, or the missing checkpoint, was named on
 * out; -errno. checkpoint "SEQ:HASH" or NULL. */
int audit_verify(const char *state_dir, const char *checkpoint, FILE *out) MUST_CHECK;
