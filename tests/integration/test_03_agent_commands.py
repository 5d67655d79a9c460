"""03 command, the agent's side: real host-helper, a bridge made of python websockets.

Every verb with effects writes `start <correlation_id>` to a ledger outside the system.
"""
import json
import subprocess
import threading
import time
import uuid

import pytest

import peers
import viwtest
from helperlib import END, KEY, MARK, Helper
from test_01_agent_uplink import bare, bridge, tls_env  # noqa: F401 (fixtures)
from viwtest import wait_for



class Site:
    """One agent, its helper, its bridge."""

    def __init__(self, start, tmp, root, bridge):
        self.start_program, self.tmp = start, tmp
        self.helper = Helper(start, root)
        self.bridge = bridge
        self.agent = None
        self.helper.verb("make", MARK + 'echo "made $1"; exit "$2"\n' , ["{name}", "{rc}"],
                         {"name": {"type": "username"}, "rc": {"type": "int", "min": 0, "max": 255, "default": 0}})
        self.helper.verb("slow", MARK + 'while [ ! -e "$1" ]; do sleep 0.05; done\n' + END + "echo slept\n", ["{go}"],
                         {"go": {"type": "text", "max": 100}}, timeout_s=60, concurrency=8)
        self.helper.verb("look", MARK + "echo seen\n", effects=False)
        self.helper.verb("flood", "head -c 60000 /dev/zero | tr '\\0' x\n", effects=False)

    def go(self, **env):
        opts = {"VIW_AGENT_HELPER_SOCKET": self.helper.socket, "VIW_AGENT_HELPER_SECRET": KEY,
                "VIW_AGENT_FEATURE_EXEC_ENABLE": "true", "VIW_AGENT_TELEMETRY_INTERVAL_S": 3600}
        opts.update(env)
        self.agent = self.start_program("gateway-agent", env=peers.agent_env(
            self.tmp, f"ws://127.0.0.1:{self.bridge.port}/agent/ws", **opts))
        return self

    def command(self, verb, args=None, **kw):
        return self.bridge.command("gw-1", verb, args, **kw)

    def ready(self, n=1):
        return self.bridge.wait_frame("TELEMETRY", n=n, timeout=15)


@pytest.fixture
def site(start, tmp, root_dir, bridge):
    return Site(start, tmp, root_dir, bridge())


def test_verbs_run_through_the_helper(site):
    site.helper.start()
    site.go()
    hello = site.bridge.wait_frame("HELLO")
    assert {"ECHO", "shutdown", "make", "look", "get_system_health"} <= set(hello["supported_verbs"])
    assert hello["journal_id"]
    site.ready()
    cid = site.command("make", {"name": "bob", "rc": 3})
    r = site.bridge.result(cid)
    assert (r["status"], r["rc"], r["stdout"], r["command"]) == ("success", 3, "made bob\n", "make")
    assert r["started_at"] <= r["finished_at"] and r["duration_ms"] >= 0
    assert site.bridge.wait_frame("COMMAND_ACK", correlation_id=cid)
    assert site.helper.starts(cid) == 1
    health = site.bridge.result(site.command("get_system_health"))
    assert health["status"] == "success" and json.loads(health["stdout"])["status"] in ("ok", "warn", "critical")


def test_more_verbs_than_hello_takes_all_run(site):
    """The bridge's limit of supported_verbs is 512 (docs/protocol.md): a longer HELLO would never be welcomed."""
    for i in range(530):
        site.helper.verb(f"verb{i}", "echo it\n" if i == 0 else None, effects=False)
    for i in range(1, 530):
        (site.helper.scripts / f"verb{i}.sh").hardlink_to(site.helper.scripts / "verb0.sh")
    site.helper.start()
    site.go()
    hello = site.bridge.wait_frame("HELLO")
    site.ready()
    assert len(hello["supported_verbs"]) == len(set(hello["supported_verbs"])) == 512
    for i in range(0, 530, 20):
        assert site.bridge.result(site.command(f"verb{i}"))["stdout"] == "it\n"


def test_refusals_are_early_and_friendly(site):
    site.helper.start()
    site.go(VIW_AGENT_ALLOWED_VERBS="make,look,ECHO")
    site.ready()
    for verb, args, code, word in (("make", {"name": "-rf"}, "bad_args", "name"), ("make", {}, "bad_args", "name"),
                                   ("make", {"name": "bob", "x": 1}, "bad_args", "x"),
                                   ("slow", {"go": "x"}, "verb_not_allowed", "ALLOWED_VERBS"),
                                   ("get_system_health", {}, "verb_not_allowed", "ALLOWED_VERBS")):
        cid = site.command(verb, args)
        r = site.bridge.result(cid)
        assert r["status"] == "error" and r["error"]["code"] == code and word in r["error"]["msg"], r
        line = site.agent.wait_log("command_finished", correlation_id=cid)
        assert line["error"] == code and line["msg"] == f"error: {r['error']['msg']}", "the log says why, too"
    assert site.helper.ledger_lines() == []


