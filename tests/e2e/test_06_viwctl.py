"""viwctl as an operator types it, against the real chain; certificates judged by openssl."""
import json
import os
import re
import shutil
import subprocess
import threading

import pytest
import viwtest


class Hand:
    """A hand-made agent that answers each COMMAND from a table verb -> (status, rc, stdout)."""

    def __init__(self, chain, connect, agent_id, answers, **hello):
        self.ws = connect(chain.ws_url, headers=chain.headers(agent_id))
        self.ws.hello(agent_id, **hello)
        self.agent_id, self.answers, self.seen = agent_id, answers, []
        self.stopping = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopping:
            try:
                frame = self.ws.recv(0.2)
            except AssertionError:
                continue
            except Exception:
                return
            if frame["type"] not in ("COMMAND", "CANCEL"):
                continue
            self.seen.append(frame)
            head = {"agent_id": self.agent_id, "correlation_id": frame["correlation_id"]}
            if frame["type"] == "CANCEL":
                self.ws.send({"type": "RESULT", **head, "status": "cancelled"})
                continue
            answer = self.answers.get(frame["verb"])
            if callable(answer):
                answer = answer(frame)
            if answer:
                self.ws.send({"type": "COMMAND_ACK", **head})
                result = {"status": answer[0], "rc": answer[1], "stdout": answer[2], "command": frame["verb"]}
                self.ws.send({"type": "RESULT", **head, **{k: v for k, v in result.items() if v is not None}})

    def stop(self):
        self.stopping = True
        self.thread.join(5)


@pytest.fixture
def hand(chain, connect):
    made = []

    def go(agent_id, answers, **hello):
        made.append(Hand(chain, connect, agent_id, answers, **hello))
        chain.pg.wait_row("SELECT 1 FROM os_gateways WHERE agent_id = %s AND status = 'online'", agent_id)
        return made[-1]
    yield go
    for h in made:
        h.stop()


def test_words_and_usage(ctl):
    done = ctl("help")
    assert done.returncode == 0 and "gateways" in done.stdout and "enroll" in done.stdout
    done = ctl("gatewyas")
    assert done.returncode == 64 and "'gatewyas' is not a word" in done.stderr
    done = ctl("gateways", env={"VIWCTL_DATABASE_URL": ""})
    assert done.returncode == 69 and "VIWCTL_DATABASE_URL" in done.stderr
    done = ctl("gateways", env={"VIWCTL_REDIS_URL": "http://x"})
    assert done.returncode == 78 and "VIWCTL_REDIS_URL" in done.stderr


def test_send_waits_prints_and_exits_with_the_commands_rc(ctl, hand):
    hand("gw-1", {"ECHO": ("success", 0, "hello"), "list_users": ("success", 7, "no"),
                  "get_system_health": ("unknown", None, None)})
    done = ctl("send", "gw-1", "ECHO", "message=hello", "--wait")
    assert done.returncode == 0, done.stderr
    assert "status              done" in done.stdout and "hello" in done.stdout
    assert "queued" in done.stderr or "done" in done.stderr
    done = ctl("send", "gw-1", "list_users", "--wait", "--json")
    assert done.returncode == 7
    row = json.loads(done.stdout)
    assert (row["status"], row["rc"], row["agent_id"]) == ("failed", 7, "gw-1")
    shown = ctl("command", row["correlation_id"], "--json")
    assert json.loads(shown.stdout)["status"] == "failed"
    done = ctl("send", "gw-1", "get_system_health", "--wait")
    assert done.returncode == 113 and re.search(r"^status +unknown$", done.stdout, re.M), done


