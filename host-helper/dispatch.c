/* A table of what may be asked, default deny. The requests here are authentic, in time and not
 * replayed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crash.h"
#include "base/jsonw.h"
#include "base/log.h"
#include "health.h"
#include "helper.h"
#include "supervisor.h"
#include "tree.h"

#define NO_ROOM_MSG "the disk of HOST_HELPER_STATE_DIR is nearly full; nothing was started"

static void data_state(struct helper *h, const struct reply_to *to, enum journal_state state)
{
	struct buf data;
	struct jsonw w;

	buf_init(&data, 256);
	jsonw_init(&w, &data);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "state", journal_state_word(state));
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) == 0)
		reply_data(h, to, &data);
	else
		reply_error(h, to, "internal", "out of memory");
	buf_fini(&data);
}

/* Answers `run` from what the journal says. */
static void answer_run(struct helper *h, const struct reply_to *to, const struct journal_entry *e)
{
	switch (e->state) {
	case JOURNAL_DONE:
		reply_outcome(h, to, &e->outcome, true, NULL);
		return;
	case JOURNAL_VOID:
		reply_error(h, to, "cancelled", "it was voided before it could start");
		return;
	case JOURNAL_UNKNOWN:
		reply_error(h, to, "outcome_unknown",
			    e->corrupt ? "its journal file cannot be trusted"
				       : "it was started and its outcome was lost");
		return;
	case JOURNAL_ABSENT:
		reply_error(h, to, "internal", "the journal refused it, nothing was started");
		return;
	case JOURNAL_RUNNING:
		break;
	}
	reply_error(h, to, "busy", "still running; ask again");
}

void dispatch_answer(struct helper *h, const struct reply_to *to, const struct journal_entry *e)
{
	if (strcmp(to->op, "run") == 0)
		answer_run(h, to, e);
	else if (e->state == JOURNAL_DONE)
		reply_outcome(h, to, &e->outcome, true, "done");
	else if (e->state == JOURNAL_ABSENT && strcmp(to->op, "void") == 0)
		reply_error(h, to, "internal", "the journal refused it: it is not void");
	else
		data_state(h, to, e->state);
}

/* ---- run ---- */

static const char *check_deadline(const struct request *q, const char **ret_msg)
{
	int64_t now = clock_wall_ms();

	if (!q->m->deadline.set) {
		*ret_msg = "deadline: is required for a verb with effects";
		return "bad_request";
	}
	if (q->m->deadline.ms > now + HELPER_DEADLINE_MS + HELPER_SKEW_MS) {
		*ret_msg = "deadline: is more than 24 h ahead";
		return "bad_request";
	}
	*ret_msg = "deadline: is past; it was not started";
	return q->m->deadline.ms < now ? "expired" : NULL;
}

/* Whoever may start commands must not be able to fill the disk with their journal. */
static bool disk_has_room(const struct helper *h)
{
	uint64_t pct = (uint64_t)h->cfg->min_free_pct;
	struct statvfs st;

	return pct == 0 || fstatvfs(h->journal.dir, &st) < 0 ||
	       (st.f_bavail * 100 >= st.f_blocks * pct &&
		(st.f_files == 0 || st.f_favail * 100 >= st.f_files * pct));
}

/* A few files of /proc, and no waiting once there is a first sample: no process for that. */
static bool answers_itself(const struct helper *h, const struct verb *v)
{
	return v->inside && h->cpu_older.total;
}

/* What must hold before a new run may begin; NULL: it may. */
static const char *check_start(struct helper *h, const struct request *q, const struct verb *v,
			       char *msg, size_t cap)
{
	const char *code = NULL, *text = "";

	if (v->effects && (code = check_deadline(q, &text)) != NULL) {
		snprintf(msg, cap, "%s", text);
		return code;
	}
	if (v->effects && !disk_has_room(h)) {
		snprintf(msg, cap, NO_ROOM_MSG);
		return "internal";
	}
	if (run_count(h, NULL) >= (size_t)h->cfg->max_concurrency ||
	    run_count(h, v->name) >= (size_t)v->concurrency) {
		snprintf(msg, cap, "too many runs at once; try again later");
		return "busy";
	}
	if (!answers_itself(h, v) && trust_check_path(v->exec, TRUST_EXECUTABLE, msg, cap) < 0)
		return "not_executable";
	return NULL;
}

