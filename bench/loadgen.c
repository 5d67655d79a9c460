/*
 * The load generator of bench/run: many agents in one thread, cheaper than what they load.
 *
 *   viw-loadgen --port N [options]     see options[] below; the handshake's key, if any, is in
 *                                      the environment as VIW_LOADGEN_SECRET
 *
 * Modes: fanin (connect all, wait for `go`, send frames as fast as the sockets take them or paced
 * by --rate), hold (connect all and stay; with --reconnect come back as agents do), storm (all at
 * once), churn (connect, a few frames, drop, for --seconds). Commands on stdin: `go`, `quit`; its
 * end means quit. Each event is one JSON object a line on stdout.
 */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ident.h"

#define TICK_MS 1
#define EVENTS	512

static struct load load;
static bool quit;
static uint64_t began_us, go_us, next_tick_us;
static unsigned paced_at; /* next connection to send */
static bool told_ready, told_done, was_down;
static uint64_t down_us;

void load_sample(struct load_samples *s, uint64_t us)
{
	if (s->n == s->cap) {
		if (s->cap >= 1u << 22)
			return;
		s->cap = s->cap ? s->cap * 2 : 4096;
		s->us = realloc(s->us, s->cap * sizeof *s->us);
		if (!s->us)
			abort();
	}
	s->us[s->n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static int compare_us(const void *a, const void *b)
{
	uint32_t x, y;
	memcpy(&x, a, sizeof x);
	memcpy(&y, b, sizeof y);
	return x < y ? -1 : x > y;
}

static void print_samples(const char *name, struct load_samples *s)
{
	if (!s->n)
		return;
	qsort(s->us, s->n, sizeof *s->us, compare_us);
	printf(",\"%s\":{\"n\":%zu,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u}", name, s->n,
	       s->us[s->n / 2], s->us[s->n - 1 - s->n / 100], s->us[s->n - 1]);
}

static double seconds_of(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static void say(const char *event)
{
	uint64_t now = clock_boot_us();
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	printf("{\"event\":\"%s\",\"at_s\":%.3f,\"up\":%u,\"connected\":%" PRIu64
	       ",\"attempts\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"sent\":%" PRIu64
	       ",\"acked\":%" PRIu64 ",\"cpu_s\":%.3f,\"user_s\":%.3f",
	       event, (double)(now - began_us) / 1e6, load.up, load.connected, load.attempts,
	       load.lost, load.sent, load.acked, seconds_of(u.ru_utime) + seconds_of(u.ru_stime),
	       seconds_of(u.ru_utime));
	if (go_us)
		printf(",\"go_s\":%.3f", (double)(now - go_us) / 1e6);
	if (down_us)
		printf(",\"down_s\":%.3f", (double)(now - down_us) / 1e6);
	print_samples("handshake", &load.handshake);
	print_samples("ack", &load.ack);
	printf(",\"failures\":{");
	for (size_t i = 0; i < ARRAY_LEN(load.failure) && load.failure[i].n; i++)
		printf("%s\"%s\":%" PRIu64, i ? "," : "", load.failure[i].what, load.failure[i].n);
	printf("}}\n");
	fflush(stdout);
}

/* ---- what load_conn.c tells ---- */

static uint64_t frames_left(void)
{
	return load.o.frames > load.sent ? load.o.frames - load.sent : 0;
}

void load_on_up(struct load *l, struct load_conn *c)
{
	backoff_reset(&c->backoff);
	if (l->o.mode == LOAD_CHURN)
		c->frames_left = l->o.frames_per_conn;
	bool busy = l->o.mode == LOAD_CHURN || (l->sending && l->o.rate == 0);
	load_conn_want_out(l, c, busy || c->out);
}

void load_on_writable(struct load *l, struct load_conn *c)
{
	if (l->o.mode == LOAD_CHURN) {
		if (c->frames_left) {
			unsigned sent = load_conn_send(l, c, c->frames_left);
			c->frames_left -= sent;
		} else {
			load_conn_close(l, c, c->seq & 1); /* half of them without a word */
		}
		return;
	}
	bool fast = l->sending && l->o.rate == 0 && frames_left() > 0;
	if (fast &&
	    load_conn_send(
		l, c, (unsigned)(frames_left() > load.o.burst ? load.o.burst : frames_left())) ==
		0 &&
	    c->fd >= 0 && !c->out)
		fast = false; /* MQTT: its window is full */
	load_conn_want_out(l, c, (fast && frames_left() > 0) || c->out);
}

void load_on_down(struct load *l, struct load_conn *c, enum load_state was, unsigned code)
{
	c->due_ms = 0;
	if (was == LOAD_UP && l->o.mode != LOAD_CHURN) {
		l->lost++;
		if (!was_down)
			down_us = clock_boot_us();
		was_down = true;
	}
	if (quit || (!l->o.reconnect && l->o.mode != LOAD_CHURN))
		return;
	int64_t wait =
	    code == 1001 ? (int64_t)ident_random_below(5000) : backoff_next_ms(&c->backoff);
	c->due_ms = clock_boot_ms() + (l->o.mode == LOAD_CHURN && was == LOAD_UP ? 1 : wait);
}

/* ---- the loop ---- */

static uint64_t started;

/* Churn with --rate: so many connections a second. */
static bool may_start(void)
{
	if (load.o.mode == LOAD_CHURN && load.o.rate &&
	    started >= (clock_boot_us() - began_us) * load.o.rate / 1000000u)
		return false;
	return load.pending < load.o.concurrency;
}

static void start(struct load_conn *c)
{
	started++;
	c->due_ms = 0;
	if (load_conn_start(&load, c) < 0)
		load_on_down(&load, c, LOAD_IDLE, 0);
}

static void connect_more(void)
{
	while (load.next < load.o.conns && may_start())
		start(&load.conn[load.next++]);
}

static void reconnect_due(void)
{
	static int64_t next_look;
	int64_t now = clock_boot_ms();
	if (now < next_look)
		return;
	next_look = now + 20;
	for (unsigned i = 0; i < load.next && may_start(); i++)
		if (load.conn[i].due_ms && load.conn[i].due_ms <= now)
			start(&load.conn[i]);
}

/* Frames that are due since go, one a connection in turn. */
static void send_paced(uint64_t now)
{
	uint64_t due = (now - go_us) * load.o.rate / 1000000u;
	if (due > load.o.frames)
		due = load.o.frames;
	for (unsigned tried = 0; load.sent < due && tried < load.o.conns; tried++) {
		struct load_conn *c = &load.conn[paced_at];
		paced_at = (paced_at + 1) % load.o.conns;
		load_conn_send(&load, c, 1);
	}
}

static void go(void)
{
	if (load.sending)
		return;
	load.sending = true;
	go_us = clock_boot_us();
	if (load.o.seconds > 0 && load.o.mode == LOAD_FANIN && load.o.rate)
		load.o.frames = (uint64_t)(load.o.seconds * (double)load.o.rate);
	if (load.o.rate == 0)
		for (unsigned i = 0; i < load.o.conns; i++)
			if (load.conn[i].state == LOAD_UP)
				load_conn_want_out(&load, &load.conn[i], true);
}

static void on_stdin(void)
{
	char text[256];
	ssize_t n = read(STDIN_FILENO, text, sizeof text - 1);
	if (n < 0 && errno == EAGAIN)
		return;
	text[n > 0 ? n : 0] = '\0';
	if (n <= 0 || strstr(text, "quit"))
		quit = true;
	else if (strstr(text, "go"))
		go();
	else if (strstr(text, "say"))
		say("state");
}

static bool all_written(void)
{
	for (unsigned i = 0; i < load.o.conns; i++)
		if (load.conn[i].out)
			return false;
	return true;
}

static void tell(uint64_t now)
{
	bool settled = load.next == load.o.conns && load.pending == 0;
	if (!told_ready && settled && (load.up == load.o.conns || !load.o.reconnect)) {
		told_ready = true;
		say("ready");
	}
	if (was_down && load.up == load.o.conns) {
		was_down = false;
		say("back");
		down_us = 0;
	}
	bool finished =
	    load.o.mode == LOAD_FANIN ? load.sending && frames_left() == 0 &&
					    (load.o.target != LOAD_MQTT || load.acked >= load.sent)
	    : load.o.mode == LOAD_CHURN ? (double)(now - began_us) / 1e6 > load.o.seconds
					: false;
	if (finished && !told_done && (load.o.mode == LOAD_CHURN || all_written())) {
		told_done = true;
		say("done");
		if (load.o.mode == LOAD_CHURN)
			quit = true;
	}
}

static void run(void)
{
	struct epoll_event events[EVENTS];
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
	fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
	bool has_stdin = epoll_ctl(load.epoll, EPOLL_CTL_ADD, STDIN_FILENO, &e) == 0;
	while (!quit) {
		connect_more();
		if (load.o.reconnect || load.o.mode == LOAD_CHURN)
			reconnect_due();
		bool pacing = load.sending && load.o.rate && frames_left();
		int n = epoll_wait(load.epoll, events, EVENTS, pacing ? TICK_MS : 10);
		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				load_conn_event(&load, events[i].data.ptr, events[i].events);
			else if (has_stdin)
				on_stdin();
		}
		uint64_t now = clock_boot_us();
		if (pacing && now >= next_tick_us) {
			next_tick_us = now + TICK_MS * 1000;
			send_paced(now);
		}
		tell(now);
	}
}

/* ---- options ---- */

enum { OPT_NUMBER, OPT_TEXT, OPT_FLAG, OPT_TARGET, OPT_MODE };
static uint64_t number_port, number_conns,
    number_sources = 8, number_concurrency = 200, number_window = 20, number_frames, number_rate,
    number_bytes = 400, number_each = 3, number_seconds, number_burst = 1;
static const char *no_hello_unused;
static const struct {
	const char *name;
	int kind;
	void *to;
	const char *doc;
} options[] = {
    {"target", OPT_TARGET, &load.o.target, "bridge, nats or mqtt"},
    {"mode", OPT_MODE, &load.o.mode, "fanin, hold, storm or churn"},
    {"host", OPT_TEXT, &load.o.host, "IPv4 address (127.0.0.1)"},
    {"port", OPT_NUMBER, &number_port, "TCP port"},
    {"path", OPT_TEXT, &load.o.path, "URL path (/agent/ws)"},
    {"secret", OPT_TEXT, &load.o.secret, "handshake HMAC key of the run"},
    {"prefix", OPT_TEXT, &load.o.id_prefix, "agent ids are this and five digits (bench-)"},
    {"conns", OPT_NUMBER, &number_conns, "connections"},
    {"sources", OPT_NUMBER, &number_sources, "source addresses 127.0.1.x (8)"},
    {"concurrency", OPT_NUMBER, &number_concurrency, "handshakes at once (200)"},
    {"frames", OPT_NUMBER, &number_frames, "fanin: frames in all"},
    {"rate", OPT_NUMBER, &number_rate,
     "fanin: frames, churn: connections a second in all (0: as fast as taken)"},
    {"seconds", OPT_NUMBER, &number_seconds, "churn, paced fanin: how long"},
    {"bytes", OPT_NUMBER, &number_bytes, "size of a TELEMETRY frame (400)"},
    {"window", OPT_NUMBER, &number_window, "mqtt: unacknowledged frames a connection (20)"},
    {"each", OPT_NUMBER, &number_each, "churn: frames a connection (3)"},
    {"burst", OPT_NUMBER, &number_burst, "fanin without --rate: frames written at once (1)"},
    {"tls", OPT_FLAG, &load.o.tls, "TLS"},
    {"ca-cert", OPT_TEXT, &load.o.ca_cert, "CA that signs the agents' certificates"},
    {"ca-key", OPT_TEXT, &load.o.ca_key, "its key"},
    {"reconnect", OPT_FLAG, &load.o.reconnect, "come back after a close, as agents do"},
    {"no-hello", OPT_FLAG, &no_hello_unused, "send no HELLO"},
};

static int usage(void)
{
	fprintf(stderr, "usage: viw-loadgen --port N --conns N [options]\n");
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		fprintf(stderr, "  --%-12s %s\n", options[i].name, options[i].doc);
	return 2;
}

static int word_index(const char *const *words, size_t n, const char *word)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(words[i], word) == 0)
			return (int)i;
	return -1;
}