def test_send_that_expires_is_cancelled_or_rejected_says_so(ctl, hand, chain, redis):
    done = ctl("send", "gw-nobody", "ECHO", "message=x", "--wait", "--ttl", "1")
    assert done.returncode == 110, done.stdout + done.stderr
    sent = ctl("send", "gw-nobody", "ECHO", "message=x", "--ttl", "60")
    cid = sent.stdout.strip()
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s", cid)
    assert ctl("cancel", cid).returncode == 0
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'cancelled'", cid)
    again = ctl("cancel", cid)
    assert again.returncode == 1 and "ended already: cancelled" in again.stderr
    assert ctl("command", "no-such-id").returncode == 1
    redis.client.sadd("viw.decommissioned", "gw-scrapped")
    done = ctl("send", "gw-scrapped", "ECHO", "message=x", "--wait")
    assert done.returncode == 112 and re.search(r"^status +rejected$", done.stdout, re.M), done

    h = hand("gw-slow", {})  # it never answers a COMMAND, and a CANCEL at once

    def cancel():
        viwtest.wait_for(lambda: h.seen, what="it is offered")
        ctl("cancel", "slow-1")
    threading.Thread(target=cancel, daemon=True).start()
    done = ctl("send", "gw-slow", "ECHO", "message=x", "--id", "slow-1", "--ttl", "20", "--wait")
    assert done.returncode == 111 and re.search(r"^status +cancelled$", done.stdout, re.M), done


def test_send_checks_against_manifests_before_anything_is_queued(ctl, redis, root_dir):
    viwtest.write_verb(root_dir / "verbs.d", "add_user", exec="/bin/true", argv=["{username}"],
                       params={"username": {"type": "username"},
                               "userpass": {"type": "secret", "via": "stdin"}})
    env = {"VIWCTL_VERBS_DIR": str(root_dir / "verbs.d")}
    done = ctl("send", "gw-1", "add_user", "username=-rf", "userpass=x12345", env=env)
    assert done.returncode == 64 and "username" in done.stderr
    done = ctl("send", "gw-1", "no_such_verb", env=env)
    assert done.returncode == 64 and "no_such_verb" in done.stderr
    done = ctl("send", "gw-1", "add_user", "username=bob", "userpass=-", "--dry-run", env=env,
               stdin="hunter2-secret\n")
    assert done.returncode == 0 and "***" in done.stdout
    assert "hunter2-secret" not in done.stdout + done.stderr
    done = ctl("send", "gw 1", "ECHO")
    assert done.returncode == 64 and "not an agent id" in done.stderr
    assert redis.client.xlen("viw.commands") == 0


def test_a_fan_out_goes_in_batches_and_stops_at_the_first_failures(ctl, hand):
    for i in range(4):
        hand(f"gw-{i}", {"ECHO": ("success", 0, "ok")}, site="lab")
    hand("gw-9", {"ECHO": ("error", 3, "broken")}, site="lab")
    done = ctl("send", "--site", "lab", "ECHO", "message=x", "--batch", "2", "--json")
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["not_done"], summary["not_sent"]) == (4, 1, 0)
    assert "4 of 5" in done.stderr
    done = ctl("send", "--all", "list_users", "--batch", "2", "--ttl", "1", "--json")
    summary = json.loads(done.stdout)
    assert summary["not_sent"] == 3, "stops after the batch that failed"
    done = ctl("send", "--label", "ring=2", "ECHO", "message=x", "--json")
    assert done.returncode == 1 and "no gateway matches" in done.stderr
    hand("gw-r1", {"list_users": ("error", 1, "")}, labels={"ring": "2"})
    hand("gw-r2", {"list_users": ("success", 0, "")}, labels={"ring": "2"})
    done = ctl("send", "--label", "ring=2", "list_users", "--batch", "1", "--max-failures", "1")
    assert done.returncode == 1 and "1 done, 1 not done, 0 still open, 0 not sent" in done.stdout, done.stdout
    assert "gw-r1" in done.stderr and "2 of 2" in done.stderr


def test_gateways_filters_and_one_in_full(ctl, hand):
    h = hand("gw-a", {}, site="north", labels={"ring": "0"})
    hand("gw-b", {}, site="south")
    h.ws.send({"type": "TELEMETRY", "agent_id": "gw-a", "ts": viwtest.rfc3339(), "seq": 1,
               "metrics": {"cpu_pct": 12.5, "mem_pct": 40}})
    rows = json.loads(ctl("gateways", "--json").stdout)
    assert [r["agent_id"] for r in rows] == ["gw-a", "gw-b"]
    assert [r["agent_id"] for r in json.loads(ctl("gateways", "--label", "ring=0", "--json").stdout)] == ["gw-a"]
    assert [r["agent_id"] for r in json.loads(ctl("gateways", "--site", "south", "--json").stdout)] == ["gw-b"]
    viwtest.wait_for(lambda: json.loads(ctl("gateways", "gw-a", "--json").stdout).get("metrics", {}).get("cpu_pct") == 12.5)
    text = ctl("gateways").stdout
    assert text.splitlines()[0].startswith("AGENT_ID") and "north" in text
    assert ctl("gateways", "gw-z").returncode == 1
    rows = json.loads(ctl("gateways", "--status", "offline", "--json").stdout)
    assert rows == []
    assert ctl("gateways", "--status", "online", "--ids").stdout.split() == ["gw-a", "gw-b"]
    text = ctl("gateways", "--limit", "1").stdout
    assert "gw-a" in text and "gw-b" not in text and "--after gw-a" in text
    assert ctl("gateways", "--after", "gw-a", "--ids").stdout.split() == ["gw-b"]
    assert ctl("gateways", "--ids").stdout.split() == ["gw-a", "gw-b"]


