/* The agent's part of a command's life, without sockets: a scripted helper and bridge. */
#include "unit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/ident.h"
#include "commands.h"
#include "verbset.h"

#define MAX_SENT 64

static struct world {
	struct commands *c;
	struct verbset *verbs;
	struct wire_decoder *decoder;
	bool helper_up, session_full, verbs_known, shut_down;
	/* what was asked of the helper, oldest first */
	struct {
		enum helper_op op;
		char id[130], verb[64];
		int64_t deadline_ms;
	} asked[MAX_SENT];
	unsigned asks;
	/* what was sent to the bridge */
	struct {
		enum wire_type type;
		char text[4096];
	} sent[MAX_SENT];
	unsigned sends;
	int64_t wake_at;
} w;

static int op_send(void *arg, enum wire_type type, const char *json, size_t n)
{
	(void)arg;
	if (w.session_full)
		return -ENOBUFS;
	assert_true(w.sends < MAX_SENT && n < sizeof w.sent[0].text);
	w.sent[w.sends].type = type;
	memcpy(w.sent[w.sends].text, json, n);
	w.sent[w.sends++].text[n] = '\0';
	return 0;
}

static bool op_helper_up(void *arg)
{
	(void)arg;
	return w.helper_up;
}

static int op_ask(void *arg, const struct helper_ask *ask)
{
	(void)arg;
	if (!w.helper_up)
		return -ENOTCONN;
	assert_true(w.asks < MAX_SENT);
	w.asked[w.asks].op = ask->op;
	w.asked[w.asks].deadline_ms = ask->deadline_ms;
	(void)snprintf(w.asked[w.asks].id, sizeof w.asked[0].id, "%s", ask->correlation_id);
	(void)snprintf(w.asked[w.asks].verb, sizeof w.asked[0].verb, "%s",
		       ask->verb ? ask->verb : "");
	w.asks++;
	return 0;
}

static const struct verb *op_find_verb(void *arg, const char *name)
{
	(void)arg;
	return verbset_find(w.verbs, name);
}

static bool op_verbs_known(void *arg)
{
	(void)arg;
	return w.verbs_known;
}

static void op_wake_at(void *arg, int64_t ms)
{
	(void)arg;
	w.wake_at = ms;
}

static void op_finished(void *arg, const char *status)
{
	(void)arg, (void)status;
}

static void op_shutdown(void *arg)
{
	(void)arg;
	w.shut_down = true;
}

static const struct commands_ops ops = {op_send,	op_helper_up, op_ask,	   op_find_verb,
					op_verbs_known, op_wake_at,   op_finished, op_shutdown};

static int64_t shifted_ms;
static const char verbs_json[] =
    "[{\"name\":\"make\",\"effects\":true,\"params\":{\"name\":{\"type\":\"username\"}}},"
    "{\"name\":\"get_system_health\",\"effects\":false,\"params\":{}}]";

static struct commands_config config = {.agent_id = "gw-1",
					.exec_enable = true,
					.max_concurrency = 2,
					.cmd_timeout_ms = 30000,
					.helper_configured = true};

static int setup_with(bool exec, const char *allowed, bool helper_configured)
{
	w = (struct world){.helper_up = helper_configured, .verbs_known = true};
	config.exec_enable = exec;
	config.allowed_verbs = allowed;
	config.helper_configured = helper_configured;
	assert_ok(verbset_new(&w.verbs));
	assert_ok(verbset_learn(w.verbs, SPAN(verbs_json)));
	assert_ok(wire_decoder_new(65536, &w.decoder));
	assert_ok(commands_new(&config, &ops, NULL, &w.c));
	commands_on_session(w.c, 4096);
	return 0;
}

static int setup(void **state)
{
	(void)state;
	shifted_ms = 0;
	clock_test_shift(0, 0);
	return setup_with(true, NULL, true);
}

