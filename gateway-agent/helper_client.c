/* The agent's end of the helper's socket. See helper_client.h. */
#include "helper_client.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/backoff.h"
#include "base/clock.h"
#include "base/ident.h"
#include "base/log.h"
#include "crypto/crypto.h"
#include "loop/loop.h"

#define MAX_IN_FLIGHT	 128
#define HELLO_EVERY_MS	 15000
#define HELLO_ANSWER_MS	 10000
#define PROBE_MS	 5000  /* requests wait: ask hello so often */
#define REQUEST_VALID_MS 30000 /* the helper allows 60 s */
#define RETRY_BASE_MS	 100
#define RETRY_CAP_MS	 5000
#define SWEEP_MS	 1000

enum helper_state { DOWN, CONNECTING, GREETING, UP, CLOSED };

struct pending {
	char correlation_id[CORRELATION_ID_MAX + 1];
	helper_answer cb;
	void *arg;
	int64_t give_up_at_ms; /* boot clock; 0: never */
	struct pending *next;
};

struct helper_client {
	struct loop *loop;
	char *socket, *secret, *agent_id;
	const struct helper_client_ops *ops;
	void *arg;

	enum helper_state state;
	struct loop_stream *stream;
	struct loop_timer *retry, *sweep;
	struct backoff backoff;
	struct wire_decoder *decoder;
	struct buf rx;
	struct pending *pending;
	unsigned in_flight;
	char hello_id[CORRELATION_ID_MAX + 1];
	int64_t hello_sent_ms, hello_seen_ms; /* boot clock; sent 0: none outstanding */
	char why[160];
};

static const char *const op_words[] = {
    [HELPER_RUN] = NULL, [HELPER_QUERY] = "query", [HELPER_VOID] = "void"};

static void answer(struct pending *p, const struct wire_helper_reply *reply)
{
	p->cb(p->arg, p->correlation_id, reply);
	free(p);
}

void helper_client_answer_lost(struct helper_client *h)
{
	struct pending *p = TAKE(h->pending);

	h->in_flight = 0;
	while (p) {
		struct pending *next = p->next;

		answer(p, NULL);
		p = next;
	}
}

static void drop_connection(struct helper_client *h, const char *why)
{
	bool was_up = h->state == UP;

	if (h->state == CLOSED || h->state == DOWN)
		return;
	if (h->stream)
		loop_stream_close(TAKE(h->stream));
	h->state = DOWN;
	h->hello_sent_ms = 0;
	buf_wipe(&h->rx);
	buf_trim(&h->rx, 0);
	if (strcmp(h->why, why) != 0 || was_up)
		LOG_WARN(FIELDS(.event = "helper_down", .agent_id = h->agent_id, .error = why),
			 "the helper is not reachable at %s", h->socket);
	(void)snprintf(h->why, sizeof h->why, "%s", why);
	loop_timer_start(h->retry, backoff_next_ms(&h->backoff), 0);
	if (was_up)
		h->ops->on_down(h->arg, h->why);
	helper_client_answer_lost(h);
}

/* ---- lines ---- */

