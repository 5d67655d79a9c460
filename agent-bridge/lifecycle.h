/* The bridge's way down, and its reloads. */
#pragma once

#include <stdbool.h>

struct bridge;

/* Not ready, handshakes get 503 draining (the port itself stays open to say so), 1001 to all spread
 * over DRAIN_S, what is in flight stored, then everything is closed and done(arg) called. Asked
 * again: hastens. */
void lifecycle_drain(struct bridge *b, void (*done)(void *arg), void *arg);
/* SIGHUP: settings that can change, certificates, CRLs. Keeps what it has when something is wrong.
 */
void lifecycle_reload(struct bridge *b);
/* Certificates and CRLs alone. false: refused, the old ones stay. */
bool lifecycle_reload_tls(struct bridge *b);
