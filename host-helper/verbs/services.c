/* get_service_status over D-Bus (sd-bus), as systemctl show does. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "base/clock.h"
#include "builtin.h"

#define MANAGER	      "org.freedesktop.systemd1"
#define TIMEOUT_US    (5 * 1000000ULL)
#define UNIT_NAME_MAX 256

struct unit {
	char load[32], active[32], sub[32];
	uint32_t main_pid;
	uint64_t since_us;
};

static int open_bus(sd_bus **ret)
{
	int r = sd_bus_open_system(ret);

	if (r >= 0)
		r = sd_bus_set_method_call_timeout(*ret, TIMEOUT_US);
	return r;
}

static void get_text(sd_bus *bus, const char *path, const char *name, char *out, size_t cap)
{
	char *text = NULL;

	out[0] = 0;
	if (sd_bus_get_property_string(bus, MANAGER, path, MANAGER ".Unit", name, NULL, &text) >= 0)
		snprintf(out, cap, "%s", text);
	free(text);
}

static int read_unit(sd_bus *bus, const char *name, struct unit *ret)
{
	sd_bus_message *reply = NULL;
	const char *path = NULL;

	*ret = (struct unit){0};
	/* LoadUnit, not GetUnit: a stopped unit is known too. */
	int r = sd_bus_call_method(bus, MANAGER, "/org/freedesktop/systemd1", MANAGER ".Manager",
				   "LoadUnit", NULL, &reply, "s", name);
	if (r >= 0)
		r = sd_bus_message_read(reply, "o", &path);
	if (r >= 0) {
		get_text(bus, path, "LoadState", ret->load, sizeof ret->load);
		get_text(bus, path, "ActiveState", ret->active, sizeof ret->active);
		get_text(bus, path, "SubState", ret->sub, sizeof ret->sub);
		(void)sd_bus_get_property_trivial(bus, MANAGER, path, MANAGER ".Service", "MainPID",
						  NULL, 'u', &ret->main_pid);
		(void)sd_bus_get_property_trivial(bus, MANAGER, path, MANAGER ".Unit",
						  "StateChangeTimestamp", NULL, 't',
						  &ret->since_us);
	}
	sd_bus_message_unref(reply);
	return r < 0 ? r : 0;
}

static const char *state_word(const struct unit *u)
{
	static const struct {
		const char *active, *word;
	} words[] = {{"active", "running"},	  {"reloading", "running"},
		     {"activating", "running"},	  {"inactive", "stopped"},
		     {"deactivating", "stopped"}, {"failed", "failed"}};

	if (strcmp(u->load, "loaded") != 0 && strcmp(u->load, "masked") != 0)
		return "unknown";
	for (size_t i = 0; i < ARRAY_LEN(words); i++)
		if (strcmp(u->active, words[i].active) == 0)
			return words[i].word;
	return "unknown";
}

int builtin_service_status(struct builtin_ctx *x)
{
	const char *name = builtin_arg(x, "unit");
	char since[CLOCK_RFC3339_LEN + 1];
	struct unit u = {0};
	sd_bus *bus = NULL;

	int r = open_bus(&bus);
	if (r >= 0)
		r = read_unit(bus, name, &u);
	sd_bus_flush_close_unref(bus);
	if (r < 0)
		return builtin_fail(
		    x, "internal",
		    "systemd cannot be asked: %s; does this host run systemd and D-Bus?",
		    strerror(-r));
	jsonw_str(x->w, "unit", name);
	jsonw_str(x->w, "state", state_word(&u));
	jsonw_str(x->w, "load_state", u.load);
	jsonw_str(x->w, "active_state", u.active);
	jsonw_str(x->w, "sub_state", u.sub);
	if (u.main_pid)
		jsonw_uint(x->w, "main_pid", u.main_pid);
	if (u.since_us) {
		clock_format_rfc3339((int64_t)(u.since_us / 1000), since);
		jsonw_str(x->w, "since", since);
	}
	return 0;
}

/* One name of the list, checked and completed as the type `unit` is; false when it is none. */
static bool take_name(const char **csv, char *out, size_t cap)
{
	size_t n = strcspn(*csv, ",");
	bool dotted = memchr(*csv, '.', n) != NULL;
	int len = snprintf(out, cap, "%.*s%s", (int)n, *csv, dotted ? "" : ".service");

	*csv += n + ((*csv)[n] == ',');
	return n > 0 && out[0] != '-' && out[0] != '.' && len < (int)cap &&
	       strspn(out,
		      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\@-") ==
		   (size_t)len;
}

void services_write(const char *csv, struct jsonw *w)
{
	char name[UNIT_NAME_MAX];
	struct unit u;
	sd_bus *bus = NULL;

	bool up = open_bus(&bus) >= 0;
	jsonw_obj(w, "services");
	while (*csv)
		if (take_name(&csv, name, sizeof name))
			jsonw_str(w, name,
				  up && read_unit(bus, name, &u) >= 0 ? state_word(&u) : "unknown");
	jsonw_obj_end(w);
	sd_bus_flush_close_unref(bus);
}
