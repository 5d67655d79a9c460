/* Bytes of an HTTP/1.1 answer. lws' own helpers say HTTP/1.0, which strict clients refuse. */
#include <stdio.h>

#include "base/jsonw.h"
#include "http/http_internal.h"

static const struct {
	int status;
	const char *phrase;
} reasons[] = {
    {200, "OK"},
    {202, "Accepted"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {409, "Conflict"},
    {411, "Length Required"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {426, "Upgrade Required"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {503, "Service Unavailable"},
};

const char *http_reason(int status)
{
	for (size_t i = 0; i < ARRAY_LEN(reasons); i++)
		if (reasons[i].status == status)
			return reasons[i].phrase;
	return "Status";
}

int http_head_append(struct buf *out, int status, const char *content_type, size_t n,
		     const char *extra)
{
	return buf_appendf(out,
			   "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
			   "Cache-Control: no-store\r\nConnection: close\r\n%s\r\n",
			   status, http_reason(status), content_type, n, extra ? extra : "");
}

int http_error_body(struct buf *out, const char *code, const char *msg)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_obj(&w, "error");
	jsonw_str(&w, "code", code);
	jsonw_str(&w, "msg", msg);
	jsonw_obj_end(&w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

int http_refusal(struct buf *out, int status, const char *code, const char *msg, int retry_after_s)
{
	char extra[64] = "";
	struct buf body;
	int r;

	buf_init(&body, 1024);
	if (retry_after_s > 0)
		snprintf(extra, sizeof(extra), "Retry-After: %d\r\n", retry_after_s);
	else if (status == 426)
		snprintf(extra, sizeof(extra), "Upgrade: websocket\r\n");
	r = http_error_body(&body, code, msg);
	if (r == 0)
		r = http_head_append(out, status, "application/json", body.len, extra);
	if (r == 0)
		r = buf_append(out, body.data, body.len);
	buf_fini(&body);
	return r;
}

int http_lws_refuse(struct lws *wsi, int status, const char *code, const char *msg,
		    int retry_after_s)
{
	struct buf out;
	char *at;
	int r;

	buf_init(&out, 4096);
	r = buf_reserve(&out, LWS_PRE, &at);
	if (r == 0) {
		buf_commit(&out, LWS_PRE);
		r = http_refusal(&out, status, code, msg, retry_after_s);
	}
	if (r == 0)
		(void)!lws_write(wsi, (unsigned char *)out.data + LWS_PRE, out.len - LWS_PRE,
				 LWS_WRITE_HTTP);
	buf_fini(&out);
	/* Close: there is no body left to read, so nothing is lost; lws flushes a partial first. */
	return -1;
}