static int teardown(void **state)
{
	(void)state;
	commands_free(w.c);
	verbset_free(w.verbs);
	wire_decoder_free(w.decoder);
	clock_test_shift(0, 0);
	return 0;
}

static void again(bool exec, const char *allowed, bool helper_configured)
{
	(void)teardown(NULL);
	(void)setup_with(exec, allowed, helper_configured);
}

static void command_ttl(const char *id, const char *verb, const char *args, uint64_t ttl_ms)
{
	char nonce[UUID_LEN + 1];
	struct wire_command f = {
	    .correlation_id = span_of(id),
	    .agent_id = SPAN("gw-1"),
	    .verb = span_of(verb),
	    .args = span_of(args),
	    .expires_at = {.ms = clock_wall_ms() + (int64_t)ttl_ms, .set = true},
	    .ttl_remaining_ms = {.v = ttl_ms, .set = true}};

	ident_uuid4(nonce);
	f.nonce = span_of(nonce);
	commands_on_command(w.c, &f, clock_wall_ms());
}

static void command(const char *id, const char *verb, const char *args)
{
	command_ttl(id, verb, args, 30000);
}

static void cancel(const char *id, const char *reason)
{
	commands_on_cancel(
	    w.c, &(struct wire_cancel){.correlation_id = span_of(id), .reason = span_of(reason)});
}

static void reply(const char *id, const char *json)
{
	struct wire_refusal_info info;
	struct wire_frame f;

	if (wire_decode_as(w.decoder, WIRE_HELPER_REPLY, json, strlen(json), &f, &info) != WIRE_OK)
		fail_msg("%s: %s", json, info.msg);
	commands_on_answer(w.c, id, &f.helper_reply);
}

static unsigned count(enum wire_type type)
{
	unsigned i, n = 0;

	for (i = 0; i < w.sends; i++)
		n += w.sent[i].type == type;
	return n;
}

/* The last RESULT sent holds this text. */
static void expect_result(const char *text)
{
	unsigned i = w.sends;

	while (i > 0 && w.sent[i - 1].type != WIRE_RESULT)
		i--;
	if (i == 0)
		fail_msg("no RESULT; wanted %s", text);
	else if (!strstr(w.sent[i - 1].text, text))
		fail_msg("%s is not in %s", text, w.sent[i - 1].text);
}

static void pass_ms(int64_t ms)
{
	shifted_ms += ms;
	clock_test_shift(shifted_ms, shifted_ms);
	commands_tick(w.c);
}

#define NO_RESULT() assert_int_equal(count(WIRE_RESULT), 0)
#define ARGS	    "{\"name\":\"bob\"}"

static void test_commands_echo(void **state)
{
	(void)state;
	command("a", "ECHO", "{\"message\":\"x\\u00e9\"}");
	expect_result("\"stdout\":\"xé\"");
	command("b", "ECHO", "{\"k\":1}");
	expect_result("{\\\"k\\\":1}");
	assert_int_equal(w.asks, 0);
}

static void test_commands_run_and_result_until_acked(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	assert_int_equal(w.asks, 1);
	assert_true(w.asked[0].deadline_ms > clock_wall_ms() + 29000);
	assert_int_equal(count(WIRE_COMMAND_ACK), 1);
	NO_RESULT();
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":3,\"stdout\":\"out\"}");
	expect_result("\"status\":\"success\",\"rc\":3,\"stdout\":\"out\"");
	pass_ms(16000); /* not acknowledged: again */
	assert_int_equal(count(WIRE_RESULT), 2);
	commands_on_session_end(w.c);
	pass_ms(60000);
	assert_int_equal(count(WIRE_RESULT), 2);
	commands_on_session(w.c, 4096);
	assert_int_equal(count(WIRE_RESULT), 3);
	commands_on_result_ack(w.c, SPAN("a"));
	pass_ms(600000);
	assert_int_equal(count(WIRE_RESULT), 3);
	assert_int_equal(commands_counts_of(w.c).results, 0);
}

