/* Manifests, typed parameters, digests and redaction. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit.h"
#include "verbs/verbs.h"

static struct verb *parse(const char *json)
{
	struct verbs_faults faults = {0};
	struct verb *v = NULL;

	int r = verb_parse(json, strlen(json), "t.json", &v, &faults);
	if (r < 0 && faults.n)
		fprintf(stderr, "%s: %s\n", faults.item[0].key, faults.item[0].text);
	verbs_faults_fini(&faults);
	assert_int_equal(r, 0);
	return v;
}

static int check(const struct verb *v, const char *args, char *msg, size_t cap)
{
	struct verb_args a;
	struct json_fault fault;

	if (json_validate(args, strlen(args), 16, &fault) < 0) {
		snprintf(msg, cap, "args.x: not JSON"); /* refused before any verb is looked at */
		return -EINVAL;
	}
	int r = verb_args_check(v, span_of(args), &a, msg, cap);
	if (r == 0)
		verb_args_fini(&a, v);
	return r;
}

/* ---- every parameter type against what it must take and refuse ---- */

struct type_case {
	const char *param;   /* the parameter's object */
	const char *good[8]; /* as JSON values */
	const char *bad[24];
};

/* What every type refuses: options, control bytes, wrong JSON types. */
static const char *const always_bad[] = {
    "\"-x\"",	       "\"--help\"",	"\"-\"",       "\"a\\nb\"", "\"a\\u0001\"", "\"a\\u007f\"",
    "\"\\t\"",	       "null",		"[]",	       "{}",	    "[\"a\"]",	    "1.5",
    "\"\\u001b[31m\"", "\"a\\u0000b\"", "\"\\u0000\"", "\"a\\r\"",
};

/* What every type but free text refuses: shells, paths, letters that only look alike. */
static const char *const hostile[] = {
    "\"$(id)\"",   "\"`id`\"", "\"a;id\"",   "\"a|id\"",    "\"a&id\"",		"\"a>b\"",
    "\"a<b\"",	   "\"a'b\"",  "\"a\\\"b\"", "\"a b\"",	    "\"~root\"",	"\"{x}\"",
    "\"../../x\"", "\"..\"",   "\"/etc\"",   "\"\\u0430\"", "\"al\\u200bice\"", "\"a\\u202eb\"",
};

