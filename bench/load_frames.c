/*
 * What is sent. A TELEMETRY frame is a template made once; only agent, sequence, time and mask
 * change, so that making one costs well under a microsecond.
 */
#include "load.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/ident.h"
#include "crypto/crypto.h"

#define AGENT_DIGITS 5
#define SEQ_DIGITS   10
#define SEQ_FIRST    1000000000u /* JSON numbers have no leading zeros */
#define TIME_DIGITS  16

static char json[LOAD_FRAME_MAX];
static size_t json_n, at_agent, at_seq, at_ts, at_us;
static uint64_t mask_state;

static size_t offset_of(const char *mark)
{
	char *p = strstr(json, mark);
	assert(p);
	return (size_t)(p - json);
}

void load_frames_init(const struct load_options *o)
{
	int n = snprintf(
	    json, sizeof json,
	    "{\"type\":\"TELEMETRY\",\"agent_id\":\"%s@@@@@\",\"ts\":\"TTTTTTTTTTTTTTTTTTTTTTTT\","
	    "\"boot_id\":\"5e1fb1f2-6ad5-4c1f-9d3c-1a2b3c4d5e6f\",\"seq\":SSSSSSSSSS,"
	    "\"metrics\":{\"sent_us\":UUUUUUUUUUUUUUUU,\"cpu_pct\":12.5,\"mem_pct\":43.25,"
	    "\"load1\":0.42,\"uptime_s\":86400,\"services\":{\"openvpn\":\"running\"},\"pad\":\"",
	    o->id_prefix);
	assert(n > 0);
	json_n = (size_t)n;
	while (json_n + 3 < o->frame_bytes && json_n + 3 < sizeof json)
		json[json_n++] = 'x';
	memcpy(json + json_n, "\"}}", 4);
	json_n += 3;
	at_agent = offset_of("@@@@@");
	at_ts = offset_of("TTTTTTTTTTTTTTTTTTTTTTTT");
	at_seq = offset_of("SSSSSSSSSS");
	at_us = offset_of("UUUUUUUUUUUUUUUU");
	mask_state = ident_random_u64() | 1;
}

static void put_digits(char *out, uint64_t v, unsigned digits)
{
	while (digits--) {
		out[digits] = (char)('0' + v % 10);
		v /= 10;
	}
}

static uint32_t next_mask(void)
{
	mask_state ^= mask_state << 13; /* xorshift64: masks need no secrecy here */
	mask_state ^= mask_state >> 7;
	mask_state ^= mask_state << 17;
	return (uint32_t)(mask_state >> 16);
}

size_t load_frames_wrap(unsigned opcode, const char *payload, size_t n, char *out)
{
	unsigned char *p = (unsigned char *)out;
	uint32_t mask = next_mask();
	uint64_t mask8 = (uint64_t)mask << 32 | mask;
	*p++ = (unsigned char)(0x80 | opcode);
	if (n < 126) {
		*p++ = (unsigned char)(0x80 | n);
	} else {
		assert(n < 65536);
		*p++ = 0x80 | 126;
		*p++ = (unsigned char)(n >> 8);
		*p++ = (unsigned char)n;
	}
	memcpy(p, &mask, 4);
	p += 4;
	size_t i = 0;
	for (; i + 8 <= n; i += 8) {
		uint64_t v;
		memcpy(&v, payload + i, 8);
		v ^= mask8;
		memcpy(p + i, &v, 8);
	}
	unsigned char key[4];
	memcpy(key, &mask, 4);
	for (; i < n; i++)
		p[i] = (unsigned char)payload[i] ^ key[i & 3];
	return (size_t)(p - (unsigned char *)out) + n;
}

size_t load_frames_upgrade(const struct load_options *o, uint32_t index, char *out)
{
	static const char *const protocol[] = {"viworks-agent-v1", NULL, "mqtt"};
	char ts[CLOCK_RFC3339_LEN + 1], nonce[UUID_LEN + 1], id[80], hex[SHA256_HEX_LEN + 1];
	const char *sub = protocol[o->target];
	int n = snprintf(
	    out, LOAD_FRAME_MAX,
	    "GET %s HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
	    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s%s",
	    o->path, o->host, o->port, sub ? "Sec-WebSocket-Protocol: " : "", sub ? sub : "",
	    sub ? "\r\n" : "");
	size_t len = (size_t)n;
	if (o->target == LOAD_BRIDGE) {
		snprintf(id, sizeof id, "%s%05u", o->id_prefix, index);
		clock_format_rfc3339(clock_wall_ms(), ts);
		ident_uuid4(nonce);
		n = snprintf(out + len, LOAD_FRAME_MAX - len,
			     "X-Agent-Id: %s\r\nX-Timestamp: %s\r\nX-Nonce: %s\r\n", id, ts, nonce);
		len += (size_t)n;
		if (o->secret) {
			uint8_t mac[SHA256_BYTES];
			crypto_handshake_mac(o->secret, o->path, ts, nonce, id, mac);
			crypto_hex(mac, sizeof mac, hex);
			n = snprintf(out + len, LOAD_FRAME_MAX - len, "X-Agent-Auth: %s\r\n", hex);
			len += (size_t)n;
		}
	}
	memcpy(out + len, "\r\n", 2);
	return len + 2;
}