static void test_commands_offered_twice_runs_once(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	command("a", "make", ARGS);
	assert_int_equal(w.asks, 1);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0}");
	command("a", "make", ARGS);
	assert_int_equal(w.asks, 1);
	assert_int_equal(count(WIRE_RESULT), 2);
}

static void test_commands_replayed_nonce_is_dropped(void **state)
{
	struct wire_command f = {.correlation_id = SPAN("a"),
				 .agent_id = SPAN("gw-1"),
				 .verb = SPAN("ECHO"),
				 .args = SPAN("{}"),
				 .nonce = SPAN("0c7b1a3e-6a51-4b54-9dd3-8d6d4c9f0b11"),
				 .ttl_remaining_ms = {.v = 1000, .set = true}};

	(void)state;
	commands_on_command(w.c, &f, 0);
	f.correlation_id = SPAN("b");
	commands_on_command(w.c, &f, 0);
	assert_int_equal(count(WIRE_RESULT), 1);
	f.nonce = SPAN("1c7b1a3e-6a51-4b54-9dd3-8d6d4c9f0b11");
	f.agent_id = SPAN("gw-2");
	commands_on_command(w.c, &f, 0);
	assert_int_equal(count(WIRE_RESULT), 1);
}

/* However many commands an agent is given, it takes the next one: of the nonces the latest are
 * remembered. */
static void test_commands_nonces_never_fill_up(void **state)
{
	char nonce[UUID_LEN + 1];
	struct wire_command f = {.correlation_id = SPAN("a"),
				 .agent_id = SPAN("gw-1"),
				 .verb = SPAN("ECHO"),
				 .args = SPAN("{}"),
				 .ttl_remaining_ms = {.v = 86400000, .set = true}};
	unsigned i;

	(void)state;
	for (i = 0; i < 50000; i++) {
		ident_uuid4(nonce);
		f.nonce = span_of(nonce);
		w.sends = 0;
		commands_on_command(w.c, &f, 0);
		assert_int_equal(count(WIRE_RESULT), 1);
		commands_on_result_ack(w.c, SPAN("a"));
		commands_on_command(w.c, &f, 0);
		assert_int_equal(count(WIRE_RESULT), 1);
	}
}

static void test_commands_helper_down_read_only_fails_at_once(void **state)
{
	(void)state;
	w.helper_up = false;
	command("a", "get_system_health", "{}");
	expect_result("helper_unreachable");
}

static void test_commands_helper_down_effects_are_held(void **state)
{
	(void)state;
	w.helper_up = false;
	command("a", "make", ARGS);
	pass_ms(5000);
	NO_RESULT();
	assert_int_equal(count(WIRE_COMMAND_ACK), 0);
	w.helper_up = true;
	commands_on_helper(w.c);
	assert_int_equal(w.asks, 1);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0}");
	expect_result("success");
}

/* The helper went away in the middle: its answer is unknown until it says so itself. */
static void test_commands_helper_lost_asks_by_the_same_id(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	w.helper_up = false;
	commands_on_answer(w.c, "a", NULL);
	NO_RESULT();
	w.helper_up = true;
	pass_ms(1000);
	assert_int_equal(w.asks, 2);
	assert_int_equal(w.asked[1].op, HELPER_RUN);
	assert_string_equal(w.asked[1].id, "a");
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0,\"replayed\":true}");
	expect_result("success");
}

static void test_commands_helper_lost_past_deadline_voids(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	w.helper_up = false;
	commands_on_answer(w.c, "a", NULL);
	pass_ms(31000);
	NO_RESULT(); /* nobody can tell */
	w.helper_up = true;
	commands_on_helper(w.c);
	assert_int_equal(w.asked[w.asks - 1].op, HELPER_VOID);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"running\"}}");
	NO_RESULT();
	pass_ms(1000);
	assert_int_equal(w.asks, 3);
	reply(
	    "a",
	    "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":7,\"data\":{\"state\":\"done\"}}");
	expect_result("\"status\":\"success\",\"rc\":7");
}