static const struct type_case type_cases[] = {
    {"{\"type\":\"username\"}",
     {"\"alice\"", "\"_svc\"", "\"a.b-c_d9\"", "\"A1\""},
     {"\"\"",
      "\"1abc\"",
      "\".\"",
      "\"..\"",
      "\"../etc/passwd\"",
      "\"a/b\"",
      "\"a b\"",
      "\"a;id\"",
      "\"$(id)\"",
      "\"`id`\"",
      "\"a|b\"",
      "\"a&b\"",
      "\"a*\"",
      "\"a:b\"",
      "\"\\u0430lice\"",
      "\"al\\u200bice\"",
      "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
      "7",
      "true",
      "\"caf\\u00e9\""}},
    {"{\"type\":\"secret\",\"max\":8}",
     {"\"p\"", "\"$(id); x\"", "\"\\u00e9\\u00e9\\u00e9\\u00e9\""},
     {"\"\"", "\"123456789\"", "5", "false"}},
    {"{\"type\":\"ipv4\"}",
     {"\"192.0.2.7\"", "\"0.0.0.0\""},
     {"\"\"", "\"1.2.3\"", "\"1.2.3.4.5\"", "\"256.1.1.1\"", "\"01.2.3.4\"", "\"1.2.3.4 \"",
      "\"0x7f.1\"", "\"::1\"", "\"1.2.3.4/8\"", "\"\\uff11.2.3.4\"", "16909060"}},
    {"{\"type\":\"ipv6\"}",
     {"\"2001:db8::7\"", "\"::\"", "\"2001:DB8::7\"", "\"::ffff:1.2.3.4\""},
     {"\"\"", "\"1.2.3.4\"", "\":::\"", "\"2001:db8::7%eth0\"", "\"[::1]\"", "\"g::1\"",
      "\"1:2:3:4:5:6:7:8:9\""}},
    {"{\"type\":\"ip\"}",
     {"\"192.0.2.7\"", "\"::1\""},
     {"\"\"", "\"host\"", "\"1.2.3.4:5\"", "\"localhost\""}},
    {"{\"type\":\"cidr\"}",
     {"\"192.0.2.0/24\"", "\"0.0.0.0/0\"", "\"2001:db8::/32\"", "\"192.0.2.7/32\""},
     {"\"192.0.2.7\"", "\"192.0.2.1/24\"", "\"192.0.2.0/33\"", "\"192.0.2.0/024\"",
      "\"192.0.2.0/\"", "\"/8\"", "\"2001:db8::1/32\"", "\"::/129\"", "\"192.0.2.0/-1\"",
      "\"192.0.2.0/2 4\""}},
    {"{\"type\":\"port\"}",
     {"1", "65535", "\"443\""},
     {"0", "65536", "-1", "\"\"", "\"0x50\"", "\"+80\"", "\" 80\"", "\"080\"", "true", "1e3"}},
    {"{\"type\":\"int\",\"min\":5,\"max\":9}",
     {"5", "9", "\"7\""},
     {"4", "10", "-5", "\"\"", "\"7a\"", "\"٧\"", "99999999999999999999", "true"}},
    {"{\"type\":\"enum\",\"values\":[\"on\",\"off\"]}",
     {"\"on\"", "\"off\""},
     {"\"\"", "\"ON\"", "\"on \"", "\"o\"", "\"onoff\"", "1", "true"}},
    {"{\"type\":\"hostname\"}",
     {"\"a\"", "\"vpn-1.example.org\"", "\"1.2.3.4\""},
     {"\"\"", "\"a..b\"", "\".a\"", "\"a.\"", "\"a-\"", "\"a.-b\"", "\"a_b\"", "\"a/b\"", "\"a b\"",
      "\"a;b\"", "\"\\u0430.example\"",
      "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b\""}},
    {"{\"type\":\"unit\"}",
     {"\"nginx\"", "\"openvpn@server.service\"", "\"a\\\\x2db.timer\""},
     {"\"\"", "\".hidden\"", "\"../x\"", "\"a/b.service\"", "\"a b\"", "\"a;b\"", "\"a*\"",
      "\"a$b\"", "\"\\u0430\""}},
    {"{\"type\":\"uuid\"}",
     {"\"123e4567-e89b-12d3-a456-426614174000\"", "\"123E4567-E89B-12D3-A456-426614174000\""},
     {"\"\"", "\"123e4567e89b12d3a456426614174000\"", "\"123e4567-e89b-12d3-a456-42661417400\"",
      "\"g23e4567-e89b-12d3-a456-426614174000\"", "\"{123e4567-e89b-12d3-a456-42661417400}\""}},
    {"{\"type\":\"key32\"}",
     {"\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\""},
     {"\"\"", "\"AAAA\"", "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=\"",
      "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"",
      "\"********************************************\""}},
    {"{\"type\":\"text\",\"max\":10}",
     {"\"\"", "\"hello\"", "\"gr\\u00fc\\u00df\"", "\"a; $(id)\""},
     {"\"12345678901\"", "\"a\\u200bb\"", "\"a\\u202eb\"", "\"a\\u0085\"", "\"a\\u2028\"",
      "\"\\ufeff\"", "5", "true"}},
    {"{\"type\":\"text\",\"charset\":\"abc/\"}",
     {"\"a/b\"", "\"\""},
     {"\"d\"", "\"a b\"", "\"A\"", "\"\\u0430\""}},
    {"{\"type\":\"duration_s\",\"max\":3600}",
     {"0", "3600", "\"60\""},
     {"3601", "-1", "\"1h\"", "\"\"", "\"1.5\"", "true"}},
    {"{\"type\":\"bool\"}",
     {"true", "false", "\"true\"", "\"false\""},
     {"1", "\"yes\"", "\"TRUE\"", "\"\"", "0"}},
};

