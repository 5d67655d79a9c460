/* What sessions ask of their socket. ws_server.c does it; unit tests link a fake. Nothing here
 * calls back before the current loop turn's callbacks are over. */
#pragma once

#include <stdbool.h>

struct session;

/* There is something to send. */
void transport_wake(struct session *s);
/* s->pause changed: reading stops or goes on. */
void transport_pause(struct session *s);
/* s->close_code and s->close_reason are set: send what waits, then the close frame. */
void transport_close(struct session *s);
