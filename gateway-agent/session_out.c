/* Frames to the bridge. See session.h. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "base/program.h"
#include "session_private.h"

int session_send_frame(struct session *s, const struct wire_frame *f)
{
	struct buf b;
	int r;

	buf_init(&b, UPLINK_MAX_FRAME_BYTES);
	r = wire_encode(f, &b);
	if (r == 0)
		r = uplink_send(s->uplink, b.data, b.len);
	if (r == 0)
		metric_add(session_metric(s, M_frames, wire_type_word(f->type), "out"), 1);
	buf_fini(&b);
	return r;
}

static struct wire_time wire_now(void)
{
	return (struct wire_time){.ms = clock_wall_ms(), .set = true};
}

/* "a=1,b=2" as a JSON object. */
static void put_labels(struct jsonw *w, const char *csv)
{
	const char *p = csv;
	char key[128];

	while (p && *p) {
		size_t n = strcspn(p, ",");
		const char *eq = memchr(p, '=', n);

		if (eq && (size_t)(eq - p) < sizeof key) {
			memcpy(key, p, (size_t)(eq - p));
			key[eq - p] = '\0';
			jsonw_strn(w, key, eq + 1, n - (size_t)(eq - p) - 1);
		}
		p += n + (p[n] == ',');
	}
}

/* Of what a reload or the helper can change. */
static void hello_digest(const struct wire_hello *h, uint8_t out[SHA256_BYTES])
{
	const struct span part[] = {h->supported_verbs, h->site, h->labels};
	uint8_t all[ARRAY_LEN(part) * SHA256_BYTES];
	size_t i;

	for (i = 0; i < ARRAY_LEN(part); i++)
		crypto_sha256(part[i].p ? part[i].p : "", part[i].n, all + i * SHA256_BYTES);
	crypto_sha256(all, sizeof all, out);
}

int session_hello(struct session *s, bool changed_only)
{
	static const char capabilities[] = "[\"telemetry\",\"commands\",\"cancel\",\"audit\"]";
	char host[256] = "", nonce[UUID_LEN + 1];
	uint8_t digest[SHA256_BYTES];
	struct wire_frame f = {.type = WIRE_HELLO};
	struct buf verbs, labels;
	struct jsonw w;
	int r;

	ident_uuid4(nonce);
	(void)gethostname(host, sizeof host - 1);
	buf_init(&verbs, 65536);
	buf_init(&labels, 8192);
	jsonw_init(&w, &verbs);
	jsonw_arr(&w, NULL);
	s->ops->put_verbs(s->arg, &w);
	jsonw_arr_end(&w);
	r = jsonw_finish(&w);
	jsonw_init(&w, &labels);
	jsonw_obj(&w, NULL);
	put_labels(&w, s->cfg->labels);
	jsonw_obj_end(&w);
	if (r == 0)
		r = jsonw_finish(&w);
	f.hello = (struct wire_hello){
	    .agent_id = span_of(s->cfg->id),
	    .version = span_of(program_version),
	    .capabilities = SPAN(capabilities),
	    .supported_verbs = {verbs.data, verbs.len},
	    .hostname = span_of(host[0] ? host : NULL),
	    .site = span_of(s->cfg->site),
	    .boot_id = span_of(s->boot_id),
	    .journal_id = span_of(s->journal_id[0] ? s->journal_id : NULL),
	    .now = wire_now(),
	    .nonce = span_of(nonce),
	};
	if (s->cfg->labels)
		f.hello.labels = (struct span){labels.data, labels.len};
	hello_digest(&f.hello, digest);
	if (r == 0 && !(changed_only && crypto_equal(digest, s->hello_digest, sizeof digest)))
		r = session_send_frame(s, &f);
	if (r == 0)
		memcpy(s->hello_digest, digest, sizeof digest);
	buf_fini(&verbs);
	buf_fini(&labels);
	return r;
}

void session_flush(struct session *s)
{
	const struct ring_item *it;

	while (s->state == READY && (it = ring_oldest(&s->ring))) {
		if (uplink_send(s->uplink, it->text, it->n) < 0)
			break; /* on_drained goes on */
		metric_add(session_metric(s, M_frames, wire_type_word(WIRE_TELEMETRY), "out"), 1);
		ring_pop(&s->ring);
	}
	metric_set(session_metric(s, M_ring_frames, NULL, NULL), (double)s->ring.count);
}

void session_telemetry(struct session *s, struct span metrics)
{
	struct wire_frame f = {.type = WIRE_TELEMETRY};
	struct buf b;
	int dropped = 0;

	f.telemetry = (struct wire_telemetry){.agent_id = span_of(s->cfg->id),
					      .ts = wire_now(),
					      .metrics = metrics,
					      .boot_id = span_of(s->boot_id),
					      .seq = {.v = ++s->seq, .set = true}};
	buf_init(&b, s->max_frame_bytes);
	if (wire_encode(&f, &b) == 0)
		dropped = ring_push(&s->ring, b.data, b.len, s->seq, &s->declaring);
	else
		LOG_ERROR(FIELDS(.event = "telemetry_not_encoded", .agent_id = s->cfg->id),
			  "a TELEMETRY frame is too big or memory is short");
	s->declaring = (struct ring_gap){0};
	if (dropped > 0)
		metric_add(session_metric(s, M_telemetry_dropped, NULL, NULL), (uint64_t)dropped);
	buf_fini(&b);
	session_flush(s);
}

struct ring_gap session_take_gap(struct session *s)
{
	s->declaring = ring_take_gap(&s->ring);
	return s->declaring;
}

int session_send(struct session *s, enum wire_type type, const char *json, size_t n)
{
	int r = s->state == READY ? uplink_send(s->uplink, json, n) : -ENOTCONN;

	if (r == 0)
		metric_add(session_metric(s, M_frames, wire_type_word(type), "out"), 1);
	return r;
}

int session_audit(struct session *s, struct span record)
{
	struct wire_frame f = {.type = WIRE_AUDIT};

	if (s->state != READY)
		return -ENOTCONN;
	f.audit = (struct wire_audit){.agent_id = span_of(s->cfg->id), .record = record};
	return session_send_frame(s, &f);
}

void session_heartbeat(struct session *s)
{
	struct wire_frame f = {.type = WIRE_HEARTBEAT};

	f.heartbeat = (struct wire_heartbeat){.agent_id = span_of(s->cfg->id), .ts = wire_now()};
	s->last_heartbeat_ms = clock_boot_ms();
	if (session_send_frame(s, &f) < 0)
		LOG_DEBUG(FIELDS(.event = "heartbeat_not_sent"), "no room for HEARTBEAT");
}