static void expect(const struct verb *v, const char *value, bool good)
{
	static char args[65536];
	char msg[256];

	snprintf(args, sizeof args, "{\"x\":%s}", value);
	int r = check(v, args, msg, sizeof msg);
	if ((r == 0) != good)
		fprintf(stderr, "type %s, value %.100s\n", param_type_word(v->param[0].type),
			value);
	assert_int_equal(r, good ? 0 : -EINVAL);
	if (!good)
		assert_non_null(strstr(msg, "args.x: "));
}

static void test_param_types_take_and_refuse(void **state UNUSED)
{
	static char overlong[60003];

	memset(overlong, '1', sizeof overlong - 1);
	overlong[0] = overlong[sizeof overlong - 2] = '"';
	for (size_t i = 0; i < ARRAY_LEN(type_cases); i++) {
		const struct type_case *c = &type_cases[i];
		char json[512];
		snprintf(
		    json, sizeof json,
		    "{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[\"{x}\"],\"params\":{\"x\":%s}}",
		    c->param);
		struct verb *v = parse(json);
		for (size_t k = 0; k < ARRAY_LEN(c->good) && c->good[k]; k++)
			expect(v, c->good[k], true);
		for (size_t k = 0; k < ARRAY_LEN(c->bad) && c->bad[k]; k++)
			expect(v, c->bad[k], false);
		for (size_t k = 0; k < ARRAY_LEN(always_bad); k++)
			expect(v, always_bad[k], false);
		bool free_text = v->param[0].type == PARAM_TEXT || v->param[0].type == PARAM_SECRET;
		for (size_t k = 0; !free_text && k < ARRAY_LEN(hostile); k++)
			expect(v, hostile[k], false);
		expect(v, overlong, false);
		verb_free(v);
	}
}

static void test_args_message_never_shows_a_value(void **state UNUSED)
{
	struct verb *v = parse(
	    "{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"pw\":{\"type\":\"secret\",\"max\":4,"
	    "\"via\":\"stdin\"}}}");
	char msg[256];

	assert_int_equal(check(v, "{\"pw\":\"Hunter2\"}", msg, sizeof msg), -EINVAL);
	assert_null(strstr(msg, "Hunter2"));
	verb_free(v);
}

static void test_args_unknown_missing_and_twice(void **state UNUSED)
{
	struct verb *v =
	    parse("{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[\"{a}\"],"
		  "\"params\":{\"a\":{\"type\":\"int\"},\"b\":{\"type\":\"text\",\"optional\":true,"
		  "\"via\":\"env\"},\"c\":{\"type\":\"int\",\"default\":3,\"via\":\"env\"}}}");
	struct verb_args a;
	char msg[256];

	assert_int_equal(check(v, "{}", msg, sizeof msg), -EINVAL);
	assert_non_null(strstr(msg, "args.a: is required"));
	assert_int_equal(check(v, "{\"a\":1,\"z\":2}", msg, sizeof msg), -EINVAL);
	assert_non_null(strstr(msg, "args.z: is not a parameter"));
	assert_int_equal(check(v, "{\"a\":1,\"\":2}", msg, sizeof msg), -EINVAL);
	/* An escaped name is the same name. */
	assert_int_equal(verb_args_check(v, SPAN("{\"\\u0061\":1}"), &a, msg, sizeof msg), 0);
	assert_string_equal(a.value[0], "1");
	assert_null(a.value[1]);
	assert_string_equal(a.value[2], "3");
	verb_args_fini(&a, v);
	assert_int_equal(verb_args_check(v, SPAN("{\"a\":1,\"\\u0061\":2}"), &a, msg, sizeof msg),
			 -EINVAL);
	verb_free(v);
}

static void digest(const struct verb *v, const char *args, char *out)
{
	struct verb_args a;
	char msg[256];

	assert_int_equal(verb_args_check(v, span_of(args), &a, msg, sizeof msg), 0);
	verb_digest(v, &a, out);
	verb_args_fini(&a, v);
}