static int fill_intent(const struct request *q, const struct verb *v, const char *digest,
		       struct intent *in)
{
	snprintf(in->correlation_id, sizeof in->correlation_id, "%s", q->correlation_id);
	snprintf(in->agent_id, sizeof in->agent_id, "%s", q->agent_id);
	snprintf(in->verb, sizeof in->verb, "%s", v->name);
	snprintf(in->digest, sizeof in->digest, "%s", digest);
	snprintf(in->run_id, sizeof in->run_id, "%016llx%016llx",
		 (unsigned long long)ident_random_u64(), (unsigned long long)ident_random_u64());
	in->deadline_ms = q->m->deadline.ms;
	in->created_ms = clock_wall_ms();
	int r = span_copy(q->m->nonce, in->nonce, sizeof in->nonce);
	return r == 0 ? tree_boot_id(in->boot_id) : r;
}

static void start(struct helper *h, const struct request *q, const struct verb *v,
		  struct verb_args *args, const char *digest, const struct reply_to *to)
{
	struct job job = {.verb = v,
			  .journal = &h->journal,
			  .audit = &h->audit,
			  .cfg = h->cfg,
			  .cpu_before = h->cpu_older};
	struct audit_record rec = {.event = "start",
				   .agent_id = q->agent_id,
				   .correlation_id = q->correlation_id,
				   .verb = v->name,
				   .args_hash = to->args_hash,
				   .has_peer = true,
				   .uid = to->peer.uid,
				   .pid = to->peer.pid};

	int r = fill_intent(q, v, digest, &job.intent);
	if (r == 0)
		r = secret_set_from_params(v, q->m->args, &job.secrets);
	if (r == 0 && v->effects)
		r = audit_write(&h->audit, &rec); /* what cannot be recorded is not done */
	if (r == 0) {
		job.args = *args;
		*args = (struct verb_args){0};
		r = run_start(h, &job, to);
	}
	if (r < 0)
		reply_error(h, to, "internal", "it could not be started");
}

static void answer_health(struct helper *h, const struct verb *v, const struct reply_to *to)
{
	struct outcome o;
	struct jsonw w;

	outcome_init(&o, (size_t)v->max_output_bytes);
	o.started = o.data = o.has_rc = true;
	o.started_ms = clock_wall_ms();
	jsonw_init(&w, &o.out);
	jsonw_obj(&w, NULL);
	int r = health_answer(&h->cpu_older, &w);
	jsonw_obj_end(&w);
	if (r == 0)
		r = jsonw_finish(&w);
	if (r < 0) {
		outcome_fail(&o, "internal", "/proc: %s", strerror(-r));
		buf_clear(&o.out);
	}
	o.finished_ms = clock_wall_ms();
	o.duration_ms = o.finished_ms > o.started_ms ? o.finished_ms - o.started_ms : 0;
	reply_outcome(h, to, &o, false, NULL);
	outcome_fini(&o);
}

