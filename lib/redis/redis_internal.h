/* What the files of lib/redis share: URL, request formatting, reply reader, SHA-1. */
#pragma once

#include <stdarg.h>

#include "redis/redis.h"

/* ---- URL ---- */
struct redis_url {
	bool is_unix;
	char host[256];
	uint16_t port;
	char path[108];
	char user[128], password[512];
	int db;
};
int redis_url_parse(const char *url, struct redis_url *ret, char *msg, size_t msg_cap) MUST_CHECK;
void redis_url_wipe(struct redis_url *u);

/* ---- requests ---- */
#define REDIS_FMT_WORDS_MAX 48
/* Appends argv as one RESP array. */
int resp_append(struct buf *out, size_t argc, const struct span *argv) MUST_CHECK;
/* The words of redis_cmdf's fmt; text is scratch that argv points into. -E2BIG over the cap. */
int resp_vformat(struct buf *text, const char *fmt, va_list ap, size_t *ret_argc,
		 struct span *argv) MUST_CHECK;
/* AUTH, SELECT, PING as the URL asks: appends them, says how many replies come. */
int resp_append_greeting(struct buf *out, const struct redis_url *u,
			 unsigned *ret_replies) MUST_CHECK;

/* ---- replies ---- */
struct redis_reader;
int redis_reader_new(struct redis_reader **ret) MUST_CHECK;
void redis_reader_free(struct redis_reader *d);
/* Forgets everything half read. */
int redis_reader_reset(struct redis_reader *d) MUST_CHECK;
int redis_reader_feed(struct redis_reader *d, const char *bytes, size_t n) MUST_CHECK;
/* 1 and a reply that lives until the next call, 0 when more bytes are needed, -EPROTO. */
int redis_reader_next(struct redis_reader *d, const struct redis_reply **ret) MUST_CHECK;
/* Memory of the reply that is being read, or was last. */
size_t redis_reader_held(const struct redis_reader *d);

/* out: 41 bytes, hex. RFC 3174; only names scripts, protects nothing. */
void redis_sha1_hex(const char *text, size_t n, char *out);
