/* Stands in for ws_server.c at link time: counts what sessions ask of their socket. */
#include "fake_transport.h"

#include "session.h"
#include "transport.h"

struct fake_transport fake_transport;

void transport_wake(struct session *s UNUSED)
{
	fake_transport.wakes++;
}

void transport_pause(struct session *s)
{
	fake_transport.pauses++;
	fake_transport.paused = s->pause != 0;
}

void transport_close(struct session *s)
{
	fake_transport.closes++;
	fake_transport.close_code = s->close_code;
}