int helper_client_encode(const char *secret, const char *agent_id, const char *op,
			 const struct helper_ask *ask, struct buf *out)
{
	uint8_t mac[SHA256_BYTES];
	char hex[SHA256_HEX_LEN + 1], nonce[UUID_LEN + 1];
	int64_t now = clock_wall_ms();
	struct wire_frame f = {.type = WIRE_HELPER_REQUEST};
	struct buf json;
	int r;

	ident_uuid4(nonce);
	f.helper_request = (struct wire_helper_request){
	    .v = {.v = 1, .set = true},
	    .op = span_of(op),
	    .agent_id = span_of(agent_id),
	    .correlation_id = span_of(ask->correlation_id),
	    .verb = span_of(ask->verb),
	    .args = ask->args,
	    .nonce = span_of(nonce),
	    .issued_at = {.ms = now, .set = true},
	    .expires_at = {.ms = now + REQUEST_VALID_MS, .set = true},
	    .deadline = {.ms = ask->deadline_ms, .set = ask->deadline_ms != 0},
	};
	buf_init(&json, WIRE_HELPER_REQUEST_MAX - SHA256_HEX_LEN - 2);
	r = wire_encode(&f, &json);
	if (r == 0) {
		crypto_hmac_sha256(secret, strlen(secret), json.data, json.len, mac);
		crypto_hex(mac, sizeof mac, hex);
		r = buf_append(out, hex, SHA256_HEX_LEN);
	}
	if (r == 0)
		r = buf_append_char(out, ' ');
	if (r == 0)
		r = buf_append(out, json.data, json.len);
	if (r == 0)
		r = buf_append_char(out, '\n');
	buf_wipe(&json);
	buf_fini(&json);
	return r == -ENOBUFS ? -EMSGSIZE : r;
}

int helper_client_open_line(const char *secret, const char *line, size_t n, struct span *ret_json)
{
	uint8_t said[SHA256_BYTES], mac[SHA256_BYTES];
	const char *json = line + SHA256_HEX_LEN + 1;

	if (n < SHA256_HEX_LEN + 3 || line[SHA256_HEX_LEN] != ' ' ||
	    crypto_unhex(line, SHA256_HEX_LEN, said) < 0)
		return -EBADMSG;
	n -= SHA256_HEX_LEN + 1;
	crypto_hmac_sha256(secret, strlen(secret), json, n, mac);
	if (!crypto_equal(said, mac, sizeof mac))
		return -EBADMSG;
	*ret_json = (struct span){json, n};
	return 0;
}

static int send_line(struct helper_client *h, const char *op, const struct helper_ask *ask)
{
	struct buf line;
	int r;

	buf_init(&line, WIRE_HELPER_REQUEST_MAX);
	r = helper_client_encode(h->secret, h->agent_id, op, ask, &line);
	if (r == 0)
		r = loop_stream_write(h->stream, line.data, line.len);
	buf_wipe(&line);
	buf_fini(&line);
	return r;
}

static void say_hello(struct helper_client *h)
{
	char uuid[UUID_LEN + 1];

	ident_uuid4(uuid);
	(void)snprintf(h->hello_id, sizeof h->hello_id, "hello-%s", uuid);
	if (send_line(h, "hello", &(struct helper_ask){.correlation_id = h->hello_id}) < 0) {
		drop_connection(h, "cannot write to the helper");
		return;
	}
	h->hello_sent_ms = clock_boot_ms();
}

static void on_hello_reply(struct helper_client *h, const struct wire_helper_reply *r)
{
	char why[160];

	h->hello_sent_ms = 0;
	h->hello_seen_ms = clock_boot_ms();
	if (!span_eq(r->status, "ok")) {
		(void)snprintf(why, sizeof why, "helper refuses: " SPAN_FMT " " SPAN_FMT,
			       SPAN_ARG(r->error.code), SPAN_ARG(r->error.msg));
		drop_connection(h, why);
		return;
	}
	if (h->state == GREETING) {
		h->state = UP;
		h->why[0] = '\0';
		backoff_reset(&h->backoff);
		LOG_INFO(FIELDS(.event = "helper_up", .agent_id = h->agent_id),
			 "helper answers at %s", h->socket);
	}
	h->ops->on_up(h->arg, r->data);
}

static void on_reply(struct helper_client *h, const struct wire_helper_reply *r)
{
	struct pending **at, *p;

	if (span_eq(r->correlation_id, h->hello_id)) {
		on_hello_reply(h, r);
		return;
	}
	for (at = &h->pending; (p = *at); at = &p->next) {
		if (!span_eq(r->correlation_id, p->correlation_id))
			continue;
		*at = p->next;
		h->in_flight--;
		answer(p, r);
		return;
	}
	if (!r->correlation_id.p) {
		/* It could not even read the id: the secret or the protocol does not fit. */
		char why[160];

		(void)snprintf(why, sizeof why, "helper refuses: " SPAN_FMT " " SPAN_FMT,
			       SPAN_ARG(r->error.code), SPAN_ARG(r->error.msg));
		drop_connection(h, why);
		return;
	}
	LOG_DEBUG(FIELDS(.event = "helper_reply_unasked"), "a reply nobody waits for");
}