/* True when an earlier request of this id decides the answer. */
static bool already_known(struct helper *h, const struct request *q, const char *digest,
			  const struct reply_to *to)
{
	struct run *run = run_find(h, q->correlation_id);
	struct journal_entry e;
	bool known = true;

	if (CRASH_OFF("journal"))
		return false;
	if (run) {
		if (!run_is_void(run) && strcmp(run_digest(run), digest) != 0)
			reply_error(h, to, "digest_mismatch", DIGEST_MISMATCH_MSG);
		else if (run_wait(h, run, to) < 0)
			reply_error(h, to, "busy", "too many wait for this command");
		return true;
	}
	int r = 0, looked = journal_look(&h->journal, q->correlation_id, &e);
	if (e.corrupt)
		LOG_ERROR(FIELDS(.event = "journal_corrupt", .correlation_id = q->correlation_id,
				 .error = e.corrupt),
			  "a journal file cannot be trusted; its command will not run");
	if (looked < 0)
		reply_error(h, to, "internal", "the journal cannot be read; nothing was started");
	else if (e.state == JOURNAL_ABSENT)
		known = false;
	else if (!journal_is_of(&e, digest))
		reply_error(h, to, "digest_mismatch", DIGEST_MISMATCH_MSG);
	else if (e.state == JOURNAL_RUNNING)
		r = run_adopt(h, &e, to);
	else if (e.state == JOURNAL_UNKNOWN && !e.corrupt)
		r = run_settle(h, &e, to);
	else
		dispatch_answer(h, to, &e);
	if (r < 0)
		reply_error(h, to, "busy", "cannot wait for it now; ask again");
	journal_entry_fini(&e);
	return known;
}

static void op_run(struct helper *h, struct request *q, struct reply_to *to)
{
	const struct verb *v = verbs_find(h->verbs, q->verb);
	struct verb_args args = {0};
	char msg[256], digest[SHA256_HEX_LEN + 1];
	uint8_t mac[SHA256_BYTES];
	const char *code;

	if (!v || v->local) {
		reply_error(h, to, "verb_not_allowed", "verb: is not one of this helper's");
		return;
	}
	if (!q->m->args.p) {
		reply_error(h, to, "bad_request", "args: is required; give {} when there are none");
		return;
	}
	int r = verb_args_check(v, q->m->args, &args, msg, sizeof msg);
	if (r < 0) {
		reply_error(h, to, r == -EINVAL ? "bad_args" : "internal", msg);
		return;
	}
	verb_digest(v, &args, digest);
	crypto_hmac_sha256(h->secret.data, h->secret.len, digest, SHA256_HEX_LEN, mac);
	crypto_hex(mac, 8, to->args_hash);
	if (!v->effects || !already_known(h, q, digest, to)) {
		code = check_start(h, q, v, msg, sizeof msg);
		if (code)
			reply_error(h, to, code, msg);
		else if (answers_itself(h, v))
			answer_health(h, v, to);
		else
			start(h, q, v, &args, digest, to);
	}
	verb_args_fini(&args, v);
}

/* ---- query, void, hello ---- */

static void op_query(struct helper *h, struct request *q, struct reply_to *to)
{
	struct run *run = run_find(h, q->correlation_id);
	struct journal_entry e;

	if (run) {
		if (!run_is_void(run))
			data_state(h, to, JOURNAL_RUNNING);
		else if (run_wait(h, run, to) < 0)
			reply_error(h, to, "busy", "too many wait for this command");
		return;
	}
	int r = 0, looked = journal_look(&h->journal, q->correlation_id, &e);
	if (looked < 0)
		reply_error(h, to, "internal", "the journal cannot be read");
	else if (e.state == JOURNAL_UNKNOWN && !e.corrupt)
		r = run_settle(h, &e, to);
	else if (e.state == JOURNAL_ABSENT && strcmp(q->op, "void") == 0 && !disk_has_room(h))
		reply_error(h, to, "internal", NO_ROOM_MSG);
	else if (e.state == JOURNAL_ABSENT && strcmp(q->op, "void") == 0)
		r = run_start_void(h, to);
	else
		dispatch_answer(h, to, &e);
	if (r < 0)
		reply_error(h, to, "busy", "cannot look now; ask again");
	journal_entry_fini(&e);
}

