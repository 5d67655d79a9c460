/*
 * list_containers, spawn_container, stop_container over the engine's socket. Only containers that
 * carry our label are seen or touched. A port is taken when a labelled container names it, running
 * or not, so the allocation survives restarts of helper, engine and host.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/ident.h"
#include "builtin.h"
#include "engine.h"

#define LABEL	   "viworks.managed"
#define LABEL_PORT "viworks.port"
#define LABEL_USER "viworks.username"
#define LABEL_CID  "viworks.correlation_id"
/* filters={"label":["viworks.managed=true"]}, URL-escaped */
#define LIST_PATH  "/containers/json?filters=%7B%22label%22%3A%5B%22viworks.managed%3Dtrue%22%5D%7D"
#define QUICK_S	   10L
#define PORT_TRIES 16

static const char *text_at(json_t *obj, const char *key)
{
	const char *s = json_string_value(json_object_get(obj, key));

	return s ? s : "";
}

static json_t *list(const char *socket, bool all, struct engine_reply *reply)
{
	engine_request(socket, "GET", all ? LIST_PATH "&all=true" : LIST_PATH, NULL, QUICK_S,
		       reply);
	return reply->status == 200 && json_is_array(reply->body) ? reply->body : NULL;
}

static void write_container(json_t *c, struct jsonw *w, bool full)
{
	const char *name = json_string_value(json_array_get(json_object_get(c, "Names"), 0));
	json_t *labels = json_object_get(c, "Labels");

	jsonw_obj(w, NULL);
	jsonw_strn(w, "id", text_at(c, "Id"), strnlen(text_at(c, "Id"), 12));
	jsonw_str(w, "name", name ? name + (name[0] == '/') : NULL);
	jsonw_str(w, "image", text_at(c, "Image"));
	jsonw_str(w, "state", text_at(c, "State"));
	if (full) {
		jsonw_str(w, "status", text_at(c, "Status"));
		jsonw_int(w, "created_s", json_integer_value(json_object_get(c, "Created")));
		jsonw_int(w, "port", strtol(text_at(labels, LABEL_PORT), NULL, 10));
		jsonw_str(w, "username", json_string_value(json_object_get(labels, LABEL_USER)));
	}
	jsonw_obj_end(w);
}

static void write_list(json_t *all, struct jsonw *w, bool full)
{
	jsonw_arr(w, "containers");
	for (size_t i = 0; i < json_array_size(all); i++)
		write_container(json_array_get(all, i), w, full);
	jsonw_arr_end(w);
}

int builtin_list_containers(struct builtin_ctx *x)
{
	bool all = strcmp(builtin_arg(x, "all"), "true") == 0;
	struct engine_reply reply;
	int r = 0;

	json_t *found = list(x->cfg->engine_socket, all, &reply);
	if (found)
		write_list(found, x->w, true);
	else
		r = builtin_fail(x, "internal", "container engine: %s", engine_reply_error(&reply));
	engine_reply_fini(&reply);
	return r;
}

int builtin_container_metrics(struct builtin_ctx *x)
{
	struct engine_reply reply;
	int64_t running = 0;
	int r = 0;

	json_t *found = list(x->cfg->engine_socket, true, &reply);
	if (found) {
		for (size_t i = 0; i < json_array_size(found); i++)
			running +=
			    strcmp(text_at(json_array_get(found, i), "State"), "running") == 0;
		jsonw_int(x->w, "containers_running", running);
		write_list(found, x->w, false);
	} else {
		r = builtin_fail(x, "internal", "container engine: %s", engine_reply_error(&reply));
	}
	engine_reply_fini(&reply);
	return r;
}

/* ---- spawn ---- */

/* The image asked for if it is on the list, else NULL; the list's first when none is asked for. */
static char *choose_image(const char *csv, const char *asked)
{
	while (*csv) {
		size_t n = strcspn(csv, ",");
		if (n && (!asked || (strlen(asked) == n && memcmp(asked, csv, n) == 0)))
			return strndup(csv, n);
		csv += n + (csv[n] == ',');
	}
	return NULL;
}

static bool port_in_list(json_t *all, int port)
{
	for (size_t i = 0; i < json_array_size(all); i++) {
		json_t *c = json_array_get(all, i);
		const char *text = text_at(json_object_get(c, "Labels"), LABEL_PORT);
		if (strtol(text, NULL, 10) == port)
			return true;
	}
	return false;
}