static void test_digest_depends_on_values_not_on_writing(void **state UNUSED)
{
	struct verb *v = parse(
	    "{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[\"{a}{b}\"],\"params\":{"
	    "\"a\":{\"type\":\"int\",\"default\":1},\"b\":{\"type\":\"text\",\"default\":\"\"}}}");
	char one[65], two[65];

	digest(v, "{}", one);
	digest(v, "{\"b\":\"\",\"a\":\"1\"}", two);
	assert_string_equal(one, two);
	digest(v, "{\"a\":2}", two);
	assert_string_not_equal(one, two);
	/* Values never run into each other. */
	digest(v, "{\"a\":1,\"b\":\"2\"}", one);
	digest(v, "{\"a\":12}", two);
	assert_string_not_equal(one, two);
	verb_free(v);
}

/* ---- manifests ---- */

static void test_manifest_faults_name_their_key(void **state UNUSED)
{
	static const struct {
		const char *json, *key;
	} cases[] = {
	    {"", "(file)"},
	    {"[]", "(file)"},
	    {"{\"verb\":\"v\",\"verb\":\"w\",\"exec\":\"/x\"}", "(file)"},
	    {"{\"exec\":\"/x\"}", "verb"},
	    {"{\"verb\":\"v\"}", "exec"},
	    {"{\"verb\":\"v v\",\"exec\":\"/x\"}", "verb"},
	    {"{\"verb\":\"v\",\"exec\":\"x\"}", "exec"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"timeout\":3}", "timeout"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"timeout_s\":0}", "timeout_s"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"timeout_s\":\"3\"}", "timeout_s"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"effects\":\"yes\"}", "effects"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[\"{nope}\"]}", "argv"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[\"{\"]}", "argv"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"argv\":[5]}", "argv"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a\":{\"type\":\"int\"}}}", "argv"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a\":{}}}", "params.a.type"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a\":{\"type\":\"Int\"}}}",
	     "params.a.type"},
	    {"{\"verb\":\"v\",\"exec\":\"/"
	     "x\",\"params\":{\"a\":{\"type\":\"int\",\"via\":\"file\"}}}",
	     "params.a.via"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a\":{\"type\":\"int\",\"maximum\":1}}}",
	     "params.a.maximum"},
	    {"{\"verb\":\"v\",\"exec\":\"/"
	     "x\",\"params\":{\"a\":{\"type\":\"int\",\"min\":5,\"max\":1}}}",
	     "params.a.min"},
	    {"{\"verb\":\"v\",\"exec\":\"/"
	     "x\",\"params\":{\"a\":{\"type\":\"int\",\"max\":1,\"default\":2}}}",
	     "params.a.default"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a\":{\"type\":\"enum\"}}}",
	     "params.a.type"},
	    {"{\"verb\":\"v\",\"exec\":\"/"
	     "x\",\"params\":{\"a\":{\"type\":\"secret\",\"default\":\"x\"}}}",
	     "params.a.default"},
	    {"{\"verb\":\"v\",\"exec\":\"/"
	     "x\",\"params\":{\"my_token\":{\"type\":\"text\",\"default\":\"x\"}}}",
	     "params.my_token.default"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"params\":{\"a b\":{\"type\":\"int\"}}}", "params"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"run_as\":\"-root\"}", "run_as"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"capabilities\":[\"chown\"]}", "capabilities"},
	    {"{\"verb\":\"v\",\"exec\":\"/x\",\"writable_paths\":[\"etc\"]}", "writable_paths"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct verbs_faults faults = {0};
		struct verb *v = NULL;
		int r = verb_parse(cases[i].json, strlen(cases[i].json), "t.json", &v, &faults);
		if (r != -EINVAL || faults.n == 0 || strcmp(faults.item[0].key, cases[i].key) != 0)
			fprintf(stderr, "%s: %s\n", cases[i].json,
				faults.n ? faults.item[0].key : "no fault");
		assert_int_equal(r, -EINVAL);
		assert_null(v);
		assert_string_equal(faults.item[0].file, "t.json");
		assert_string_equal(faults.item[0].key, cases[i].key);
		verbs_faults_fini(&faults);
	}
}

static void test_manifest_gathers_every_fault(void **state UNUSED)
{
	const char json[] = "{\"verb\":\"v v\",\"exec\":\"x\",\"timeout_s\":0,\"nope\":1}";
	struct verbs_faults faults = {0};
	struct verb *v = NULL;

	assert_int_equal(verb_parse(json, sizeof json - 1, "t.json", &v, &faults), -EINVAL);
	assert_int_equal(faults.n, 4);
	verbs_faults_fini(&faults);
}

static void test_manifest_of_the_contract(void **state UNUSED)
{
	struct verb *v =
	    parse("{\"verb\": \"create_openvpn_user\", \"exec\": "
		  "\"/opt/Viworks/scripts_viworks/add_vpn_user.sh\","
		  "\"argv\": [\"{username}\", \"{source_ip}\", \"{timeout}\"],"
		  "\"params\": {\"username\": {\"type\": \"username\"}, \"source_ip\": {\"type\": "
		  "\"ip\"},"
		  "\"timeout\": {\"type\": \"duration_s\", \"default\": 3600, \"max\": 86400},"
		  "\"userpass\": {\"type\": \"secret\", \"max\": 128, \"via\": \"stdin\"},"
		  "\"key\": {\"type\": \"secret\", \"optional\": true, \"via\": \"stdin\"},"
		  "\"hmac_key\": {\"type\": \"secret\", \"optional\": true, \"via\": \"stdin\"}},"
		  "\"effects\": true, \"idempotent\": false, \"timeout_s\": 30, "
		  "\"max_output_bytes\": 65536,"
		  "\"concurrency\": 1, \"run_as\": \"root\", \"network\": true}");

	assert_int_equal(v->params, 6);
	assert_string_equal(v->param[0].name, "username");
	assert_true(v->param[3].secret && v->param[5].secret);
	assert_int_equal(v->param[3].max, 128);
	assert_true(v->effects && v->network);
	verb_free(v);
}

static void write_text(const char *path, const char *text, mode_t mode)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(path, mode), 0);
}

static void test_load_folder(void **state UNUSED)
{
	char dir[] = "/tmp/viw-verbs-XXXXXX", path[128];
	struct verbs_faults faults = {0};
	struct verbs *vs = NULL;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/b.json", dir);
	write_text(path, "{\"verb\":\"beta\",\"exec\":\"/x\"}", 0644);
	assert_int_equal(verbs_load(dir, VERBS_TRUST_ANY, false, &vs, &faults), 0);
	assert_non_null(verbs_find(vs, "beta"));
	assert_true(verbs_find(vs, "ECHO")->local);
	assert_true(verbs_find(vs, "tail_logs")->builtin);
	assert_null(verbs_find(vs, "gamma"));
	verbs_free(vs);
	/* A second file of the same verb, or of a built-in one, is a fault; the first stays. */
	snprintf(path, sizeof path, "%s/c.json", dir);
	write_text(path, "{\"verb\":\"beta\",\"exec\":\"/y\"}", 0644);
	snprintf(path, sizeof path, "%s/d.json", dir);
	write_text(path, "{\"verb\":\"ECHO\",\"exec\":\"/y\"}", 0644);
	assert_int_equal(verbs_load(dir, VERBS_TRUST_ANY, false, &vs, &faults), -EINVAL);
	assert_null(vs);
	assert_int_equal(faults.n, 2);
	verbs_faults_fini(&faults);
	assert_int_equal(verbs_load(dir, VERBS_TRUST_ANY, true, &vs, &faults), -EINVAL);
	assert_string_equal(verbs_find(vs, "beta")->exec, "/x");
	assert_true(verbs_find(vs, "ECHO")->local);
	verbs_free(vs);
	verbs_faults_fini(&faults);
	for (const char *f = "bcd"; *f; f++) {
		snprintf(path, sizeof path, "%s/%c.json", dir, *f);
		unlink(path);
	}
	rmdir(dir);
}

static void test_trust_check_path(void **state UNUSED)
{
	char msg[256];

	if (geteuid() != 0)
		skip();
	assert_int_equal(trust_check_path("/usr/bin/env", TRUST_EXECUTABLE, msg, sizeof msg), 0);
	assert_int_equal(trust_check_path("/usr/bin", TRUST_DIR, msg, sizeof msg), 0);
	assert_int_equal(trust_check_path("/usr/bin", TRUST_FILE, msg, sizeof msg), -EACCES);
	assert_int_equal(trust_check_path("/usr/../usr/bin/env", TRUST_FILE, msg, sizeof msg),
			 -EACCES);
	assert_int_equal(trust_check_path("/usr//bin/env", TRUST_FILE, msg, sizeof msg), -EACCES);
	assert_int_equal(trust_check_path("usr/bin/env", TRUST_FILE, msg, sizeof msg), -EACCES);
	assert_int_equal(trust_check_path("/usr/bin/no-such", TRUST_FILE, msg, sizeof msg),
			 -ENOENT);
	assert_int_equal(trust_check_path("/etc/passwd", TRUST_EXECUTABLE, msg, sizeof msg),
			 -EACCES);
	/* World-writable, even with the sticky bit. */
	assert_int_equal(trust_check_path("/tmp", TRUST_DIR, msg, sizeof msg), -EACCES);
}

/* ---- redaction ---- */

static void test_secret_names(void **state UNUSED)
{
	static const char *const secret[] = {"password", "userpass",
					     "PASSWD",	 "client_secret",
					     "token",	 "psk",
					     "key",	 "hmac_key",
					     "KEY",	 "public_key_password",
					     "monkey",	 "api_key_public_key"};
	static const char *const open[] = {"username",	    "public_key", "PUBLIC_KEY",
					   "my_public_key", "source_ip",  ""};

	for (size_t i = 0; i < ARRAY_LEN(secret); i++)
		assert_true(verb_name_is_secret(secret[i], strlen(secret[i])));
	for (size_t i = 0; i < ARRAY_LEN(open); i++)
		assert_false(verb_name_is_secret(open[i], strlen(open[i])));
}

static void test_redact_params(void **state UNUSED)
{
	static const struct {
		const char *in, *out;
	} cases[] = {
	    {"{}", "{}"},
	    {"{\"a\":1,\"b\":\"x\\\"y\",\"c\":null,\"d\":[1,\"z\"]}",
	     "{\"a\":1,\"b\":\"x\\\"y\",\"c\":null,\"d\":[1,\"z\"]}"},
	    {"{\"userpass\":\"abcd\"}", "{\"userpass\":\"***\"}"},
	    {"{\"p\\u0061ssword\":\"abcd\"}", "{\"password\":\"***\"}"},
	    {"{\"x\":{\"deep\":[{\"token\":{\"a\":1}}]}}",
	     "{\"x\":{\"deep\":[{\"token\":\"***\"}]}}"},
	    {"{\"public_key\":\"abcd\",\"key\":7}", "{\"public_key\":\"abcd\",\"key\":\"***\"}"},
	};

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct buf out;
		bool masked;
		buf_init(&out, 4096);
		assert_int_equal(redact_params(NULL, span_of(cases[i].in), &out, &masked), 0);
		assert_string_equal(out.data, cases[i].out);
		assert_int_equal(masked, strstr(out.data, "***") != NULL);
		buf_fini(&out);
	}
}

