/* libcurl over a Unix socket. */
#include "engine.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

#define REPLY_MAX_BYTES (4 << 20)

static size_t on_body(char *bytes, size_t size, size_t n, void *arg)
{
	return buf_append(arg, bytes, size * n) < 0 ? 0 : size * n;
}

static void set_request(CURL *c, const char *socket, const char *method, const char *url,
			const char *body, long timeout_s, struct curl_slist *headers)
{
	curl_easy_setopt(c, CURLOPT_UNIX_SOCKET_PATH, socket);
	curl_easy_setopt(c, CURLOPT_URL, url);
	curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http");
	curl_easy_setopt(c, CURLOPT_PROXY, "");
	curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, 5L);
	curl_easy_setopt(c, CURLOPT_TIMEOUT, timeout_s);
	curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
	if (strcmp(method, "GET") != 0)
		curl_easy_setopt(c, CURLOPT_POSTFIELDS, body ? body : "");
}

/* curl's own words name a port, and there is none. */
static void say_not_connected(CURL *c, const char *socket, struct engine_reply *ret)
{
	long cause = 0;

	curl_easy_getinfo(c, CURLINFO_OS_ERRNO, &cause);
	snprintf(ret->error, sizeof ret->error,
		 "cannot connect to %s: %s; is podman or docker running, and is that its socket "
		 "(HOST_HELPER_ENGINE_SOCKET)?",
		 socket, cause ? strerror((int)cause) : "no answer");
}

void engine_request(const char *socket, const char *method, const char *path, json_t *body,
		    long timeout_s, struct engine_reply *ret)
{
	char url[2048], error[CURL_ERROR_SIZE] = "";
	char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
	CURL *c = curl_easy_init();
	struct buf answer;

	*ret = (struct engine_reply){0};
	buf_init(&answer, REPLY_MAX_BYTES);
	int n = snprintf(url, sizeof url, "http://engine/v1.41%s", path);
	if (c && headers && (!body || text) && n < (int)sizeof url) {
		set_request(c, socket, method, url, text, timeout_s, headers);
		curl_easy_setopt(c, CURLOPT_ERRORBUFFER, error);
		curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
		curl_easy_setopt(c, CURLOPT_WRITEDATA, &answer);
		CURLcode code = curl_easy_perform(c);
		ret->sent = code != CURLE_COULDNT_CONNECT;
		if (code == CURLE_OK)
			curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &ret->status);
		if (code == CURLE_COULDNT_CONNECT)
			say_not_connected(c, socket, ret);
		else
			snprintf(ret->error, sizeof ret->error, "%.150s",
				 error[0] ? error : curl_easy_strerror(code));
		if (code == CURLE_OK && answer.len)
			ret->body =
			    json_loadb(answer.data, answer.len, JSON_REJECT_DUPLICATES, NULL);
	} else {
		snprintf(ret->error, sizeof ret->error, "out of memory");
	}
	if (c)
		curl_easy_cleanup(c);
	curl_slist_free_all(headers);
	buf_fini(&answer);
	free(text);
	json_decref(body);
}

void engine_reply_fini(struct engine_reply *r)
{
	json_decref(r->body);
	r->body = NULL;
}

const char *engine_reply_error(const struct engine_reply *r)
{
	const char *msg = json_string_value(json_object_get(r->body, "message"));

	if (r->status == 0)
		return r->error;
	return msg ? msg : "the engine refused";
}