static bool port_is_bindable(int port)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (fd < 0)
		return false;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	bool ok = bind(fd, (struct sockaddr *)&addr, sizeof addr) == 0;
	close(fd);
	return ok;
}

/* The lowest free port at or above *from; -1: none. */
static int next_port(const struct builtin_ctx *x, json_t *all, int from)
{
	int first, last;

	if (verbs_program_parse_ports(x->cfg->container_ports, &first, &last) < 0)
		return -1;
	for (int port = from > first ? from : first; port <= last; port++)
		if (!port_in_list(all, port) && port_is_bindable(port))
			return port;
	return -1;
}

static json_t *labels(const struct builtin_ctx *x, int port)
{
	const char *user = builtin_arg(x, "username");
	char text[12];

	snprintf(text, sizeof text, "%d", port);
	json_t *l = json_pack("{s:s, s:s, s:s}", LABEL, "true", LABEL_PORT, text, LABEL_CID,
			      x->correlation_id);
	if (user)
		json_object_set_new(l, LABEL_USER, json_string(user));
	return l;
}

static json_t *environment(const struct builtin_ctx *x)
{
	static const struct {
		const char *arg, *name;
	} vars[] = {{"username", "VIW_USERNAME"}, {"userpass", "VIW_USERPASS"}};
	json_t *env = json_array();

	for (size_t i = 0; i < ARRAY_LEN(vars); i++)
		if (builtin_arg(x, vars[i].arg))
			json_array_append_new(
			    env, json_sprintf("%s=%s", vars[i].name, builtin_arg(x, vars[i].arg)));
	return env;
}

static json_t *create_body(const struct builtin_ctx *x, const char *image, int port)
{
	const struct verbs_settings *c = x->cfg;
	json_int_t memory = c->container_memory_mb << 20;
	char inner[16], outer[12];

	snprintf(inner, sizeof inner, "%s/tcp", builtin_arg(x, "container_port"));
	snprintf(outer, sizeof outer, "%d", port);
	return json_pack("{s:s, s:o, s:o, s:{s:{}}, s:{s:I, s:I, s:I, s:I, s:[s], s:[s], s:s, "
			 "s:{s:[{s:s}]}, s:{s:s}}}",
			 "Image", image, "Labels", labels(x, port), "Env", environment(x),
			 "ExposedPorts", inner, "HostConfig", "Memory", memory, "MemorySwap",
			 memory, "CpuShares", (json_int_t)c->container_cpu_shares, "PidsLimit",
			 (json_int_t)c->container_pids, "CapDrop", "ALL", "SecurityOpt",
			 "no-new-privileges", "NetworkMode", c->container_network, "PortBindings",
			 inner, "HostPort", outer, "RestartPolicy", "Name", "no");
}

static int fail_engine(struct builtin_ctx *x, const char *what, const struct engine_reply *r)
{
	/* No answer to a request that was sent: nobody can say whether it happened. */
	const char *code = r->status == 0 && r->sent ? "outcome_unknown" : "internal";

	return builtin_fail(x, code, "%s: %s", what, engine_reply_error(r));
}

static void remove_container(const struct builtin_ctx *x, const char *id)
{
	struct engine_reply reply;
	char path[256];

	snprintf(path, sizeof path, "/containers/%.128s?force=true&v=true", id);
	engine_request(x->cfg->engine_socket, "DELETE", path, NULL, QUICK_S, &reply);
	engine_reply_fini(&reply);
}

/* 1: started; 0: the port was taken after all, try another; -1: failed. */
static int create_and_start(struct builtin_ctx *x, const char *image, const char *name, int port,
			    char *id, size_t id_cap)
{
	struct engine_reply reply;
	char path[320];
	int r = 1;

	snprintf(path, sizeof path, "/containers/create?name=%s", name);
	engine_request(x->cfg->engine_socket, "POST", path, create_body(x, image, port), 60,
		       &reply);
	if (reply.status == 201)
		snprintf(id, id_cap, "%s", text_at(reply.body, "Id"));
	else
		r = fail_engine(x, "create", &reply);
	engine_reply_fini(&reply);
	if (r < 0)
		return r;
	snprintf(path, sizeof path, "/containers/%.128s/start", id);
	engine_request(x->cfg->engine_socket, "POST", path, NULL, 60, &reply);
	if (reply.status != 204) {
		bool port_taken = strstr(engine_reply_error(&reply), "in use") ||
				  strstr(engine_reply_error(&reply), "allocated");
		r = port_taken ? 0 : fail_engine(x, "start", &reply);
		if (reply.status != 0) /* refused for sure: nothing of it may stay */
			remove_container(x, id);
	}
	engine_reply_fini(&reply);
	return r;
}

