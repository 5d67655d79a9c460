/* The stand-alone server, on a loop or with a loop and thread of its own. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "http/http_internal.h"

#define SERVER_MAX_CONNS 256

struct http_server {
	struct http_lws *lws;
};

int http_server_open(struct loop *l, const char *bind, const struct http_table *t,
		     struct http_server **ret)
{
	struct http_lws_config cfg = {.bind = bind, .table = t, .max_conns = SERVER_MAX_CONNS};
	struct http_server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	r = http_lws_open(l, &cfg, &s->lws);
	if (r < 0) {
		free(s);
		return r;
	}
	*ret = s;
	return 0;
}

uint16_t http_server_port(const struct http_server *s)
{
	return http_lws_port(s->lws);
}

void http_server_set_token(struct http_server *s, const char *token)
{
	http_lws_set_token(s->lws, token);
}

size_t http_server_answering(const struct http_server *s)
{
	return http_lws_answering(s->lws);
}

void http_server_close(struct http_server *s)
{
	if (!s)
		return;
	http_lws_close(s->lws);
	free(s);
}

struct http_thread {
	pthread_t thread;
	struct loop *loop;
	struct loop_wake *stop;
	struct http_server *server;
	uint16_t port;
};

static void on_stop(void *arg)
{
	struct http_thread *t = arg;

	http_server_close(TAKE(t->server));
	loop_wake_close(TAKE(t->stop));
	/* Not loop_stop: loop_run returns by itself when the server's last handle is gone. */
}

static void *thread_main(void *arg)
{
	struct http_thread *t = arg;

	loop_run(t->loop);
	return NULL;
}

static int thread_create(struct http_thread *t)
{
	sigset_t all, old;
	int r;

	/* Signals belong to the program's main thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t->thread, NULL, thread_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

int http_thread_start(const char *bind, const struct http_table *table, struct http_thread **ret)
{
	struct http_thread *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	r = loop_new(&t->loop);
	if (r < 0) {
		free(t);
		return r;
	}
	r = loop_wake_new(t->loop, on_stop, t, &t->stop);
	if (r == 0)
		r = http_server_open(t->loop, bind, table, &t->server);
	if (r == 0) {
		t->port = http_server_port(t->server);
		r = thread_create(t);
	}
	if (r < 0) {
		http_server_close(t->server);
		if (t->stop)
			loop_wake_close(t->stop);
		loop_free(t->loop);
		free(t);
		return r;
	}
	*ret = t;
	return 0;
}

uint16_t http_thread_port(const struct http_thread *t)
{
	return t->port;
}

void http_thread_stop(struct http_thread *t)
{
	if (!t)
		return;
	loop_wake_send(t->stop);
	pthread_join(t->thread, NULL);
	loop_free(t->loop);
	free(t);
}
