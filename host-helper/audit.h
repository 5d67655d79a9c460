/*
 * The audit log: one JSON line a request, each with the SHA-256 of the line before it, so that an
 * edited, removed, inserted or reordered record breaks the chain at that place. A head file and
 * checkpoints that leave the host (data.audit of `hello`) show a cut tail. Append-only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "base/buf.h"

struct audit {
	int fd, head_fd;
	int journald;  /* datagram socket, -1: none */
	uint64_t seq;  /* of the last record */
	char hash[65]; /* its hash; 64 zeros before the first */
	int64_t ts_ms;
	uint64_t lost; /* records that could not be written */
};

struct audit_record {
	const char *event; /* request, start, checkpoint, begin, … */
	const char *agent_id, *correlation_id, *verb, *op, *args_hash, *code;
	bool has_rc;
	int rc;
	int64_t duration_ms;
	bool has_output;
	uint32_t out_crc32, err_crc32;
	bool has_peer;
	uid_t uid;
	pid_t pid;
};

int audit_open(struct audit *a, const char *state_dir) MUST_CHECK;
void audit_close(struct audit *a);
int audit_write(struct audit *a, const struct audit_record *r) MUST_CHECK;
uint32_t audit_crc32(const void *bytes, size_t n);

/* Reads the whole log. 0: good; 1: the first bad record, or the missing checkpoint, was named on
 * out; -errno. checkpoint "SEQ:HASH" or NULL. */
int audit_verify(const char *state_dir, const char *checkpoint, FILE *out) MUST_CHECK;
