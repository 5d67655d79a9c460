/*
 * See log.h. A line is built in a stack buffer, so logging works without memory; every text has
 * its own share of the line, so that a long one cannot push the others out.
 */
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/utf8.h"

#define LINE_MAX_BYTES	 8192
#define MSG_MAX_BYTES	 3900
#define DETAIL_MAX_BYTES 1024
#define FIELD_MAX_BYTES	 300
#define WAIT_MS		 200
#define WAIT_AGAIN_MS	 10000
static const char cut_mark[] = "...[cut]";

static bool log_json = true;
static enum log_level log_least = LOG_LEVEL_INFO;

static const char *const level_word[] = {"debug", "info", "warn", "error"};

struct line {
	char text[LINE_MAX_BYTES];
	size_t n;
};

void log_setup(bool json, enum log_level level)
{
	log_json = json;
	log_least = level;
}

int log_level_parse(const char *word, enum log_level *ret)
{
	for (unsigned i = 0; i < ARRAY_LEN(level_word); i++) {
		if (strcmp(word, level_word[i]) == 0) {
			*ret = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

bool log_enabled(enum log_level level)
{
	return level >= log_least;
}

static void put(struct line *l, const char *s, size_t n)
{
	size_t room = sizeof l->text - 1 - l->n; /* one byte is kept for the newline */
	if (n > room)
		n = room;
	memcpy(l->text + l->n, s, n);
	l->n += n;
}

static void put_str(struct line *l, const char *s)
{
	put(l, s, strlen(s));
}

/* One character escaped for JSON (and harmless in text); returns the input bytes taken. */
static size_t escape(const char *s, size_t n, char out[8], size_t *ret_n)
{
	unsigned char c = (unsigned char)s[0];
	const char *short_form = c == '\n'   ? "\\n"
				 : c == '\t' ? "\\t"
				 : c == '\r' ? "\\r"
				 : c == '"'  ? "\\\""
				 : c == '\\' ? "\\\\"
					     : NULL;
	size_t len = short_form ? 1 : utf8_sequence(s, n);
	if (short_form)
		*ret_n = (size_t)snprintf(out, 8, "%s", short_form);
	else if (c < 0x20 || c == 0x7f)
		*ret_n = (size_t)snprintf(out, 8, "\\u%04x", c);
	else if (len == 0)
		*ret_n = (size_t)snprintf(out, 8, "\xef\xbf\xbd");
	else if (utf8_is_control(s, len))
		*ret_n = (size_t)snprintf(out, 8, "\\u%04x", (unsigned char)s[1]);
	else
		memcpy(out, s, *ret_n = len);
	return len ? len : 1;
}

/* At most max output bytes, the mark included. */
static void put_escaped(struct line *l, const char *s, size_t max)
{
	size_t n = strlen(s), used = 0, left = max - (sizeof cut_mark - 1);
	for (size_t i = 0; i < n;) {
		char esc[8];
		size_t esc_n, took;

		if (n - i <= left - used) { /* what needs no care at once */
			size_t run = utf8_plain_prefix(s + i, n - i);

			put(l, s + i, run);
			used += run;
			i += run;
			if (i == n)
				return;
		}
		took = escape(s + i, n - i, esc, &esc_n);
		if (used + esc_n > left) {
			put_str(l, cut_mark);
			return;
		}
		put(l, esc, esc_n);
		used += esc_n;
		i += took;
	}
}

static void put_text(struct line *l, const char *key, const char *s, size_t max)
{
	if (!s)
		return;
	put_str(l, log_json ? ",\"" : " ");
	put_str(l, key);
	put_str(l, log_json ? "\":\"" : "=");
	bool quote = !log_json && (!*s || s[strcspn(s, " \"=\\")]);
	if (quote)
		put_str(l, "\"");
	put_escaped(l, s, max);
	if (log_json || quote)
		put_str(l, "\"");
}

static void put_number(struct line *l, const char *key, int64_t v)
{
	char text[64];
	snprintf(text, sizeof text, log_json ? ",\"%s\":%" PRId64 : " %s=%" PRId64, key, v);
	put_str(l, text);
}

static void put_fields(struct line *l, const struct log_fields *f)
{
	put_text(l, "event", f->event, FIELD_MAX_BYTES);
	put_text(l, "conn_id", f->conn_id, FIELD_MAX_BYTES);
	put_text(l, "agent_id", f->agent_id, FIELD_MAX_BYTES);
	put_text(l, "correlation_id", f->correlation_id, FIELD_MAX_BYTES);
	put_text(l, "ip", f->ip, FIELD_MAX_BYTES);
	put_text(l, "error", f->error, FIELD_MAX_BYTES);
	put_text(l, "setting", f->setting, FIELD_MAX_BYTES);
	put_text(l, "stream", f->stream, FIELD_MAX_BYTES);
	put_text(l, "verb", f->verb, FIELD_MAX_BYTES);
	put_text(l, "detail", f->detail, DETAIL_MAX_BYTES);
	if (f->has_rc)
		put_number(l, "rc", f->rc);
	if (f->has_duration_ms)
		put_number(l, "duration_ms", f->duration_ms);
	if (f->has_count)
		put_number(l, "count", f->count);
}

/* Whoever reads stderr may stand still (journald that is stopped, a full pipe), and write(2) would
 * wait as long: a moment is waited, seldom, and then the line is left out. */
static bool can_write(void)
{
	static _Atomic int64_t waited_ms = -WAIT_AGAIN_MS;
	struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};
	int64_t now_ms;

	if (poll(&p, 1, 0) != 0)
		return true;
	now_ms = clock_boot_ms();
	if (now_ms - waited_ms < WAIT_AGAIN_MS)
		return false;
	waited_ms = now_ms;
	return poll(&p, 1, WAIT_MS) != 0;
}

/* A pipe that can be written to takes PIPE_BUF bytes at once. */
static bool put_out(const char *at, size_t n)
{
	static atomic_bool cut; /* the last line is, amid */

	if (cut && can_write() && write(STDERR_FILENO, "\n", 1) == 1)
		cut = false;
	while (n) {
		size_t piece = n < PIPE_BUF ? n : PIPE_BUF;
		ssize_t r;

		if (!can_write())
			return false;
		do
			r = write(STDERR_FILENO, at, piece);
		while (r < 0 && errno == EINTR);
		if (r < 0)
			return errno != EAGAIN; /* closed, say: nobody to tell */
		at += r;
		n -= (size_t)r;
		cut = n > 0;
	}
	return true;
}

static bool tell_left_out(const char *ts, long lines)
{
	static const char event[] = "log_left_out", msg[] = "nobody took the lines before this one";
	char text[256];
	int n = snprintf(text, sizeof text,
			 log_json ? "{\"ts\":\"%s\",\"level\":\"warn\",\"msg\":\"%s\","
				    "\"event\":\"%s\",\"count\":%ld}\n"
				  : "%s warn  %s event=%s count=%ld\n",
			 ts, msg, event, lines);

	return put_out(text, (size_t)n);
}

static void write_line(struct line *l, const char *ts)
{
	static atomic_long left_out;
	long lines = atomic_exchange(&left_out, 0);

	l->text[l->n++] = '\n';
	if (lines && tell_left_out(ts, lines))
		lines = 0;
	if (lines || !put_out(l->text, l->n))
		atomic_fetch_add(&left_out, lines + 1);
}

void log_write(enum log_level level, const struct log_fields *f, const char *fmt, ...)
{
	static const struct log_fields none;
	char ts[CLOCK_RFC3339_LEN + 1], msg[MSG_MAX_BYTES + 1];
	struct line l;
	int saved = errno;
	l.n = 0;
	clock_format_rfc3339(clock_wall_ms(), ts);
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	if (log_json) {
		put_str(&l, "{\"ts\":\"");
		put_str(&l, ts);
		put_str(&l, "\",\"level\":\"");
		put_str(&l, level_word[level]);
		put_str(&l, "\",\"msg\":\"");
		put_escaped(&l, msg, MSG_MAX_BYTES);
		put_str(&l, "\"");
	} else {
		put_str(&l, ts);
		put_str(&l, " ");
		put_str(&l, level_word[level]);
		put_str(&l, level == LOG_LEVEL_INFO || level == LOG_LEVEL_WARN ? "  " : " ");
		put_escaped(&l, msg, MSG_MAX_BYTES);
	}
	put_fields(&l, f ? f : &none);
	if (log_json)
		put_str(&l, "}");
	write_line(&l, ts);
	errno = saved;
}