static void on_line(struct helper_client *h, const char *line, size_t n)
{
	struct wire_refusal_info info;
	struct wire_frame f;
	struct span json;

	if (helper_client_open_line(h->secret, line, n, &json) < 0) {
		drop_connection(h,
				"a reply's MAC is wrong: HELPER_SECRET differs from the helper's");
		return;
	}
	if (wire_decode_as(h->decoder, WIRE_HELPER_REPLY, json.p, json.n, &f, &info) != WIRE_OK) {
		LOG_WARN(FIELDS(.event = "helper_reply_bad", .error = info.msg),
			 "a reply of the helper cannot be read");
		drop_connection(h, "a reply of the helper cannot be read");
		return;
	}
	on_reply(h, &f.helper_reply);
}

static void on_bytes(void *arg, const char *bytes, size_t n)
{
	struct helper_client *h = arg;
	const char *nl;

	while (n > 0) {
		size_t take;

		nl = memchr(bytes, '\n', n);
		take = nl ? (size_t)(nl - bytes) : n;
		if (buf_append(&h->rx, bytes, take) < 0) {
			drop_connection(h, "a reply of the helper is too long");
			return;
		}
		bytes += take + (nl ? 1 : 0);
		n -= take + (nl ? 1 : 0);
		if (nl) {
			/* The line leaves rx first: answering may drop the connection and rx. */
			struct buf line = h->rx;

			buf_init(&h->rx, WIRE_HELPER_REPLY_MAX);
			on_line(h, line.data, line.len);
			buf_wipe(&line);
			buf_fini(&line);
			if (h->state != GREETING && h->state != UP)
				return;
		}
	}
}

static void on_connect(void *arg, int error)
{
	struct helper_client *h = arg;
	char why[160];

	if (error) {
		(void)snprintf(why, sizeof why, "cannot connect: %s", strerror(-error));
		drop_connection(h, why);
		return;
	}
	h->state = GREETING;
	say_hello(h);
}

static void on_end(void *arg, int error)
{
	char why[160];

	(void)snprintf(why, sizeof why, "connection ended%s%s", error ? ": " : "",
		       error ? strerror(-error) : "");
	drop_connection(arg, why);
}

static const struct loop_stream_ops stream_ops = {
    .on_connect = on_connect, .on_bytes = on_bytes, .on_end = on_end};

static void try_connect(void *arg)
{
	struct helper_client *h = arg;
	char why[160];
	int r;

	assert(h->state == DOWN);
	h->state = CONNECTING;
	r = loop_stream_connect_unix(h->loop, h->socket, &stream_ops, h, &h->stream);
	if (r < 0) {
		(void)snprintf(why, sizeof why, "cannot connect: %s", strerror(-r));
		drop_connection(h, why);
	}
}

/* Times out asks and hellos; asks for the next hello. */
static void on_sweep(void *arg)
{
	struct helper_client *h = arg;
	int64_t now = clock_boot_ms();
	struct pending **at = &h->pending, *p, *late = NULL;

	while ((p = *at)) {
		if (p->give_up_at_ms && now >= p->give_up_at_ms) {
			*at = p->next;
			h->in_flight--;
			p->next = late;
			late = p;
		} else {
			at = &p->next;
		}
	}
	while ((p = late)) {
		late = p->next;
		answer(p, NULL);
	}
	if (h->hello_sent_ms && now - h->hello_sent_ms >= HELLO_ANSWER_MS)
		drop_connection(h, "the helper does not answer");
	else if (h->state == UP && !h->hello_sent_ms &&
		 now - h->hello_seen_ms >= (h->pending ? PROBE_MS : HELLO_EVERY_MS))
		say_hello(h);
}

