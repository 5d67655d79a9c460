/*
 * Verb manifests (the JSON files of verbs.d), typed parameters, digests. The agent uses it for
 * early and friendly refusals, the helper as the authority, bridge and results-writer to know
 * secrets. Built-in verbs of the helper and agent are in the same registry, from a table.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "wire/json_scan.h"

enum param_type {
	PARAM_USERNAME,
	PARAM_SECRET,
	PARAM_IPV4,
	PARAM_IPV6,
	PARAM_IP,
	PARAM_CIDR,
	PARAM_PORT,
	PARAM_INT,
	PARAM_ENUM,
	PARAM_HOSTNAME,
	PARAM_UNIT,
	PARAM_UUID,
	PARAM_KEY32,
	PARAM_TEXT,
	PARAM_DURATION_S,
	PARAM_BOOL,
	PARAM_TYPES
};
enum param_via { PARAM_VIA_ARGV, PARAM_VIA_STDIN, PARAM_VIA_ENV };

struct verb_param {
	char *name;
	enum param_type type;
	enum param_via via;
	bool optional, secret;
	char *default_text; /* NULL: none */
	int64_t min, max;   /* int, port, duration_s: value; text, secret: length in bytes */
	char **words;	    /* enum; NULL-terminated */
	char *charset;	    /* text: allowed characters, NULL: printable UTF-8 */
};

struct verb {
	char *name;
	char *file;  /* manifest it came from; NULL: built in */
	char *exec;  /* absolute path; built in: only '/' and a name before verbs_set_folder */
	char **argv; /* templates; NULL-terminated */
	struct verb_param *param;
	size_t params;
	bool effects, idempotent, network, builtin;
	bool local;  /* the agent's own verb (ECHO, shutdown): the helper refuses it */
	bool inside; /* built in, reads only and never waits: the helper may answer it itself */
	int64_t timeout_s, max_output_bytes, concurrency;
	char *run_as;
	/* Declared needs of the script under the helper's sandbox. */
	char **writable_paths, **capabilities; /* NULL-terminated or NULL */
	char *doc;			       /* one line; NULL: none */
};

struct verbs;
#define VERB_MANIFEST_MAX_BYTES 65536
#define VERB_TIMEOUT_MAX_S	3600

/* Faults name file and key; n of them may be more than one per file. */
struct verbs_faults {
	struct verbs_fault {
		char *file, *key, *text;
	} * item;
	size_t n;
};
void verbs_faults_fini(struct verbs_faults *f);
void verbs_fault_add(struct verbs_faults *f, const char *file, const char *key, const char *fmt,
		     ...) PRINTF_LIKE(4, 5);

enum verbs_trust {
	VERBS_TRUST_ANY,  /* agent, bridge, writer: content only */
	VERBS_TRUST_ROOT, /* helper: folder and files root-owned, not group- or world-writable, no
			     symlinks */
};
/* dir NULL: built-in verbs only. Every .json file in name order. 0; -EINVAL with faults (then *ret
 * holds the verbs that were good when `partial`, else NULL); -errno. */
int verbs_load(const char *dir, enum verbs_trust trust, bool partial, struct verbs **ret,
	       struct verbs_faults *faults) MUST_CHECK;
/* For --check-config: each fault of the manifests in dir becomes one of this setting, or a warning
 * where the program would start all the same. */
struct settings_faults;
void verbs_check(const char *dir, const char *setting, bool starts_anyway,
		 struct settings_faults *ret);
void verbs_free(struct verbs *v);
/* Where the programs of the built-in verbs lie. */
int verbs_set_folder(struct verbs *v, const char *folder) MUST_CHECK;
/* One manifest; `file` names it in faults. 0, -EINVAL with faults, -ENOMEM. */
int verb_parse(const char *json, size_t n, const char *file, struct verb **ret,
	       struct verbs_faults *faults) MUST_CHECK;
void verb_free(struct verb *v);
const char *param_type_word(enum param_type t);
/* Rules for every value, then its type's: the canonical text (malloc), or -EINVAL and what would be
 * right (static text), -ENOMEM. */
int param_check(const struct verb_param *p, const char *s, size_t n, char **ret,
		const char **ret_why) MUST_CHECK;
const struct verb *verbs_find(const struct verbs *v, const char *name);
size_t verbs_count(const struct verbs *v);
const struct verb *verbs_at(const struct verbs *v, size_t i); /* sorted by name */

/* Validated arguments: one value per declared parameter, in the manifest's order. Wiped on free. */
struct verb_args {
	size_t n;
	char **value; /* canonical text; NULL: optional and absent */
};
/* args is a validated JSON object. -EINVAL with msg (names the parameter and the remedy, never a
 * secret's value). */
int verb_args_check(const struct verb *v, struct span args, struct verb_args *ret, char *msg,
		    size_t msg_cap) MUST_CHECK;
void verb_args_fini(struct verb_args *a, const struct verb *v);

/* SHA-256 over verb and validated arguments, keys sorted; hex into out (65 bytes). */
void verb_digest(const struct verb *v, const struct verb_args *a, char *out);

/*
 * Refuses (-EACCES, -ENOENT, … with msg) unless path is absolute, without "." or ".." or symlink in
 * any component, and the thing itself and every directory above it belong to root and are writable
 * by nobody else. A check by name: only root could change the answer afterwards.
 */
enum trust_kind { TRUST_FILE, TRUST_EXECUTABLE, TRUST_DIR };
int trust_check_path(const char *path, enum trust_kind kind, char *msg, size_t msg_cap) MUST_CHECK;

/* True when the name alone says secret: contains pass, secret, token, psk or key, but not
 * public_key; any case. */
bool verb_name_is_secret(const char *param_name, size_t n);
/* True by manifest or by name. v may be NULL. */
bool verb_param_is_secret(const struct verb *v, const char *param_name, size_t n);

/* ---- redaction (contract section 6) ---- */
/* Secret values of one command, for masking in output. Wiped on free. */
struct secret_set {
	char **value;
	size_t n;
};
/* From a params object (any valid JSON object, nested members too); v may be NULL. */
int secret_set_from_params(const struct verb *v, struct span params,
			   struct secret_set *ret) MUST_CHECK;
void secret_set_fini(struct secret_set *s);
/* Appends params with secret values replaced by "***". *ret_masked says whether any was. */
int redact_params(const struct verb *v, struct span params, struct buf *out,
		  bool *ret_masked) MUST_CHECK;
/* Appends text with the set's values of 4 bytes or longer replaced by ***, and the generic
 * patterns masked (password=, token=, secret=, Authorization:, PEM private keys, WireGuard keys
 * after PrivateKey/PresharedKey). s may be NULL: patterns only. */
int redact_text(const struct secret_set *s, const char *text, size_t n, struct buf *out) MUST_CHECK;
/* Makes raw output presentable: masks, then turns invalid UTF-8 and NULs into \xHH text, at most
 * cap bytes. *cut is set when something was left out; was_cut: raw itself ends somewhere. */
int redact_output(const struct secret_set *secrets, const char *raw, size_t n, bool was_cut,
		  size_t cap, struct buf *out, bool *cut) MUST_CHECK;