static void test_commands_expiry_asks_void(void **state)
{
	(void)state;
	w.helper_up = false;
	command("a", "make", ARGS);
	pass_ms(31000);
	w.helper_up = true;
	commands_on_helper(w.c);
	assert_int_equal(w.asked[0].op, HELPER_VOID);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"void\"}}");
	expect_result("\"status\":\"expired\"");
}

/* A frame that lay in a buffer: the absolute time says what the ttl no longer can. */
static void test_commands_stale_frame_is_expired(void **state)
{
	struct wire_command f = {.correlation_id = SPAN("a"),
				 .agent_id = SPAN("gw-1"),
				 .verb = SPAN("ECHO"),
				 .args = SPAN("{}"),
				 .expires_at = {.ms = 1000000, .set = true},
				 .ttl_remaining_ms = {.v = 60000, .set = true}};

	(void)state;
	commands_on_command(w.c, &f, 1000000 + 5000);
	expect_result("\"status\":\"expired\"");
}

static void test_commands_cancel_before_start(void **state)
{
	(void)state;
	w.helper_up = false;
	command("a", "make", ARGS);
	cancel("a", "cancelled");
	NO_RESULT();
	w.helper_up = true;
	commands_on_helper(w.c);
	assert_int_equal(w.asked[0].op, HELPER_VOID);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"void\"}}");
	expect_result("\"status\":\"cancelled\"");
}

static void test_commands_cancel_while_running_tells_what_happened(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	cancel("a", "expired");
	assert_int_equal(w.asks, 1);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0}");
	expect_result("\"status\":\"success\"");
}

static void test_commands_cancel_of_an_id_never_seen(void **state)
{
	(void)state;
	cancel("z", "expired");
	assert_int_equal(w.asked[0].op, HELPER_VOID);
	reply("z", "{\"correlation_id\":\"z\",\"status\":\"ok\",\"rc\":0,\"stdout\":\"earlier\","
		   "\"replayed\":true,\"data\":{\"state\":\"done\"}}");
	expect_result("\"stdout\":\"earlier\"");
	cancel("y", "expired");
	reply("y", "{\"correlation_id\":\"y\",\"status\":\"ok\",\"data\":{\"state\":\"unknown\"}}");
	expect_result("\"status\":\"unknown\"");
}

/* It was cancelled in an earlier life of this agent, and is offered again in time. */
static void test_commands_what_was_voided_before_is_cancelled(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"error\",\"error\":{\"code\":"
		   "\"cancelled\",\"msg\":\"voided\"}}");
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"void\"}}");
	expect_result("\"status\":\"cancelled\"");
	command("b", "make", ARGS);
	pass_ms(31000);
	reply("b", "{\"correlation_id\":\"b\",\"status\":\"error\",\"error\":{\"code\":"
		   "\"cancelled\",\"msg\":\"voided\"}}");
	reply("b", "{\"correlation_id\":\"b\",\"status\":\"ok\",\"data\":{\"state\":\"void\"}}");
	expect_result("\"status\":\"expired\"");
}