def test_exec_off_refuses_all_but_read_only(site):
    site.helper.start()
    site.go(VIW_AGENT_FEATURE_EXEC_ENABLE="false")
    assert "make" not in site.bridge.wait_frame("HELLO")["supported_verbs"]
    site.ready()
    r = site.bridge.result(site.command("make", {"name": "bob"}))
    assert r["error"]["code"] == "verb_not_allowed" and "FEATURE_EXEC_ENABLE" in r["error"]["msg"]
    r = site.bridge.result(site.command("shutdown"))
    assert r["status"] == "error" and site.agent.alive
    assert site.bridge.result(site.command("look"))["stdout"] == "seen\n"


def test_several_in_flight_and_the_limit(site):
    site.helper.start()
    site.go(VIW_AGENT_MAX_CONCURRENCY="2")
    site.ready()
    go = site.helper.root / "go"
    cids = [site.command("slow", {"go": str(go)}) for _ in range(4)]
    wait_for(lambda: len(site.helper.ledger_lines()) >= 2, 5)
    assert site.bridge.result(site.command("ECHO", {"message": "between"}))["stdout"] == "between"
    assert len(site.helper.ledger_lines()) == 2
    go.write_text("")
    for cid in cids:
        assert site.bridge.result(cid)["stdout"] == "slept\n"
        assert site.helper.starts(cid) == 1


def test_result_is_repeated_until_acknowledged(site):
    site.helper.start()
    site.bridge.ack = False
    site.go()
    site.ready()
    cid = site.command("make", {"name": "bob"})
    site.bridge.result(cid)
    site.bridge.hang_up(1001)
    again = site.bridge.result(cid, n=2, timeout=15)
    assert again["stdout"] == "made bob\n"
    site.bridge.drop()
    site.bridge.ack = True
    site.bridge.result(cid, n=3, timeout=15)
    site.bridge.hang_up(1001)
    site.bridge.wait_frame("HELLO", n=4, timeout=15)
    assert site.bridge.result(site.command("ECHO", {"message": "x"}))
    assert len([f for c in site.bridge.conns for f in c.of("RESULT") if f["correlation_id"] == cid]) == 3
    assert site.helper.starts(cid) == 1


def test_restarted_agent_learns_the_outcome_from_the_helper(site):
    """Killed after the script ran, before RESULT: the same id asked again gives the stored outcome."""
    site.helper.start()
    site.go()
    site.ready()
    go = site.helper.root / "go"
    cid = site.command("slow", {"go": str(go)})
    wait_for(lambda: site.helper.starts(cid) == 1, 5)
    site.agent.kill()
    go.write_text("")
    wait_for(lambda: any(line == f"end {cid}" for line in site.helper.ledger_lines()), 5)
    site.go()
    site.ready(n=2)
    site.command("slow", {"go": str(go)}, cid=cid)
    r = site.bridge.result(cid)
    assert r["status"] == "success" and r["stdout"] == "slept\n"
    assert site.helper.starts(cid) == 1


def test_restarted_agent_answers_a_cancel_truthfully(site):
    site.helper.start()
    site.go()
    site.ready()
    done = site.command("make", {"name": "bob", "rc": 4})
    site.bridge.result(done)
    site.agent.kill()
    site.go()
    site.ready(n=2)
    site.bridge.cancel(done, "expired")
    r = site.bridge.result(done, n=2)
    assert (r["status"], r["rc"], r["stdout"]) == ("success", 4, "made bob\n")
    never = str(uuid.uuid4())
    site.bridge.cancel(never, "expired")
    assert site.bridge.result(never)["status"] == "expired"
    site.command("make", {"name": "eve"}, cid=never)  # void is for ever
    r = site.bridge.result(never, n=2)
    assert r["status"] in ("expired", "cancelled") and site.helper.starts(never) == 0


