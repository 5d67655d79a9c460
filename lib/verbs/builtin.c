/*
 * Verbs that have no script: those of host-helper's own programs, and the agent's ECHO and
 * shutdown. Written as manifests, so that both kinds are read by the same code, and run by the
 * same.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verbs/verbs_private.h"

/* The journal's files may be read; the engine's socket is root's (who may talk to it is as good as
 * root, so nothing less would do). */
#define READS_JOURNAL "\"CAP_DAC_READ_SEARCH\""
#define ASKS_ENGINE   "\"CAP_DAC_OVERRIDE\""
/* Run by programs beside host-helper that parse what journald, the engine and D-Bus answer. */
#define UNPRIVILEGED(program, verb, capabilities)                            \
	"{\"verb\":\"" verb "\",\"exec\":\"/" program "\",\"argv\":[\"" verb \
	"\"],\"run_as\":\"nobody\",\"writable_paths\":[],\"capabilities\":[" capabilities "]"
#define LOOKS(verb, capabilities) UNPRIVILEGED("host-helper-verbs", verb, capabilities)
#define CONTAINERS(verb)	  UNPRIVILEGED("host-helper-containers", verb, ASKS_ENGINE)

static const struct {
	bool local, inside;
	const char *manifest;
} builtins[] = {
    {true, false,
     "{\"verb\":\"ECHO\",\"exec\":\"/\",\"effects\":false,\"concurrency\":64,"
     "\"params\":{\"message\":{\"type\":\"text\",\"max\":32768,\"optional\":true,\"via\":\"env\"}},"
     "\"doc\":\"Gives message back as stdout; answered by the agent itself.\"}"},
    {true, false,
     "{\"verb\":\"shutdown\",\"exec\":\"/\",\"effects\":false,\"idempotent\":true,"
     "\"doc\":\"Stops the agent cleanly; answered by the agent itself.\"}"},
    {false, true,
     LOOKS("get_system_health",
	   "") ",\"effects\":false,\"network\":false,\"concurrency\":16,"
	       "\"timeout_s\":10,\"doc\":\"CPU, memory, disk, load and uptime, with a verdict.\"}"},
    {false, false,
     LOOKS("get_monitoring_data",
	   ASKS_ENGINE) ",\"effects\":false,\"network\":false,\"concurrency\":4,"
			"\"timeout_s\":15,\"params\":{\"services\":{\"type\":\"text\",\"max\":1024,"
			"\"optional\":true,"
			"\"via\":\"env\"}},"
			"\"doc\":\"The metrics of a TELEMETRY frame; services is a comma-separated "
			"list of units.\"}"},
    {false, false,
     LOOKS("get_service_status",
	   "") ",\"effects\":false,\"network\":false,\"concurrency\":4,"
	       "\"timeout_s\":15,\"params\":{\"unit\":{\"type\":\"unit\",\"via\":\"env\"}},"
	       "\"doc\":\"State of one systemd unit.\"}"},
    {false, false,
     LOOKS("tail_logs",
	   READS_JOURNAL) ",\"effects\":false,\"network\":false,\"concurrency\":4,\"timeout_s\":20,"
			  "\"max_output_bytes\":262144,\"params\":{"
			  "\"unit\":{\"type\":\"unit\",\"optional\":true,\"via\":\"env\"},"
			  "\"lines\":{\"type\":\"int\",\"min\":1,\"max\":1000,\"default\":200,"
			  "\"via\":\"env\"},"
			  "\"since_cursor\":{\"type\":\"text\",\"max\":512,\"optional\":true,"
			  "\"via\":\"env\"},"
			  "\"priority\":{\"type\":\"enum\",\"optional\":true,\"via\":\"env\","
			  "\"values\":[\"0\",\"1\","
			  "\"2\","
			  "\"3\",\"4\",\"5\",\"6\",\"7\",\"emerg\",\"alert\",\"crit\",\"err\","
			  "\"warning\",\"notice\","
			  "\"info\","
			  "\"debug\"]}},\"doc\":\"Lines of the systemd journal.\"}"},
    {false, false,
     CONTAINERS("list_containers") ",\"effects\":false,\"network\":false,\"concurrency\":4,"
				   "\"timeout_s\":15,\"max_output_bytes\":262144,\"params\":{"
				   "\"all\":{\"type\":\"bool\",\"default\":true,\"via\":\"env\"}},"
				   "\"doc\":\"Containers that spawn_container started; all: "
				   "stopped ones too.\"}"},
    {false, false,
     CONTAINERS(
	 "spawn_container") ",\"effects\":true,\"timeout_s\":120,\"params\":{"
			    "\"image\":{\"type\":\"text\",\"max\":255,\"optional\":true,\"via\":"
			    "\"env\",\"charset\":"
			    "\"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/"
			    ":@-\"},"
			    "\"name\":{\"type\":\"hostname\",\"optional\":true,\"via\":\"env\"},"
			    "\"username\":{\"type\":\"username\",\"optional\":true,\"via\":\"env\"}"
			    ","
			    "\"container_port\":{\"type\":\"port\",\"default\":3000,\"via\":"
			    "\"env\"},"
			    "\"userpass\":{\"type\":\"secret\",\"max\":128,\"optional\":true,"
			    "\"via\":\"stdin\"}},"
			    "\"doc\":\"Starts one container of an allowed image with a published "
			    "port.\"}"},
    {false, false,
     CONTAINERS(
	 "stop_container") ",\"effects\":true,\"network\":false,\"idempotent\":true,"
			   "\"timeout_s\":180,\"concurrency\":4,\"params\":{"
			   "\"container\":{\"type\":\"text\",\"min\":1,\"max\":128,\"via\":\"env\","
			   "\"charset\":"
			   "\"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-\"},"
			   "\"timeout\":{\"type\":\"duration_s\",\"max\":120,\"default\":10,"
			   "\"via\":\"env\"},"
			   "\"remove\":{\"type\":\"bool\",\"default\":true,\"via\":\"env\"}},"
			   "\"doc\":\"Stops (and removes) a container that spawn_container "
			   "started.\"}"},
};

static int add_one(struct verbs *vs, const char *manifest, bool local, bool inside)
{
	struct verbs_faults faults = {0};
	struct verb *v = NULL;

	int r = verb_parse(manifest, strlen(manifest), "(built in)", &v, &faults);
	verbs_faults_fini(&faults);
	if (r < 0)
		return r;
	free(v->file);
	v->file = NULL;
	v->builtin = true;
	v->local = local;
	v->inside = inside;
	r = verbs_add(vs, v);
	if (r < 0)
		verb_free(v);
	return r;
}

int verbs_add_builtins(struct verbs *v)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_LEN(builtins); i++)
		r = add_one(v, builtins[i].manifest, builtins[i].local, builtins[i].inside);
	return r;
}