static void test_commands_helper_errors(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"error\",\"error\":{\"code\":\"busy\","
		   "\"msg\":\"full\"}}");
	NO_RESULT();
	pass_ms(1000);
	assert_int_equal(w.asks, 2);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"error\",\"error\":{\"code\":\"timeout\","
		   "\"msg\":\"slow\"}}");
	expect_result("\"status\":\"error\",");
	expect_result("\"code\":\"timeout\"");
	command("b", "make", ARGS);
	reply("b", "{\"correlation_id\":\"b\",\"status\":\"error\",\"error\":{\"code\":"
		   "\"outcome_unknown\",\"msg\":\"?\"}}");
	expect_result("\"status\":\"unknown\"");
	/* could not start: the journal is asked before the refusal is an outcome */
	command("c", "make", ARGS);
	reply("c",
	      "{\"correlation_id\":\"c\",\"status\":\"error\",\"error\":{\"code\":\"internal\","
	      "\"msg\":\"disk full\"}}");
	assert_int_equal(w.asked[w.asks - 1].op, HELPER_QUERY);
	reply("c", "{\"correlation_id\":\"c\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	/* … and it is made sure that it cannot start later, when Redis has lost that refusal */
	assert_int_equal(w.asked[w.asks - 1].op, HELPER_VOID);
	reply("c", "{\"correlation_id\":\"c\",\"status\":\"ok\",\"data\":{\"state\":\"void\"}}");
	expect_result("disk full");
	/* a disk that has no room for that either does not hold the answer back */
	command("d", "make", ARGS);
	reply("d",
	      "{\"correlation_id\":\"d\",\"status\":\"error\",\"error\":{\"code\":\"internal\","
	      "\"msg\":\"disk full\"}}");
	reply("d", "{\"correlation_id\":\"d\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	assert_int_equal(w.asked[w.asks - 1].op, HELPER_VOID);
	reply("d",
	      "{\"correlation_id\":\"d\",\"status\":\"error\",\"error\":{\"code\":\"internal\","
	      "\"msg\":\"it is not void\"}}");
	expect_result("disk full");
}

static void test_commands_concurrency_limit(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	command("b", "make", ARGS);
	command("c", "make", ARGS);
	assert_int_equal(w.asks, 2);
	assert_int_equal(commands_counts_of(w.c).queued, 1);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0}");
	assert_int_equal(w.asks, 3);
	assert_string_equal(w.asked[2].id, "c");
}

static void test_commands_bad_args_are_refused_early(void **state)
{
	(void)state;
	command("a", "make", "{\"name\":\"-rf\"}");
	assert_int_equal(w.asked[0].op, HELPER_QUERY); /* an earlier life may have run it */
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	expect_result("bad_args");
	command("b", "get_system_health", "{\"x\":1}");
	expect_result("bad_args");
	assert_int_equal(w.asks, 1);
}

static void test_commands_unknown_verb(void **state)
{
	(void)state;
	command("a", "format_disk", "{}");
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	expect_result("verb_not_allowed");
}

static void test_commands_exec_off(void **state)
{
	(void)state;
	again(false, NULL, true);
	command("a", "make", ARGS);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	expect_result("verb_not_allowed");
	command("b", "shutdown", "{}");
	expect_result("\"correlation_id\":\"b\",\"status\":\"error\"");
	command("c", "get_system_health", "{}");
	assert_int_equal(w.asked[w.asks - 1].op, HELPER_RUN);
	/* it ran while effects were allowed: the truth wins over the refusal */
	command("d", "make", ARGS);
	reply(
	    "d",
	    "{\"correlation_id\":\"d\",\"status\":\"ok\",\"rc\":0,\"data\":{\"state\":\"done\"}}");
	expect_result("\"correlation_id\":\"d\",\"status\":\"success\"");
}

static void test_commands_allowlist(void **state)
{
	(void)state;
	again(true, "ECHO, get_system_health", true);
	command("a", "make", ARGS);
	reply("a", "{\"correlation_id\":\"a\",\"status\":\"ok\",\"data\":{\"state\":\"absent\"}}");
	expect_result("VIW_AGENT_ALLOWED_VERBS");
	command("b", "ECHO", "{\"message\":\"ok\"}");
	expect_result("\"stdout\":\"ok\"");
}

static void test_commands_without_a_helper(void **state)
{
	(void)state;
	again(true, NULL, false);
	command("a", "make", ARGS);
	pass_ms(31000);
	expect_result("\"status\":\"expired\""); /* there is nobody who could have run it */
	cancel("z", "cancelled");
	expect_result("\"status\":\"cancelled\"");
	command("b", "ECHO", "{\"message\":\"ok\"}");
	expect_result("\"stdout\":\"ok\"");
}