static int spawn_on_free_port(struct builtin_ctx *x, const char *image, const char *name)
{
	struct engine_reply reply;
	char id[160];
	int r = 0, port = 0;

	json_t *all = list(x->cfg->engine_socket, true, &reply);
	if (!all)
		r = builtin_fail(x, "internal", "container engine: %s", engine_reply_error(&reply));
	for (int tries = 0; r == 0 && tries < PORT_TRIES; tries++) {
		port = next_port(x, all, port + 1);
		if (port < 0)
			r = builtin_fail(x, "busy", "no port of %s is free",
					 x->cfg->container_ports);
		else
			r = create_and_start(x, image, name, port, id, sizeof id);
	}
	engine_reply_fini(&reply);
	if (r == 0)
		return builtin_fail(x, "busy", "no port could be taken");
	if (r < 0)
		return r;
	jsonw_strn(x->w, "id", id, strnlen(id, 12));
	jsonw_str(x->w, "name", name);
	jsonw_str(x->w, "image", image);
	jsonw_int(x->w, "port", port);
	jsonw_str(x->w, "state", "running");
	return 0;
}

int builtin_spawn_container(struct builtin_ctx *x)
{
	const char *asked = builtin_arg(x, "name");
	char *image = choose_image(x->cfg->container_images, builtin_arg(x, "image"));
	char name[256];

	if (!image)
		return builtin_fail(x, "bad_args",
				    "args.image: is not in HOST_HELPER_CONTAINER_IMAGES");
	if (asked)
		snprintf(name, sizeof name, "%.253s", asked);
	else
		snprintf(name, sizeof name, "viw-%012llx",
			 (unsigned long long)(ident_random_u64() & 0xffffffffffffULL));
	int r = spawn_on_free_port(x, image, name);
	free(image);
	return r;
}

/* ---- stop ---- */

/* Gives its full id: a name may go to another container between two requests. */
static int check_ours(struct builtin_ctx *x, const char *name, char *id, size_t cap)
{
	struct engine_reply reply;
	char path[256];
	int r = 0;

	snprintf(path, sizeof path, "/containers/%.128s/json", name);
	engine_request(x->cfg->engine_socket, "GET", path, NULL, QUICK_S, &reply);
	json_t *l = json_object_get(json_object_get(reply.body, "Config"), "Labels");
	if (reply.status == 404)
		r = builtin_fail(x, "bad_args", "args.container: there is none of that name");
	else if (reply.status != 200)
		r = builtin_fail(x, "internal", "inspect: %s", engine_reply_error(&reply));
	else if (strcmp(text_at(l, LABEL), "true") != 0)
		r = builtin_fail(x, "bad_args",
				 "args.container: was not started by spawn_container");
	snprintf(id, cap, "%s", text_at(reply.body, "Id"));
	engine_reply_fini(&reply);
	return r;
}

int builtin_stop_container(struct builtin_ctx *x)
{
	const char *name = builtin_arg(x, "container");
	bool remove = strcmp(builtin_arg(x, "remove"), "true") == 0;
	long timeout_s = strtol(builtin_arg(x, "timeout"), NULL, 10);
	struct engine_reply reply;
	char path[256], id[160];

	if (name[0] == '.' || name[0] == '_') /* ".." is a path, not a container */
		return builtin_fail(x, "bad_args", "args.container: is not a container's name");
	int r = check_ours(x, name, id, sizeof id);
	if (r < 0)
		return r;
	snprintf(path, sizeof path, "/containers/%.128s/stop?t=%ld", id, timeout_s);
	engine_request(x->cfg->engine_socket, "POST", path, NULL, timeout_s + 30, &reply);
	if (reply.status != 204 && reply.status != 304)
		r = fail_engine(x, "stop", &reply);
	engine_reply_fini(&reply);
	if (r == 0 && remove) {
		snprintf(path, sizeof path, "/containers/%.128s?v=true", id);
		engine_request(x->cfg->engine_socket, "DELETE", path, NULL, 60, &reply);
		if (reply.status != 204 && reply.status != 200 && reply.status != 404)
			r = fail_engine(x, "remove", &reply);
		engine_reply_fini(&reply);
	}
	jsonw_str(x->w, "container", name);
	jsonw_str(x->w, "state", remove ? "removed" : "exited");
	return r;
}