int helper_client_ask(struct helper_client *h, const struct helper_ask *ask, helper_answer cb,
		      void *arg)
{
	struct pending *p;
	int r;

	if (h->state != UP)
		return -ENOTCONN;
	if (h->in_flight >= MAX_IN_FLIGHT)
		return -ENOBUFS;
	for (p = h->pending; p; p = p->next) {
		if (strcmp(p->correlation_id, ask->correlation_id) == 0)
			return -EEXIST;
	}
	p = calloc(1, sizeof *p);
	if (!p)
		return -ENOMEM;
	if (strlen(ask->correlation_id) > CORRELATION_ID_MAX) {
		free(p);
		return -EINVAL;
	}
	(void)snprintf(p->correlation_id, sizeof p->correlation_id, "%s", ask->correlation_id);
	p->cb = cb;
	p->arg = arg;
	p->give_up_at_ms = ask->give_up_ms ? clock_boot_ms() + ask->give_up_ms : 0;
	r = send_line(h, op_words[ask->op], ask);
	if (r < 0) {
		free(p);
		return r;
	}
	p->next = h->pending;
	h->pending = p;
	h->in_flight++;
	return 0;
}

bool helper_client_is_up(const struct helper_client *h)
{
	return h->state == UP;
}

const char *helper_client_why_down(const struct helper_client *h)
{
	return h->state == UP ? "" : h->why;
}

int helper_client_open(struct loop *l, const struct helper_client_config *cfg,
		       const struct helper_client_ops *ops, void *arg, struct helper_client **ret)
{
	struct helper_client *h = calloc(1, sizeof *h);
	int r = -ENOMEM;

	if (!h)
		return -ENOMEM;
	*h = (struct helper_client){.loop = l, .ops = ops, .arg = arg, .state = DOWN};
	backoff_init(&h->backoff, RETRY_BASE_MS, RETRY_CAP_MS);
	buf_init(&h->rx, WIRE_HELPER_REPLY_MAX);
	h->socket = strdup(cfg->socket);
	h->agent_id = strdup(cfg->agent_id);
	h->secret = cfg->secret ? strdup(cfg->secret) : NULL;
	if (!h->socket || !h->agent_id || (cfg->secret && !h->secret))
		goto fail;
	r = wire_decoder_new(WIRE_HELPER_REPLY_MAX, &h->decoder);
	if (r < 0)
		goto fail;
	r = loop_timer_new(l, try_connect, h, &h->retry);
	if (r < 0)
		goto fail;
	r = loop_timer_new(l, on_sweep, h, &h->sweep);
	if (r < 0)
		goto fail;
	if (h->secret) {
		loop_timer_start(h->retry, 0, 0);
		loop_timer_start(h->sweep, SWEEP_MS, SWEEP_MS);
	} else {
		(void)snprintf(h->why, sizeof h->why, "HELPER_SECRET is not set");
	}
	*ret = h;
	return 0;
fail:
	helper_client_close(h);
	return r;
}

void helper_client_close(struct helper_client *h)
{
	if (!h)
		return;
	h->state = CLOSED;
	if (h->stream)
		loop_stream_close(TAKE(h->stream));
	loop_timer_close(h->retry);
	loop_timer_close(h->sweep);
	while (h->pending) {
		struct pending *p = h->pending;

		h->pending = p->next;
		free(p);
	}
	if (h->decoder)
		wire_decoder_free(h->decoder);
	buf_wipe(&h->rx);
	buf_fini(&h->rx);
	if (h->secret)
		crypto_wipe(h->secret, strlen(h->secret));
	free(h->secret);
	free(h->socket);
	free(h->agent_id);
	free(h);
}