static bool set_option(size_t i, const char *text)
{
	static const char *const targets[] = {"bridge", "nats", "mqtt"};
	static const char *const modes[] = {"fanin", "hold", "storm", "churn"};
	char *end;
	int word;
	switch (options[i].kind) {
	case OPT_NUMBER:
		*(uint64_t *)options[i].to = strtoull(text, &end, 10);
		return *text && !*end;
	case OPT_TEXT:
		*(const char **)options[i].to = text;
		return true;
	case OPT_FLAG:
		if (strcmp(options[i].name, "no-hello") == 0)
			load.o.hello = false;
		else
			*(bool *)options[i].to = true;
		return true;
	case OPT_TARGET:
		word = word_index(targets, ARRAY_LEN(targets), text);
		load.o.target = (enum load_target)word;
		return word >= 0;
	default:
		word = word_index(modes, ARRAY_LEN(modes), text);
		load.o.mode = (enum load_mode)word;
		return word >= 0;
	}
}

static bool parse(int argc, char **argv)
{
	struct option longs[ARRAY_LEN(options) + 1] = {0};
	int which;
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		longs[i] = (struct option){options[i].name, options[i].kind == OPT_FLAG ? 0 : 1,
					   NULL, (int)i + 1};
	load.o = (struct load_options){
	    .host = "127.0.0.1", .path = "/agent/ws", .id_prefix = "bench-", .hello = true};
	while ((which = getopt_long(argc, argv, "", longs, NULL)) != -1)
		if (which < 1 || which > (int)ARRAY_LEN(options) ||
		    !set_option((size_t)which - 1, optarg))
			return false;
	load.o.secret = getenv("VIW_LOADGEN_SECRET"); /* not in argv */
	load.o.port = (unsigned)number_port;
	load.o.conns = (unsigned)number_conns;
	load.o.sources = (unsigned)number_sources;
	load.o.concurrency =
	    load.o.mode == LOAD_STORM ? load.o.conns : (unsigned)number_concurrency;
	load.o.window = number_window < 60 ? (unsigned)number_window : 60;
	load.o.frames = number_frames;
	load.o.rate = number_rate;
	load.o.seconds = (double)number_seconds;
	load.o.frame_bytes = number_bytes;
	load.o.frames_per_conn = (unsigned)number_each;
	load.o.burst = (unsigned)number_burst;
	return optind == argc && load.o.port && load.o.conns && load.o.conns < 100000 &&
	       number_bytes < LOAD_FRAME_MAX - 512;
}

int main(int argc, char **argv)
{
	struct rlimit files;
	if (!parse(argc, argv))
		return usage();
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	load_frames_init(&load.o);
	if (load.o.tls && load_tls_init(&load.o) < 0) {
		fprintf(stderr, "viw-loadgen: TLS set-up failed\n");
		return 1;
	}
	load.conn = calloc(load.o.conns, sizeof *load.conn);
	load.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (!load.conn || load.epoll < 0)
		return 1;
	for (uint32_t i = 0; i < load.o.conns; i++) {
		load.conn[i].fd = -1;
		load.conn[i].index = i;
		backoff_init(&load.conn[i].backoff, 500, 10000);
	}
	began_us = clock_boot_us();
	run();
	say("end");
	return 0;
}