static void test_commands_shutdown_after_ack(void **state)
{
	(void)state;
	command("0", "shutdown", "{\"in\":60}");
	expect_result("bad_args");
	commands_on_result_ack(w.c, SPAN("0"));
	assert_false(w.shut_down);
	w.sends = 0;
	command("a", "shutdown", "{}");
	expect_result("\"status\":\"success\"");
	assert_false(w.shut_down);
	command("b", "ECHO", "{}");
	assert_int_equal(count(WIRE_RESULT), 1); /* nothing new is begun */
	commands_on_result_ack(w.c, SPAN("a"));
	assert_true(w.shut_down);
}

static void test_commands_output_is_cut_to_the_frame(void **state)
{
	static char json[9000];
	size_t n =
	    (size_t)snprintf(json, sizeof json,
			     "{\"correlation_id\":\"a\",\"status\":\"ok\",\"rc\":0,\"stdout\":\"");

	(void)state;
	memset(json + n, 'x', 8000);
	(void)snprintf(json + n + 8000, sizeof json - n - 8000, "\"}");
	command("a", "make", ARGS);
	reply("a", json);
	expect_result("\"truncated\":{\"stdout\":true");
}

static void test_commands_journal_changed(void **state)
{
	(void)state;
	command("a", "make", ARGS);
	w.helper_up = false;
	commands_on_answer(w.c, "a", NULL);
	commands_on_journal_changed(w.c);
	expect_result("\"status\":\"unknown\"");
}

static void on_local(void *arg, const char *json, size_t n)
{
	char *out = arg;

	(void)snprintf(out, 512, "%.*s", (int)n, json);
}

static void test_commands_local(void **state)
{
	char out[512] = "";

	(void)state;
	assert_ok(
	    commands_local(w.c, "l1", "ECHO", SPAN("{\"message\":\"me\"}"), 1000, on_local, out));
	assert_non_null(strstr(out, "\"stdout\":\"me\""));
	assert_int_equal(w.sends, 0);
	assert_ok(commands_local(w.c, "l2", "make", SPAN(ARGS), 1000, on_local, out));
	assert_int_equal(commands_local(w.c, "l2", "make", SPAN(ARGS), 1000, on_local, out),
			 -EEXIST);
	reply("l2", "{\"correlation_id\":\"l2\",\"status\":\"ok\",\"rc\":4}");
	assert_non_null(strstr(out, "\"rc\":4"));
	assert_int_equal(commands_counts_of(w.c).results, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(test_commands_echo),
	    T(test_commands_run_and_result_until_acked),
	    T(test_commands_offered_twice_runs_once),
	    T(test_commands_replayed_nonce_is_dropped),
	    T(test_commands_nonces_never_fill_up),
	    T(test_commands_helper_down_read_only_fails_at_once),
	    T(test_commands_helper_down_effects_are_held),
	    T(test_commands_helper_lost_asks_by_the_same_id),
	    T(test_commands_helper_lost_past_deadline_voids),
	    T(test_commands_expiry_asks_void),
	    T(test_commands_stale_frame_is_expired),
	    T(test_commands_cancel_before_start),
	    T(test_commands_cancel_while_running_tells_what_happened),
	    T(test_commands_cancel_of_an_id_never_seen),
	    T(test_commands_what_was_voided_before_is_cancelled),
	    T(test_commands_helper_errors),
	    T(test_commands_concurrency_limit),
	    T(test_commands_bad_args_are_refused_early),
	    T(test_commands_unknown_verb),
	    T(test_commands_exec_off),
	    T(test_commands_allowlist),
	    T(test_commands_without_a_helper),
	    T(test_commands_shutdown_after_ack),
	    T(test_commands_output_is_cut_to_the_frame),
	    T(test_commands_journal_changed),
	    T(test_commands_local),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
