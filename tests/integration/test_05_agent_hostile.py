"""05 privilege: what a bridge that was taken over can make an agent do, and what it cannot.

docs/agent.md says the same in words.
"""
import json
import re
import signal
import threading
import uuid

import pytest

import peers
import viwtest
from test_01_agent_uplink import bare, bridge  # noqa: F401 (fixtures)
from test_03_agent_commands import Site
from test_06_agent_operations import call, run
from viwtest import wait_for

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")  # what a terminal acts on


@pytest.fixture
def site(start, tmp, root_dir, bridge):
    return Site(start, tmp, root_dir, bridge())


def test_a_second_hello_ack_ends_the_connection(bridge, start, tmp):
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("TELEMETRY")
    b.send({"type": "HELLO_ACK", "agent_id": "gw-1", "conn_id": "x", "epoch": 2 ** 62, "server_time": viwtest.rfc3339(),
            "supported": [], "heartbeat_s": 20, "max_frame_bytes": 262144})
    assert "second HELLO_ACK" in p.wait_log("disconnected", error="protocol")["msg"]
    assert len(b.conns[0].of("HELLO")) == 1
    b.wait_frame("HELLO", n=2)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(start, tmp, bare, status):
    elsewhere = bare(lambda server, conn: conn.recv(4096))

    def redirect(server, conn):
        conn.recv(4096)
        conn.sendall(f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{elsewhere.port}/agent/ws\r\n"
                     "Content-Length: 0\r\n\r\n".encode())
    s = bare(redirect)
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{s.port}/agent/ws"))
    assert str(status) in p.wait_log("disconnected", error="http", timeout=15)["msg"]
    wait_for(lambda: s.accepted >= 2, 15, "it asks the same backend again")
    assert elsewhere.accepted == 0


def test_it_cannot_keep_commands_of_the_host_from_running(site):
    """It leaves 64 results unacknowledged."""
    port = viwtest.free_port()
    site.bridge.ack = False
    site.go(VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}", VIW_AGENT_LOCAL_TOKEN="t0ken")
    site.ready()
    for _ in range(70):
        site.command("ECHO", {"message": "x"})
    wait_for(lambda: site.agent.find_logs("command_refused", error="too many commands are held"), 10)
    status, text = call(port, "/execute", "POST", "t0ken", {"command": "ECHO", "params": {"message": "mine"}})
    assert status == 200 and json.loads(text)["stdout"] == "mine", text


def test_its_text_is_harmless_on_a_terminal(bridge, start, tmp):
    b = bridge()
    b.hello_ack = {"conn_id": "\x9b31m\u202e\x1b]0;owned\x07"}
    env = peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_LOG_JSON="false")
    p = start("gateway-agent", env=env)
    b.wait_frame("TELEMETRY")
    wait_for(lambda: "ready" in run(["status"], env).stdout, 5)
    shown = run(["status"], env).stdout + run(["check", "--dial"], env).stdout
    first = b.conns[0] if not b.conns[0].closed else b.wait_conn(3)
    b.send({"type": "ERROR", "code": "\x1b[2J", "msg": "\x9b2J\x1b[31mred"}, conn=first)
    b.hang_up(1008, "\x1b[2J\x9b2Jowned\r\nlevel=error", conn=first)
    wait_for(lambda: "closed by the bridge" in p.text, 5)
    wait_for(lambda: "owned" in run(["status"], env).stdout, 5)
    shown += run(["status"], env).stdout + p.text
    assert "owned" in shown and ("frame_refused" in shown or "bad_frame" in shown)
    assert not OBEYED.search(shown), [m.group() for m in OBEYED.finditer(shown)]
    assert not any(line.startswith("level=error") for line in p.text.splitlines())


def test_it_cannot_fill_the_disk_with_log(bridge, start, tmp):
    """Thousands of frames that each would be worth a line."""
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws"))
    b.wait_frame("TELEMETRY")
    before = len(p.text)
    for i in range(3000):
        b.command("gw-1", "ECHO", {"message": "x"})
        b.command("gw-1", "ECHO", {"message": "x"}, nonce="always-the-same")
        b.send({"type": "ERROR", "code": "no", "msg": "m" * 500})

    def answered():  # one of them: 64 unacknowledged results are held, then none is taken
        cid = b.command("gw-1", "ECHO", {"message": "still here"})
        try:
            return b.result(cid, timeout=2)["stdout"] == "still here"
        except AssertionError:
            return False
    wait_for(answered, 30)
    assert len(p.text) - before < 800_000, "9,000 lines would be more than 6 MB"
    assert len(b.conns) == 1


def test_a_new_backend_does_not_inherit_what_the_old_one_wanted(site, bridge, tmp):
    """Given while the helper was away; before it came back the operator had turned to another backend."""
    good, conf = bridge(), tmp / "agent.toml"
    conf.write_text(f'backend_url = "ws://127.0.0.1:{site.bridge.port}/agent/ws"\n')
    site.go(VIW_AGENT_BACKEND_URL=None, AGENT_CONFIG=conf)
    site.ready()
    evil = site.command("make", {"name": "mallory"}, ttl_ms=3600000)
    assert site.bridge.result(site.command("ECHO", {"message": "seen"}))
    conf.write_text(f'backend_url = "ws://127.0.0.1:{good.port}/agent/ws"\n')
    site.agent.signal(signal.SIGHUP)
    good.wait_frame("TELEMETRY")
    site.helper.start()
    c = good.wait_conn(2, timeout=15)  # the journal id became known
    good.wait_frame("TELEMETRY", conn=c, timeout=15)
    mine = good.command("gw-1", "make", {"name": "bob"})
    assert good.result(mine, timeout=15)["stdout"] == "made bob\n"
    assert site.helper.starts(evil) == 0 and site.helper.starts(mine) == 1


def test_it_cannot_cancel_what_was_given_on_the_host(site):
    port = viwtest.free_port()
    site.helper.start()
    site.go(VIW_AGENT_MAX_CONCURRENCY="1", VIW_AGENT_FEATURE_INBOUND_HTTP="true",
            VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}", VIW_AGENT_LOCAL_TOKEN="t0ken")
    site.ready()
    go, local, answer = site.helper.root / "go", f"local-{uuid.uuid4()}", []
    running = site.command("slow", {"go": str(go)})
    wait_for(lambda: site.helper.starts(running) == 1, 5)
    t = threading.Thread(target=lambda: answer.append(call(port, "/execute", "POST", "t0ken", {
        "command": "make", "params": {"name": "bob"}, "correlation_id": local})))
    t.start()
    site.agent.wait_log("local_execute")
    site.bridge.cancel(local)
    assert site.bridge.result(site.command("ECHO", {"message": "seen"}))
    go.write_text("")
    t.join(15)
    assert answer and json.loads(answer[0][1])["stdout"] == "made bob\n", answer
    assert site.helper.starts(local) == 1
    assert not [f for f in site.bridge.conns[0].of("RESULT") if f["correlation_id"] == local]