static void expect_text(const struct secret_set *s, const char *in, const char *want)
{
	struct buf out, twice;

	buf_init(&out, 65536);
	buf_init(&twice, 65536);
	assert_int_equal(redact_text(s, in, strlen(in), &out), 0);
	assert_string_equal(out.data ? out.data : "", want);
	/* Masking what is masked changes nothing. */
	assert_int_equal(redact_text(s, out.data ? out.data : "", out.len, &twice), 0);
	assert_string_equal(twice.data ? twice.data : "", want);
	buf_fini(&out);
	buf_fini(&twice);
}

static void test_redact_text_patterns(void **state UNUSED)
{
	expect_text(NULL, "", "");
	expect_text(NULL, "nothing here", "nothing here");
	expect_text(NULL, "password=hunter2 next", "password=*** next");
	expect_text(NULL, "userPASSWORD = \"two words\" x", "userPASSWORD = \"***\" x");
	expect_text(NULL, "{\"token\": \"abc\\\"d\", \"a\":1}", "{\"token\": \"***\", \"a\":1}");
	expect_text(NULL, "client_secret=a,b;c&d\ne", "client_secret=***\ne");
	expect_text(NULL, "Authorization: Bearer abc def\nX: y", "Authorization: ***\nX: y");
	expect_text(NULL, "PrivateKey = aGVsbG8=\nPresharedKey=Zm9v x",
		    "PrivateKey = ***\nPresharedKey=*** x");
	expect_text(NULL,
		    "a\n-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nb",
		    "a\n***\nb");
	expect_text(NULL, "-----BEGIN PRIVATE KEY-----\nMII never ends", "***");
	expect_text(NULL, "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
		    "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----");
	/* Within JSON the document stays whole. */
	expect_text(NULL, "{\"m\":\"two password=abc\",\"n\":1}",
		    "{\"m\":\"two password=***\",\"n\":1}");
	expect_text(NULL, "[\"Authorization: Basic x\"]", "[\"Authorization: ***\"]");
	expect_text(NULL,
		    "{\"k\":\"-----BEGIN PRIVATE KEY-----\\nMII\\n-----END PRIVATE KEY-----\\n\"}",
		    "{\"k\":\"***\\n\"}");
	expect_text(NULL, "the password is known", "the password is known");
}

