/* The parts of one frame's way that need no socket, in nanoseconds each: what to look at first when
 * bench/run shows a bridge that got slower. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "crypto/crypto.h"
#include "crypto/nonces.h"
#include "wire/wire.h"

#define ROUNDS 300000

static char frame[1024];
static size_t frame_n;
static struct wire_decoder *decoder;
static struct nonces *nonces, *full;

static void make_frame(size_t bytes)
{
	int n = snprintf(
	    frame, sizeof frame,
	    "{\"type\":\"TELEMETRY\",\"agent_id\":\"bench-00001\",\"ts\":\"2026-11-20T11:09:00."
	    "123Z\","
	    "\"boot_id\":\"5e1fb1f2-6ad5-4c1f-9d3c-1a2b3c4d5e6f\",\"seq\":1000000001,"
	    "\"metrics\":{\"sent_us\":1795172940123456,\"cpu_pct\":12.5,\"mem_pct\":43.25,"
	    "\"load1\":0.42,\"uptime_s\":86400,\"services\":{\"openvpn\":\"running\"},\"pad\":\"");
	frame_n = (size_t)n;
	while (frame_n + 3 < bytes)
		frame[frame_n++] = 'x';
	memcpy(frame + frame_n, "\"}}", 3);
	frame_n += 3;
}

static void decode(void)
{
	struct wire_frame f;
	struct wire_refusal_info info;
	if (wire_decode(decoder, WIRE_FROM_AGENT, frame, frame_n, &f, &info) != WIRE_OK)
		abort();
}

static void validate(void)
{
	struct json_fault fault;
	if (json_validate(frame, frame_n, WIRE_MAX_DEPTH, &fault) < 0)
		abort();
}

static void mac(void)
{
	uint8_t out[SHA256_BYTES];
	crypto_handshake_mac("0123456789abcdef0123456789abcdef", "/agent/ws",
			     "2026-11-20T11:09:00.123Z", "a987fbc9-4bed-4078-8f07-9141ba07c9f3",
			     "bench-00001", out);
}

static void nonce(void)
{
	static uint64_t i;
	char text[24];
	int n = snprintf(text, sizeof text, "%llu", (unsigned long long)i++);
	if (nonces_add(nonces, "bench-00001", text, (size_t)n, INT64_MAX, 0) < 0)
		abort();
}

/* A full store of a million where one entry ends whenever one is added, as after ten minutes of
 * 1,667 handshakes a second; timestamps are in no order. */
#define FULL	  1000000
#define WINDOW_MS 600000

static int add_full(int64_t i, int64_t until_ms, int64_t now_ms)
{
	char text[24];
	int n = snprintf(text, sizeof text, "f%lld", (long long)i);
	return nonces_add(full, "bench-00001", text, (size_t)n, until_ms, now_ms);
}

static void fill(void)
{
	for (int64_t i = 0; i < FULL; i++)
		if (add_full(i, 1 + (i * 7919 % FULL + 1) * WINDOW_MS / FULL, 0) < 0)
			abort();
}

static void nonce_full(void)
{
	static int64_t i;
	int64_t now_ms = 2 + (i + 1) * WINDOW_MS / FULL;
	if (add_full(FULL + i++, now_ms + WINDOW_MS, now_ms) < 0)
		abort();
}

static void time_text(void)
{
	char out[CLOCK_RFC3339_LEN + 1];
	clock_format_rfc3339(clock_wall_ms(), out);
}

static void measure(const char *name, void (*fn)(void))
{
	for (int i = 0; i < ROUNDS / 10; i++)
		fn();
	uint64_t began = clock_boot_us();
	for (int i = 0; i < ROUNDS; i++)
		fn();
	printf("%-28s %6.0f ns\n", name, (double)(clock_boot_us() - began) * 1000.0 / ROUNDS);
}

int main(void)
{
	make_frame(400);
	if (wire_decoder_new(WIRE_MAX_FRAME_BYTES_DEFAULT, &decoder) < 0 ||
	    nonces_new(10000000, &nonces) < 0 || nonces_new(FULL, &full) < 0)
		return 1;
	measure("json_validate, 400 bytes", validate);
	measure("wire_decode TELEMETRY", decode);
	measure("crypto_handshake_mac", mac);
	measure("nonces_add", nonce);
	fill();
	measure("nonces_add, full store", nonce_full);
	measure("clock_format_rfc3339", time_text);
	wire_decoder_free(decoder);
	nonces_free(nonces);
	nonces_free(full);
	return 0;
}