def test_helper_killed_while_a_command_runs(site):
    """The run outlives its helper; the outcome comes from the journal of the next one."""
    site.helper.start()
    site.go()
    site.ready()
    go = site.helper.root / "go"
    cid = site.command("slow", {"go": str(go)})
    wait_for(lambda: site.helper.starts(cid) == 1, 5)
    site.helper.kill()
    site.agent.wait_log("helper_down")
    r = site.bridge.result(site.command("look"))
    assert r["error"]["code"] == "helper_unreachable"
    go.write_text("")
    site.helper.start()
    r = site.bridge.result(cid, timeout=20)
    assert r["status"] == "success" and r["stdout"] == "slept\n"
    assert site.helper.starts(cid) == 1


def test_helper_down_holds_effects_and_says_so(site):
    site.go(VIW_AGENT_TELEMETRY_INTERVAL_S=1)
    assert site.ready()["metrics"]["helper"] == "down"
    held = site.command("make", {"name": "bob"})
    short = site.command("make", {"name": "eve"}, ttl_ms=500)
    over = time.monotonic() + 0.7
    assert site.bridge.result(site.command("get_system_health"))["error"]["code"] == "helper_unreachable"
    assert site.bridge.result(site.command("ECHO", {"message": "e"}))["stdout"] == "e"
    site.bridge.wait_frame("TELEMETRY", n=3)
    time.sleep(max(0, over - time.monotonic()))
    assert not [f for c in site.bridge.conns for f in c.of("RESULT") if f["correlation_id"] in (held, short)]
    assert len(site.agent.find_logs("command_held", correlation_id=held)) == 1, "who waits for what is in the log, once"
    site.helper.start()
    # its journal became known: the agent dials anew, the bridge offers again
    c = site.bridge.wait_conn(2, timeout=15)
    assert site.bridge.wait_frame("HELLO", conn=c)["journal_id"]
    assert site.bridge.result(held, timeout=15)["stdout"] == "made bob\n"
    assert site.bridge.result(short, timeout=15)["status"] == "expired"
    assert site.helper.starts(held) == 1 and site.helper.starts(short) == 0
    wait_for(lambda: any(f["metrics"]["helper"] == "up" for f in c.of("TELEMETRY")), 10)


def test_a_new_helper_secret_loses_no_answer(site, tmp):
    """Agent first, helper later: what the old connection was asked is asked again on the new one."""
    new, conf = "fedcba9876543210fedcba9876543210", tmp / "agent.toml"
    secret = viwtest.write_secret(tmp / "helper.secret", KEY)
    conf.write_text(f'helper_secret_file = "{secret}"\nmax_concurrency = 1\n')
    site.helper.start()
    site.go(VIW_AGENT_HELPER_SECRET=None, AGENT_CONFIG=conf, VIW_AGENT_TELEMETRY_INTERVAL_S="1")
    site.ready()
    running = site.command("slow", {"go": str(site.helper.root / "go")})
    wait_for(lambda: site.helper.starts(running) == 1, 5)
    behind = site.command("make", {"name": "bob"})
    viwtest.write_secret(tmp / "next", new)
    (tmp / "next").rename(secret)
    site.agent.wait_log("reloaded")
    site.agent.wait_log("helper_down")
    site.helper.kill()
    viwtest.write_secret(site.helper.root / "next", new)
    (site.helper.root / "next").rename(site.helper.secret)
    site.helper.start()
    (site.helper.root / "go").write_text("")
    assert site.bridge.result(running, timeout=15)["stdout"] == "slept\n"
    assert site.bridge.result(behind, timeout=15)["stdout"] == "made bob\n"
    assert site.helper.starts(running) == 1 and site.helper.starts(behind) == 1
    seen = len(site.bridge.conns[-1].of("TELEMETRY"))
    assert site.bridge.wait_frame("TELEMETRY", n=seen + 2, conn=site.bridge.conns[-1])["metrics"]["helper"] == "up"


def test_patience_ends(site, start, tmp, bare, bridge, pki):
    """What is silent is given up: a frozen helper after 15 s, a backend that accepts but says nothing
    (no HTTP answer, no TLS answer, no HELLO_ACK) after 15 s. All at once, since it takes so long."""
    hole, mute = bare(lambda server, conn: time.sleep(40)), bridge()
    mute.silent = True
    site.helper.start()
    site.go()
    site.ready()
    site.helper.proc.freeze()
    t = time.monotonic()
    cid = site.command("look")
    agents = [start("gateway-agent", env=env) for env in (
        peers.agent_env(tmp, f"ws://127.0.0.1:{hole.port}/agent/ws", agent_id="gw-a"),
        tls_env(tmp, pki, hole.port, host="127.0.0.1", VIW_AGENT_ID="gw-b"),
        peers.agent_env(tmp, f"ws://127.0.0.1:{mute.port}/agent/ws", agent_id="gw-c"))]
    for p in agents:
        p.wait_log("disconnected", timeout=25, error="timeout")
        assert 14 <= time.monotonic() - t <= 18
    assert mute.conns[0].frames == [], "nothing is sent before HELLO_ACK"
    r = site.bridge.result(cid, timeout=10)
    assert r["error"]["code"] in ("helper_unreachable", "timeout")
    assert time.monotonic() - t < 22
    site.helper.proc.thaw()
    wait_for(lambda: site.bridge.result(site.command("look"))["status"] == "success", 15)