def test_top_shows_gateways_lag_and_rates_and_goes_on_until_a_signal(ctl, hand, chain, redis):
    h = hand("gw-a", {}, site="north")
    h.ws.send({"type": "TELEMETRY", "agent_id": "gw-a", "ts": viwtest.rfc3339(), "seq": 1, "metrics": {"cpu_pct": 12.5}})
    chain.pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-a'")
    text = ctl("top", "--once").stdout
    assert "AGENT_ID" in text and "gw-a" in text and "RATE/S" in text and "online 1" in text
    proc = chain.start("viwctl", args=["top", "--json"], env={
        "VIWCTL_REDIS_URL": redis.url, "VIWCTL_DATABASE_URL": chain.pg.uri})
    viwtest.wait_for(lambda: proc.stdout.count("\n") >= 1, 15, "a look")
    for i in range(30):
        h.ws.send({"type": "TELEMETRY", "agent_id": "gw-a", "ts": viwtest.rfc3339(), "seq": 2 + i, "metrics": {"cpu_pct": 50}})
    viwtest.wait_for(lambda: proc.stdout.count("\n") >= 2, 15, "two looks")
    looks = [json.loads(line) for line in proc.stdout.splitlines()[:2]]
    telemetry = [[s for s in look["streams"] if s["stream"] == "telemetry"][0] for look in looks]
    assert max(t["rate_s"] for t in telemetry) > 1, telemetry
    assert looks[1]["gateways"][0]["agent_id"] == "gw-a" and looks[1]["online"] == 1
    assert proc.stop() == 0


def test_logs_follow_the_cursor(ctl, hand):
    answer = {"lines": [{"ts": "2026-11-20T11:09:00.123Z", "cursor": "c1", "unit": "nginx.service",
                         "pid": 7, "priority": 6, "message": "started\x1b[31m"}],
              "next_cursor": "c1", "gap": True}
    h = hand("gw-1", {"tail_logs": ("success", 0, json.dumps(answer))})
    done = ctl("logs", "gw-1", "--unit", "nginx.service", "-n", "5")
    assert done.returncode == 0, done.stderr
    assert "2026-11-20T11:09:00.123Z nginx.service[7]: started?[31m" in done.stdout
    assert "gap" in done.stderr
    assert h.seen[0]["args"] == {"unit": "nginx.service", "lines": 5}


def test_logs_follow_until_a_signal_and_say_where_lines_may_be_missing(ctl, hand, chain, redis):
    """Each question goes on at the cursor of the answer before; what the journal dropped is said."""
    def tail(frame):
        n = len(h.seen)
        line = {"ts": viwtest.rfc3339(), "cursor": f"c{n}", "unit": "x.service", "pid": 1, "priority": 6, "message": f"line {n}"}
        return "success", 0, json.dumps({"lines": [line] if n <= 3 else [], "next_cursor": f"c{min(n, 3)}", "gap": n == 3})
    h = hand("gw-1", {"tail_logs": tail})
    proc = chain.start("viwctl", args=["logs", "gw-1", "-u", "x.service", "-n", "5", "-f"], env={
        "VIWCTL_REDIS_URL": redis.url, "VIWCTL_DATABASE_URL": chain.pg.uri})
    viwtest.wait_for(lambda: len(h.seen) >= 4, 20, "it goes on asking")
    viwtest.wait_for(lambda: "line 3" in proc.stdout, 5)
    assert [line.split(": ")[1] for line in proc.stdout.splitlines()] == ["line 1", "line 2", "line 3"]
    assert proc.text.count("-- gap") == 1
    assert [f["args"].get("since_cursor") for f in h.seen[:4]] == [None, "c1", "c2", "c3"]
    assert proc.stop() == 0


