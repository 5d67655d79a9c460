/* What a request to upgrade says, read out of libwebsockets before it is judged. For ws_server.c.
 */
#pragma once

#include <libwebsockets.h>

#include "handshake.h"

#define WS_UPGRADE_HEADER_MAX 6144 /* an escaped certificate; lws keeps 8192 for the whole head */

struct ws_upgrade {
	struct handshake_request request; /* points into text */
	char text[WS_UPGRADE_HEADER_MAX + 2048];
};

/* uri is borrowed; bit h of repeated: handshake_header_name[h] came more than once. -1: the peer is
 * gone; else fini it. */
int ws_upgrade_read(struct ws_upgrade *u, struct lws *wsi, const char *uri,
		    unsigned repeated) MUST_CHECK;
void ws_upgrade_fini(struct ws_upgrade *u);