def test_cancel_before_during_and_after(site):
    site.helper.start()
    site.go(VIW_AGENT_MAX_CONCURRENCY="1")
    site.ready()
    go = site.helper.root / "go"
    running = site.command("slow", {"go": str(go)})
    waiting = site.command("make", {"name": "bob"})
    wait_for(lambda: site.helper.starts(running) == 1, 5)
    site.bridge.cancel(waiting)
    assert site.bridge.result(waiting)["status"] == "cancelled"
    site.bridge.cancel(running)
    go.write_text("")
    assert site.bridge.result(running)["status"] == "success"
    site.bridge.cancel(running)
    assert site.bridge.result(running, n=2)["status"] == "success"
    assert site.helper.starts(waiting) == 0


def test_shutdown_stops_after_its_result_is_acknowledged(site):
    site.helper.start()
    site.bridge.ack = False
    site.go()
    site.ready()
    cid = site.command("shutdown")
    assert site.bridge.result(cid)["status"] == "success"
    site.bridge.hang_up(1001)
    site.bridge.result(cid, n=2, timeout=15)
    assert site.agent.alive, "not acknowledged yet"
    site.bridge.send({"type": "RESULT_ACK", "correlation_id": cid})
    assert site.agent.wait_exit() == 0


def test_who_asks_on_the_host_may_leave_and_ask_again(site):
    port, go = viwtest.free_port(), site.helper.root / "go"
    site.helper.start()
    site.go(VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}", VIW_AGENT_LOCAL_TOKEN="t0ken")
    site.ready()

    def execute(verb, params, cid=None, patience=10):
        body = {"command": verb, "params": params, **({"correlation_id": cid} if cid else {})}
        done = subprocess.run(["curl", "-s", "-m", str(patience), "-H", "Authorization: Bearer t0ken",
                               f"http://127.0.0.1:{port}/execute", "-d", json.dumps(body)], stdout=subprocess.PIPE, text=True)
        return done.returncode, done.stdout
    assert execute("slow", {"go": str(go)}, "l-1", patience=1) == (28, ""), "curl had enough"
    assert json.loads(execute("slow", {"go": str(go)}, "l-1")[1])["error"]["code"] == "duplicate", "it is under way"
    go.write_text("")
    wait_for(lambda: "end l-1" in site.helper.ledger_lines(), 5)
    site.agent.wait_log("command_finished", correlation_id="l-1")
    assert json.loads(execute("slow", {"go": str(go)}, "l-1")[1])["stdout"] == "slept\n" and site.helper.starts("l-1") == 1
    assert json.loads(execute("ECHO", ["x"])[1])["error"]["code"] == "bad_field"
    go.unlink()
    waits = threading.Thread(target=execute, args=("slow", {"go": str(go)}, "l-2"))
    waits.start()
    wait_for(lambda: site.helper.starts("l-2") == 1, 5)
    assert site.agent.stop() == 0, "it stops all the same, and leaks nothing"
    waits.join(10)
    go.write_text("")


def test_shutdown_given_on_the_host_stops_it_too(site):
    port = viwtest.free_port()
    site.go(VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}", VIW_AGENT_LOCAL_TOKEN="t0ken",
            VIW_AGENT_HELPER_SECRET=None)
    site.ready()
    done = subprocess.run(["curl", "-s", "-m", "5", "-H", "Authorization: Bearer t0ken", f"http://127.0.0.1:{port}/execute",
                           "-d", '{"command": "shutdown"}'], stdout=subprocess.PIPE, text=True)
    assert json.loads(done.stdout)["status"] == "success"
    assert site.agent.wait_exit(5) == 0


def test_output_is_cut_to_the_bridges_frame(site):
    site.bridge.hello_ack = {"max_frame_bytes": 8192}
    site.helper.start()
    site.go()
    site.ready()
    r = site.bridge.result(site.command("flood"))
    assert r["truncated"]["stdout"] is True and 1000 < len(r["stdout"]) < 8192


