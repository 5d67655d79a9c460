/* Keeps the resident memory small: gives back what only start-up and handshakes needed. */
#pragma once

/* Before anything allocates: one arena, memory given back early, one thread for name look-ups. */
void footprint_stay_small(void);
/*
 * Drops the never-written pages (code and constants) of program and libraries from this process;
 * what is needed again comes back from the page cache by itself. An OpenSSL start maps nearly all
 * of libcrypto, a connected agent needs a small part of it. Cheap, but not free: call it when
 * things are quiet.
 */
void footprint_trim(void);