static void write_param(struct jsonw *w, const struct verb_param *p)
{
	static const char *const via[] = {"argv", "stdin", "env"};
	bool numeric = p->type == PARAM_INT || p->type == PARAM_PORT || p->type == PARAM_DURATION_S;

	jsonw_obj(w, p->name);
	jsonw_str(w, "type", param_type_word(p->type));
	jsonw_str(w, "via", via[p->via]);
	if (p->optional)
		jsonw_bool(w, "optional", true);
	if (p->secret)
		jsonw_bool(w, "secret", true);
	jsonw_str(w, "default", p->default_text);
	if (numeric)
		jsonw_int(w, "min", p->min);
	if (numeric || p->type == PARAM_TEXT || p->type == PARAM_SECRET)
		jsonw_int(w, "max", p->max);
	jsonw_str(w, "charset", p->charset);
	if (p->words) {
		jsonw_arr(w, "values");
		for (char **word = p->words; *word; word++)
			jsonw_str(w, NULL, *word);
		jsonw_arr_end(w);
	}
	jsonw_obj_end(w);
}

void dispatch_write_verbs(const struct verbs *verbs, struct jsonw *w)
{
	jsonw_arr(w, "verbs");
	for (size_t i = 0; i < verbs_count(verbs); i++) {
		const struct verb *v = verbs_at(verbs, i);
		if (v->local)
			continue;
		jsonw_obj(w, NULL);
		jsonw_str(w, "name", v->name);
		jsonw_bool(w, "effects", v->effects);
		jsonw_bool(w, "idempotent", v->idempotent);
		jsonw_int(w, "timeout_s", v->timeout_s);
		jsonw_int(w, "concurrency", v->concurrency);
		jsonw_obj(w, "params");
		for (size_t p = 0; p < v->params; p++)
			write_param(w, &v->param[p]);
		jsonw_obj_end(w);
		jsonw_obj_end(w);
	}
	jsonw_arr_end(w);
}

/* What `hello` tells of the audit log: how it stands now. */
int dispatch_write_checkpoint(const struct helper *h, struct buf *out)
{
	char ts[CLOCK_RFC3339_LEN + 1];
	struct jsonw w;

	clock_format_rfc3339(h->audit.last.ts_ms, ts);
	jsonw_init(&w, out);
	jsonw_obj(&w, NULL);
	jsonw_uint(&w, "seq", h->audit.last.seq);
	jsonw_str(&w, "hash", h->audit.last.hash);
	jsonw_str(&w, "ts", ts);
	audit_counts_write(&h->audit_counts, &w);
	jsonw_obj_end(&w);
	return jsonw_finish(&w);
}

void dispatch_answer_hello(struct helper *h, const struct reply_to *to,
			   const struct buf *checkpoint)
{
	struct buf data;
	struct jsonw w;

	if (!checkpoint) {
		reply_error(h, to, "internal", "the audit log cannot be synced");
		return;
	}
	buf_init(&data, WIRE_HELPER_REPLY_MAX / 2);
	jsonw_init(&w, &data);
	jsonw_obj(&w, NULL);
	jsonw_str(&w, "journal_id", h->journal.id);
	jsonw_str(&w, "version", VIW_VERSION);
	dispatch_write_verbs(h->verbs, &w);
	jsonw_raw(&w, "audit", checkpoint->data, checkpoint->len);
	jsonw_obj_end(&w);
	if (jsonw_finish(&w) == 0)
		reply_data(h, to, &data);
	else
		reply_error(h, to, "internal", "the list of verbs is too long");
	buf_fini(&data);
}

/* The checkpoint it tells must outlive a power cut: the log is synced first. */
static void op_hello(struct helper *h, struct request *q UNUSED, struct reply_to *to)
{
	if (run_start_sync(h, to) < 0)
		reply_error(h, to, "busy", "too many ask for the same; ask again");
}

void dispatch_request(struct helper *h, struct request *q)
{
	static const struct {
		const char *op;
		void (*handle)(struct helper *h, struct request *q, struct reply_to *to);
	} ops[] = {{"run", op_run}, {"query", op_query}, {"void", op_query}, {"hello", op_hello}};
	struct reply_to to;

	reply_to_request(q, &to);
	for (size_t i = 0; i < ARRAY_LEN(ops); i++)
		if (strcmp(q->op, ops[i].op) == 0) {
			ops[i].handle(h, q, &to);
			return;
		}
	reply_error(h, &to, "bad_request", "op: must be run, query, void or hello");
}