static void test_redact_text_values(void **state UNUSED)
{
	struct secret_set s;

	assert_int_equal(
	    secret_set_from_params(NULL,
				   SPAN("{\"userpass\":\"abcd\",\"key\":[\"cdef\",{\"a\":12345}],"
					"\"name\":\"bob\",\"psk\":\"abc\"}"),
				   &s),
	    0);
	assert_int_equal(s.n, 3); /* "abc" is shorter than 4 bytes */
	expect_text(&s, "xabcdx", "x***x");
	expect_text(&s, "abcdef", "***"); /* overlapping secrets leave nothing */
	expect_text(&s, "abcabcd 12345 bob", "abc*** *** bob");
	secret_set_fini(&s);
}

static void test_redact_text_time_is_linear(void **state UNUSED)
{
	static const char *const units[] = {
	    "token=",	   "Authorization:", "-----BEGIN PRIVATE KEY",
	    "password \"", "secret='",	     "PrivateKey:",
	    "aaaa",	   "-----BEGIN "};
	struct secret_set s;
	size_t cap = 1 << 20;
	char *text = malloc(cap);

	assert_non_null(text);
	assert_int_equal(
	    secret_set_from_params(
		NULL, SPAN("{\"key\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"), &s),
	    0);
	for (size_t u = 0; u < ARRAY_LEN(units); u++) {
		struct buf out;
		size_t len = strlen(units[u]), n = 0;
		for (; n + len <= cap; n += len)
			memcpy(text + n, units[u], len);
		buf_init(&out, 8 * cap);
		/* Quadratic work on a MiB would hit the time limit of the test run. */
		assert_int_equal(redact_text(&s, text, n, &out), 0);
		buf_fini(&out);
	}
	secret_set_fini(&s);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_param_types_take_and_refuse),
	    cmocka_unit_test(test_args_message_never_shows_a_value),
	    cmocka_unit_test(test_args_unknown_missing_and_twice),
	    cmocka_unit_test(test_digest_depends_on_values_not_on_writing),
	    cmocka_unit_test(test_manifest_faults_name_their_key),
	    cmocka_unit_test(test_manifest_gathers_every_fault),
	    cmocka_unit_test(test_manifest_of_the_contract),
	    cmocka_unit_test(test_load_folder),
	    cmocka_unit_test(test_trust_check_path),
	    cmocka_unit_test(test_secret_names),
	    cmocka_unit_test(test_redact_params),
	    cmocka_unit_test(test_redact_text_patterns),
	    cmocka_unit_test(test_redact_text_values),
	    cmocka_unit_test(test_redact_text_time_is_linear),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