def test_doctor_names_what_is_wrong_and_what_to_do(ctl, redis, chain):
    viwtest.wait_for(lambda: ctl("doctor", env={"VIWCTL_BRIDGE_URL": chain.http_url}).returncode == 0, 15,
                     "everything is well", every=0.5)
    redis.client.config_set("maxmemory-policy", "allkeys-lru")
    done = ctl("doctor", "--json")
    assert done.returncode == 1
    bad = [c for c in json.loads(done.stdout) if c["grade"] == "bad"]
    assert [c["check"] for c in bad] == ["redis maxmemory-policy"] and "noeviction" in bad[0]["remedy"]
    assert ctl("doctor", env={"VIWCTL_REDIS_URL": "redis://127.0.0.1:1/0"}).returncode == 1


def openssl(*argv):
    return subprocess.run(["openssl", *map(str, argv)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def test_enroll_makes_what_a_site_needs_and_takes_it_back(ctl, tmp, redis):
    assert ctl("enroll", "gw-1").returncode == 1, "no CA yet"
    assert ctl("enroll", "--init-ca").returncode == 0
    assert ctl("enroll", "--init-ca").returncode == 1, "never overwritten"
    secret = viwtest.write_secret(tmp / "shared", "shared-secret-0123456789abcdef")
    done = ctl("enroll", "gw-1", "--backend", "wss://gateway.example.net/agent/ws", "--site", "lab",
               "--shared-secret", secret, "--out", tmp / "gw-1", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    cert = tmp / "gw-1" / "agent.crt"
    ca = tmp / "ca"
    assert openssl("verify", "-purpose", "sslclient", "-CAfile", ca / "ca.crt", cert).returncode == 0
    text = openssl("x509", "-in", cert, "-noout", "-text").stdout
    assert "URI:urn:viworks:agent:gw-1" in text and "TLS Web Client Authentication" in text
    assert openssl("x509", "-in", cert, "-noout", "-fingerprint", "-sha256").stdout.strip().split("=")[1] \
        .replace(":", "").lower() == made["fingerprint"]
    modes = {p.name: oct(os.stat(p).st_mode & 0o777) for p in (tmp / "gw-1").iterdir()}
    assert modes["agent.key"] == modes["shared.secret"] == modes["host_helper.secret"] == "0o400"
    assert oct(os.stat(ca / "ca.key").st_mode & 0o777) == "0o600"
    settings = tmp / "gw-1" / "gateway-agent.toml"
    text = settings.read_text()
    assert 'id = "gw-1"' in text and 'site = "lab"' in text and "shared-secret-" not in text
    settings.write_text(text.replace("/etc/viworks/agent_helper.secret", str(secret)).replace("/etc/viworks/shared.secret", str(secret)))
    assert (tmp / "gw-1" / "trust.crt").read_text() == (ca / "ca.crt").read_text()
    for name in ("agent.crt", "agent.key", "trust.crt"):
        settings.write_text(settings.read_text().replace(f"/etc/viworks/{name}", str(tmp / "gw-1" / name)))
    done = subprocess.run([viwtest.BIN / "gateway-agent", "--config", settings, "--check-config"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert ctl("enroll", "gw-9", "--site", 'x"\nid = "gw-1', "--out", tmp / "gw-9").returncode == 64
    assert subprocess.run(["sh", "-n", tmp / "gw-1" / "install.sh"]).returncode == 0

    done = ctl("enroll", "--revoke", "gw-1")
    assert done.returncode == 0 and done.stdout.startswith("1 certificate revoked; bridges refuse it "), done.stdout
    assert redis.client.smembers("viw.revoked") == {made["fingerprint"]}
    bundle = tmp / "bundle.pem"
    bundle.write_text((ca / "ca.crt").read_text() + (ca / "crl.pem").read_text())
    done = openssl("verify", "-crl_check", "-CAfile", bundle, cert)
    assert done.returncode != 0 and "revoked" in done.stdout
    assert ctl("enroll", "--revoke", "gw-1").returncode == 1, "nothing left to revoke"


def test_revoking_again_tells_a_redis_that_was_away(ctl, tmp, redis):
    assert ctl("enroll", "--init-ca").returncode == 0
    made = json.loads(ctl("enroll", "gw-1", "--out", tmp / "gw-1", "--json").stdout)
    redis.stop()
    done = ctl("enroll", "--revoke", "gw-1")
    assert done.returncode not in (0, 1) and "run this again" in done.stderr
    redis.start()
    done = ctl("enroll", "--revoke", "gw-1")
    assert done.returncode == 0 and done.stdout.startswith("1 certificate revoked"), done
    assert redis.client.smembers("viw.revoked") == {made["fingerprint"]}
    assert ctl("enroll", "--revoke", "gw-1").returncode == 1, "nothing left to revoke"


def test_enroll_makes_the_bridges_certificate(ctl, tmp):
    assert ctl("enroll", "--init-ca").returncode == 0
    for name, option in (("gateway.example.net", "-verify_hostname"), ("192.0.2.7", "-verify_ip"), ("2001:db8::7", "-verify_ip")):
        done = ctl("enroll", "--server", name, "--out", tmp)
        assert done.returncode == 0 and name in done.stdout and "server.key" in done.stdout, done.stderr
        assert openssl("verify", "-purpose", "sslserver", option, name, "-CAfile", tmp / "ca" / "ca.crt",
                       tmp / "server.crt").returncode == 0
        assert openssl("verify", "-purpose", "sslclient", "-CAfile", tmp / "ca" / "ca.crt", tmp / "server.crt").returncode != 0
        assert oct(os.stat(tmp / "server.key").st_mode & 0o777) == "0o400"
        assert openssl("x509", "-in", tmp / "server.crt", "-pubkey", "-noout").stdout == \
            openssl("pkey", "-in", tmp / "server.key", "-pubout").stdout
    for name in ("a,DNS:b", "a b", "-x", "x" * 58, ""):
        done = ctl("enroll", "--server", "--out", tmp, "--", name)
        assert done.returncode == 1 and "neither" in done.stderr, name
    assert ctl("enroll", "--server").returncode == 64


def test_enroll_from_a_request_keeps_the_key_where_it_was_made(ctl, tmp):
    assert ctl("enroll", "--init-ca").returncode == 0
    key, csr = tmp / "k", tmp / "r"
    assert openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", csr, "-subj",
                   "/CN=somebody-else").returncode == 0
    done = ctl("enroll", "gw-2", "--csr", csr, "--out", tmp / "gw-2")
    assert done.returncode == 0, done.stderr
    assert not (tmp / "gw-2" / "agent.key").exists()
    text = openssl("x509", "-in", tmp / "gw-2" / "agent.crt", "-noout", "-text").stdout
    assert re.search("CN ?= ?gw-2", text) and "somebody-else" not in text
    bridge = tmp / "tls"
    done = ctl("enroll", "--server", "gateway.example.net", "--csr", csr, "--out", bridge)
    assert done.returncode == 0 and "server.crt" in done.stdout and "server.key" not in done.stdout, done.stdout + done.stderr
    assert [p.name for p in bridge.iterdir()] == ["server.crt"], "and the folder is made, as that of an agent is"
    assert openssl("verify", "-purpose", "sslserver", "-verify_hostname", "gateway.example.net", "-CAfile", tmp / "ca" / "ca.crt",
                   bridge / "server.crt").returncode == 0
    # A key of an earlier enrolment is not left for install.sh to put over the site's own; the one that fits is.
    assert ctl("enroll", "gw-2", "--out", tmp / "gw-2").returncode == 0
    done = ctl("enroll", "gw-2", "--csr", csr, "--out", tmp / "gw-2")
    assert done.returncode == 0 and "agent.key did not belong" in done.stderr and not (tmp / "gw-2" / "agent.key").exists()
    for kept in (key.read_text(), "no key"):
        (tmp / "gw-2" / "agent.key").write_text(kept)
        done = ctl("enroll", "gw-2", "--csr", csr, "--out", tmp / "gw-2")
        assert done.returncode == 0 and done.stderr == "" and (tmp / "gw-2" / "agent.key").read_text() == kept
    csr.write_text(csr.read_text().replace("MII", "MIJ", 1))
    done = ctl("enroll", "gw-2", "--csr", csr)
    assert done.returncode == 1 and "PKCS#10" in done.stderr


def test_every_word_speaks_json(ctl, hand, chain, root_dir):
    """What stands on stdout parses, line by line, whatever the word."""
    line = {"ts": viwtest.rfc3339(), "cursor": "c", "unit": "x.service", "pid": 1, "priority": 6, "message": "m"}
    hand("gw-1", {"ECHO": ("success", 0, "x"), "tail_logs": ("success", 0, json.dumps({"lines": [line], "next_cursor": "c"}))})
    letters = [chain.pg.query("INSERT INTO dead_letters (stream, entry_id, reason, payload, format) VALUES "
                              "('viw.commands', %s, 'x', %s, 'fields') RETURNING id", f"{i}-1", payload)[0]["id"]
               for i, payload in enumerate([b"*2\r\n$3\r\nkey\r\n$1\r\nv\r\n", b""])]
    assert json.loads(ctl("enroll", "--init-ca", "--json").stdout)["crl"].endswith("crl.pem")
    late = json.loads(ctl("send", "gw-away", "ECHO", "message=x", "--ttl", "300", "--json").stdout)["correlation_id"]
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s", late)
    for words in ("gateways", "gateways --ids", "gateways gw-1", "send gw-1 ECHO message=x --dry-run",
                  "send gw-1 ECHO message=x --wait", "send --all ECHO message=x", f"command {late}", f"cancel {late}",
                  "logs gw-1 --unit x.service", "top --once", "enroll gw-1", "enroll --revoke gw-1", "enroll --renew-crl",
                  "rotation-check --all", "doctor", "lost gw-away --yes", "dead-letters list", f"dead-letters show {letters[0]}",
                  f"dead-letters retry {letters[0]}", f"dead-letters drop {letters[1]}"):
        done = ctl(*words.split(), "--json")
        rows = [json.loads(text) for text in done.stdout.splitlines()]
        assert rows and done.returncode in (0, 1), (words, done)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_it_talks_to_redis_postgresql_and_the_bridge_only(hand, chain, redis, tmp):
    hand("gw-1", {"ECHO": ("success", 0, "x"), "tail_logs": ("success", 0, '{"lines": [], "gap": false}')})
    env = {"PATH": "/usr/bin:/bin", "VIWCTL_REDIS_URL": redis.url, "VIWCTL_DATABASE_URL": chain.pg.uri,
           "VIWCTL_BRIDGE_URL": chain.http_url, "ASAN_OPTIONS": "detect_leaks=0"}  # LeakSanitizer does not bear strace
    known = {f"127.0.0.1:{redis.port}", f"127.0.0.1:{chain.port}", f"{chain.pg.server.dir}/.s.PGSQL.{chain.pg.server.port}"}
    names = ("/var/run/nscd/socket", "/run/systemd/userdb/")  # who the operator is, asked of libc
    met = set()
    for words in ("gateways gw-1", "send gw-1 ECHO message=x --wait", "send --all ECHO message=x", "logs gw-1 -u x.service",
                  "top --once", "rotation-check --all", "doctor", "lost gw-1"):
        done = subprocess.run(["strace", "-f", "-e", "trace=connect", "-o", tmp / "calls", viwtest.BIN / "viwctl", *words.split()],
                              env=env, text=True, cwd=tmp, timeout=40, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode in (0, 1), (words, done.stdout)
        calls = re.findall(r"connect\(\d+, \{(.*?)\}, \d+\)", (tmp / "calls").read_text())
        for call in calls:
            inet = re.search(r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([\d.]+)"\)', call)
            local = re.search(r'sun_path=@?"([^"]*)"', call)
            met.add(f"{inet[2]}:{inet[1]}" if inet else local[1] if local else call)
    assert {m for m in met if not m.startswith(names)} == known


def test_lost_asks_before_it_declares(ctl, chain):
    sent = ctl("send", "gw-gone", "ECHO", "message=x", "--ttl", "600").stdout.strip()
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s", sent)
    done = ctl("lost", "gw-gone")
    assert done.returncode == 1 and "1 open commands" in done.stderr
    assert chain.pg.query("SELECT 1 FROM agent_lost_declarations") == []
    done = ctl("lost", "gw-gone", "--yes")
    assert done.returncode == 0, done.stderr
    chain.pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'unknown'", sent,
                      timeout=20)