static size_t open_nats(char *out)
{
	static const char text[] = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"c\","
				   "\"version\":\"1\",\"protocol\":1}\r\nPING\r\n";
	return load_frames_wrap(2, text, sizeof text - 1, out);
}

static size_t open_mqtt(const struct load_options *o, uint32_t index, char *out)
{
	char p[128];
	int id_n = snprintf(p + 14, sizeof p - 14, "%s%05u", o->id_prefix, index);
	/* CONNECT, MQTT 3.1.1, clean session, keep alive 600 s */
	static const char head[] = {0x10, 0, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 2, 88, 0, 0};
	memcpy(p, head, sizeof head);
	p[1] = (char)(12 + id_n);
	p[13] = (char)id_n;
	return load_frames_wrap(2, p, 14 + (size_t)id_n, out);
}

size_t load_frames_open(const struct load_options *o, uint32_t index, char *out)
{
	switch (o->target) {
	case LOAD_NATS:
		return open_nats(out);
	case LOAD_MQTT:
		return open_mqtt(o, index, out);
	default:
		return 0;
	}
}

size_t load_frames_hello(const struct load_options *o, uint32_t index, char *out)
{
	char p[512];
	int n =
	    snprintf(p, sizeof p,
		     "{\"type\":\"HELLO\",\"agent_id\":\"%s%05u\",\"version\":\"1.0.0\","
		     "\"capabilities\":[\"telemetry\"],\"hostname\":\"bench\",\"site\":\"bench\"}",
		     o->id_prefix, index);
	return load_frames_wrap(1, p, (size_t)n, out);
}

size_t load_frames_answer(const struct load_options *o, uint32_t index, const char *id, size_t id_n,
			  char *out)
{
	char p[LOAD_FRAME_MAX];
	int n = snprintf(p, sizeof p,
			 "{\"type\":\"COMMAND_ACK\",\"agent_id\":\"%s%05u\","
			 "\"correlation_id\":\"%.*s\"}",
			 o->id_prefix, index, (int)id_n, id);
	size_t len = load_frames_wrap(1, p, (size_t)n, out);
	n = snprintf(p, sizeof p,
		     "{\"type\":\"RESULT\",\"agent_id\":\"%s%05u\",\"correlation_id\":\"%.*s\","
		     "\"status\":\"success\",\"rc\":0,\"stdout\":\"hello\"}",
		     o->id_prefix, index, (int)id_n, id);
	return len + load_frames_wrap(1, p, (size_t)n, out + len);
}

static const char *now_text(int64_t ms)
{
	static int64_t last = -1;
	static char text[CLOCK_RFC3339_LEN + 1];
	if (ms != last)
		clock_format_rfc3339(last = ms, text);
	return text;
}

static void fill(const struct load_conn *c, char *p)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	uint64_t us = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
	memcpy(p, json, json_n);
	put_digits(p + at_agent, c->index, AGENT_DIGITS);
	put_digits(p + at_seq, SEQ_FIRST + c->seq, SEQ_DIGITS);
	put_digits(p + at_us, us, TIME_DIGITS);
	memcpy(p + at_ts, now_text((int64_t)(us / 1000)), CLOCK_RFC3339_LEN);
}

static size_t data_nats(const struct load_options *o, struct load_conn *c, char *out)
{
	char p[LOAD_FRAME_MAX];
	int n = snprintf(p, sizeof p, "PUB viw.telemetry.%s%05u %zu\r\n", o->id_prefix, c->index,
			 json_n);
	fill(c, p + n);
	memcpy(p + (size_t)n + json_n, "\r\n", 2);
	return load_frames_wrap(2, p, (size_t)n + json_n + 2, out);
}

static size_t data_mqtt(const struct load_options *o, struct load_conn *c, char *out)
{
	char p[LOAD_FRAME_MAX], topic[128];
	int topic_n = snprintf(topic, sizeof topic, "viw/telemetry/%s%05u", o->id_prefix, c->index);
	size_t rest = 2 + (size_t)topic_n + 2 + json_n;
	uint16_t id = (uint16_t)(c->seq % 65535 + 1);
	size_t n = 0;
	p[n++] = 0x32; /* PUBLISH, QoS 1 */
	for (size_t v = rest; v; v >>= 7)
		p[n++] = (char)((v & 127) | (v > 127 ? 128 : 0));
	p[n++] = (char)(topic_n >> 8);
	p[n++] = (char)topic_n;
	memcpy(p + n, topic, (size_t)topic_n);
	n += (size_t)topic_n;
	p[n++] = (char)(id >> 8);
	p[n++] = (char)id;
	fill(c, p + n);
	c->sent_at[id % ARRAY_LEN(c->sent_at)] = (uint32_t)clock_boot_us();
	return load_frames_wrap(2, p, n + json_n, out);
}

size_t load_frames_data(const struct load_options *o, struct load_conn *c, char *out)
{
	char p[LOAD_FRAME_MAX];
	size_t n;
	switch (o->target) {
	case LOAD_NATS:
		n = data_nats(o, c, out);
		break;
	case LOAD_MQTT:
		n = data_mqtt(o, c, out);
		break;
	default:
		fill(c, p);
		n = load_frames_wrap(1, p, json_n, out);
	}
	c->seq++;
	return n;
}
