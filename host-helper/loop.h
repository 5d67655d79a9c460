/* A small epoll loop: descriptors with a callback each, and one tick. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

struct watch {
	int fd;
	void (*on_ready)(struct watch *w, uint32_t events); /* EPOLL* bits */
	void (*on_free)(struct watch *w); /* after loop_drop, when no event can still name it */
	struct watch *next_dead;
};

struct loop {
	int epoll;
	bool stop;
	struct watch *dead;
};

int loop_init(struct loop *l) MUST_CHECK;
void loop_fini(struct loop *l);
int loop_add(struct loop *l, struct watch *w, uint32_t events) MUST_CHECK;
int loop_change(struct loop *l, struct watch *w, uint32_t events) MUST_CHECK;
/* Closes the descriptor at once; on_free runs when this turn of the loop ends. */
void loop_drop(struct loop *l, struct watch *w);
/* Until stop; on_tick runs about every tick_ms. */
int loop_run(struct loop *l, int tick_ms, void (*on_tick)(void *arg), void *arg) MUST_CHECK;
