/*
 * The load generator's shared types. One thread, one epoll set, an array of connections that is
 * allocated once. loadgen.c holds modes and the loop, load_conn.c the sockets, load_frames.c what
 * is sent and how it is wrapped, load_tls.c client certificates.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/backoff.h"
#include "base/macros.h"

#define LOAD_BURST_MAX 16 /* frames written at once by one connection */
#define LOAD_FRAME_MAX 8192

enum load_target { LOAD_BRIDGE, LOAD_NATS, LOAD_MQTT };
enum load_mode { LOAD_FANIN, LOAD_HOLD, LOAD_STORM, LOAD_CHURN };

struct load_options {
	enum load_target target;
	enum load_mode mode;
	const char *host, *path, *secret, *id_prefix;
	unsigned port, conns, sources, concurrency, window, frames_per_conn, burst;
	uint64_t frames, rate;
	double seconds;
	size_t frame_bytes;
	bool tls, reconnect, hello;
	const char *ca_cert, *ca_key;
};

enum load_state {
	LOAD_IDLE,
	LOAD_CONNECTING,
	LOAD_TLS,     /* handshake */
	LOAD_UPGRADE, /* HTTP upgrade sent */
	LOAD_OPENING, /* waiting for HELLO_ACK, CONNACK, PONG */
	LOAD_UP,
};

struct load_conn {
	int fd;
	uint32_t index;
	enum load_state state;
	bool want_out;	/* EPOLLOUT is asked for */
	void *ssl;	/* SSL * */
	char *in, *out; /* what could not be parsed or written yet */
	uint32_t in_n, out_n, out_at;
	uint64_t seq;
	uint32_t unacked;     /* MQTT */
	uint32_t sent_at[64]; /* MQTT: low 32 bits of the µs, by packet id */
	uint64_t began_us;
	uint32_t frames_left; /* churn */
	int64_t due_ms;	      /* IDLE: when to connect again; 0: not at all */
	struct backoff backoff;
};

struct load_samples {
	uint32_t *us;
	size_t n, cap;
};
void load_sample(struct load_samples *s, uint64_t us);

struct load {
	struct load_options o;
	int epoll;
	struct load_conn *conn;
	unsigned up, pending; /* pending: between connect and UP */
	unsigned next;	      /* next to connect first */
	bool sending;	      /* the go was given */
	uint64_t sent, acked, connected, lost, attempts;
	struct load_samples handshake, ack;
	struct load_failure {
		char what[64];
		uint64_t n;
	} failure[32];
};

/* ---- load_conn.c ---- */
int load_conn_start(struct load *l, struct load_conn *c);
void load_conn_event(struct load *l, struct load_conn *c, uint32_t events);
/* frames frames now (bounded by burst, window and what the socket takes); how many were begun. */
unsigned load_conn_send(struct load *l, struct load_conn *c, unsigned frames);
/* reset: with RST. */
void load_conn_close(struct load *l, struct load_conn *c, bool reset);
void load_conn_want_out(struct load *l, struct load_conn *c, bool on);
void load_failure_add(struct load *l, const char *what);

/* ---- loadgen.c, told by load_conn.c ---- */
void load_on_up(struct load *l, struct load_conn *c);
/* code: WebSocket close code, or 0. */
void load_on_down(struct load *l, struct load_conn *c, enum load_state was, unsigned code);
void load_on_writable(struct load *l, struct load_conn *c);

/* ---- load_frames.c ---- */
void load_frames_init(const struct load_options *o);
/* Writes into out (LOAD_FRAME_MAX each); returns bytes. */
size_t load_frames_upgrade(const struct load_options *o, uint32_t index, char *out);
/* What opens the protocol after the upgrade (CONNECT of NATS, MQTT); 0: nothing. */
size_t load_frames_open(const struct load_options *o, uint32_t index, char *out);
size_t load_frames_hello(const struct load_options *o, uint32_t index, char *out);
/* COMMAND_ACK and RESULT for one command. */
size_t load_frames_answer(const struct load_options *o, uint32_t index, const char *id, size_t id_n,
			  char *out);
size_t load_frames_data(const struct load_options *o, struct load_conn *c, char *out);
/* A client frame around n payload bytes. */
size_t load_frames_wrap(unsigned opcode, const char *payload, size_t n, char *out);

/* ---- load_tls.c ---- */
int load_tls_init(const struct load_options *o);
/* A TLS client object on fd, with a certificate of its own when a CA was given. NULL: error. */
void *load_tls_new(const struct load_options *o, uint32_t index, int fd);
int load_tls_handshake(void *ssl);			 /* 0, -EAGAIN, -EPROTO */
long load_tls_read(void *ssl, void *out, size_t n);	 /* bytes, 0 end, -EAGAIN, -EPROTO */
long load_tls_write(void *ssl, const void *p, size_t n); /* the same */
void load_tls_free(void *ssl, bool notify);
