#include "http_get.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "crypto/crypto.h"

static size_t on_bytes(char *bytes, size_t size, size_t n, void *arg)
{
	return buf_append(arg, bytes, size * n) == 0 ? size * n : 0;
}

int http_get(const struct ctl *c, const char *path, struct buf *out, long *ret_status, char *msg,
	     size_t msg_cap)
{
	char url[1024], bearer[4200];
	struct curl_slist *headers = NULL;
	CURL *h = curl_easy_init();
	if (!h)
		return -ENOMEM;
	snprintf(url, sizeof url, "%s%s", c->cfg.bridge_url, path);
	if (c->cfg.admin_token) {
		snprintf(bearer, sizeof bearer, "Authorization: Bearer %s", c->cfg.admin_token);
		headers = curl_slist_append(NULL, bearer);
		crypto_wipe(bearer, sizeof bearer);
	}
	curl_easy_setopt(h, CURLOPT_URL, url);
	curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(h, CURLOPT_TIMEOUT, 5L);
	curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_bytes);
	curl_easy_setopt(h, CURLOPT_WRITEDATA, out);
	CURLcode r = curl_easy_perform(h);
	if (r == CURLE_OK)
		curl_easy_getinfo(h, CURLINFO_RESPONSE_CODE, ret_status);
	else
		snprintf(msg, msg_cap, "%s", curl_easy_strerror(r));
	for (struct curl_slist *i = headers; i; i = i->next)
		crypto_wipe(i->data, strlen(i->data));
	curl_slist_free_all(headers);
	curl_easy_cleanup(h);
	return r == CURLE_OK ? 0 : -EIO;
}