def test_wrong_helper_secret_is_said(site):
    site.helper.start()
    site.go(VIW_AGENT_HELPER_SECRET="not-the-helpers-key-0123456789")
    site.agent.wait_log("helper_down")
    assert site.ready()["metrics"]["helper"] == "down"
    assert "0123456789" not in site.agent.text


def test_host_figures_and_services_come_from_the_helper(site):
    site.helper.start()
    site.go(VIW_AGENT_SERVICES="ssh,redis=redis-server,none=no-such-unit")
    m = site.ready()["metrics"]
    assert m["helper"] == "up"
    assert set(m["services"]) == {"ssh", "redis", "none"}
    assert set(m["services"].values()) <= {"running", "stopped", "failed", "unknown"}
    assert 0 <= m["mem_pct"] <= 100 and m["disk_total_bytes"] > 0 and m["agent"]["rss_bytes"] > 0


def counted(helper, record):
    """What the helper's own log says of the records a summary covers."""
    counts = {}
    for line in (helper.state / "audit.log").read_text().splitlines():
        r = json.loads(line)
        if r["event"] == "request" and record["from_seq"] < r["seq"] <= record["seq"]:
            name = r["verb"] if r.get("op", "run") == "run" else r["op"]
            outcome = "failed" if r["code"] == "ok" and r.get("rc") else r["code"]
            counts.setdefault(name, {}).setdefault(outcome, 0)
            counts[name][outcome] += 1
    return counts


def test_a_helper_that_gives_no_host_figures_is_said_once(site):
    """`services` takes no word that begins with a dash; the settings of the agent do not know that."""
    site.helper.start()
    site.go(VIW_AGENT_SERVICES="-x", VIW_AGENT_TELEMETRY_INTERVAL_S="1")
    m = site.bridge.wait_frame("TELEMETRY", n=3)["metrics"]
    assert m["helper"] == "up" and m["services"] == {"-x": "unknown"} and m["mem_pct"] > 0, "its own figures instead"
    lines = site.agent.find_logs("no_host_figures")
    assert len(lines) == 1 and lines[0]["error"] == "bad_args" and "services" in lines[0]["msg"]


def test_audit_summaries_leave_the_host(site):
    """Counts by verb and outcome, and a checkpoint that `audit verify` accepts; what a lost connection may
    have taken with it is told again, from the same record on."""
    site.helper.start()
    site.go()
    site.ready()
    first = site.bridge.wait_frame("AUDIT", timeout=20)["record"]
    assert first["counts"] == counted(site.helper, first)
    for args in ({"name": "bob"}, {"name": "bob", "rc": 3}, {"name": "eve", "rc": 4}):
        site.bridge.result(site.command("make", args))
    site.bridge.cancel(never := str(uuid.uuid4()))
    site.bridge.result(never)
    site.bridge.hang_up(1001)
    record = site.bridge.wait_frame("AUDIT", conn=site.bridge.wait_conn(2, timeout=15), timeout=20)["record"]
    while record["counts"].get("make") is None:  # the helper is asked every 15 s
        site.bridge.hang_up(1001)
        n = len(site.bridge.conns) + 1
        record = site.bridge.wait_frame("AUDIT", conn=site.bridge.wait_conn(n, timeout=15), timeout=20)["record"]
    assert record["from_seq"] == first["from_seq"] and record["seq"] > first["seq"]
    assert record["counts"]["make"] == {"ok": 1, "failed": 2} and record["counts"]["void"] == {"ok": 1}
    assert record["counts"] == counted(site.helper, record)
    site.helper.stop()
    done = subprocess.run([viwtest.BIN / "host-helper", "audit", "verify", f"{record['seq']}:{record['hash']}"],
                          env={k: str(v) for k, v in site.helper.env.items()}, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "unbroken" in done.stdout, done.stdout + done.stderr


def test_no_secret_is_logged_or_left_on_disk(site):
    site.helper.verb("secretive", 'read -r pass; echo "got $pass"\n', [], {
        "password": {"type": "secret", "via": "stdin", "max": 64}})
    site.helper.start()
    site.go(VIW_AGENT_LOG_LEVEL="debug")
    site.ready()
    r = site.bridge.result(site.command("secretive", {"password": "hunter2-very-secret"}))
    assert r["status"] == "success" and "hunter2" not in r["stdout"]
    site.agent.stop()
    assert "hunter2" not in site.agent.text and KEY not in site.agent.text
    for f in (site.tmp / "state-gw-1").iterdir():
        assert "hunter2" not in f.read_text() and KEY not in f.read_text()
