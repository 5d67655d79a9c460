"""An agent by hand: wscat, which offers no subprotocol and knows nothing of ours (contract 1)."""
import json
import shutil
import subprocess

import pytest
import viwtest
from test_01_bridge_tls import mtls

@pytest.fixture(scope="session")
def wscat():
    return shutil.which("wscat") or pytest.skip("wscat is missing: apt-get install node-ws")


def talk(wscat, b, agent_id, *frames, args=()):
    """What wscat prints: a line for each frame it was sent."""
    headers = [a for k, v in b.headers(agent_id).items() for a in ("-H", f"{k}: {v}")]
    say = [a for f in frames for a in ("-x", json.dumps(f))]
    run = subprocess.Popen([wscat, "-c", b.url(), *headers, *args, *say, "-w", "1"], text=True,
                           stdin=subprocess.PIPE,  # its end would end wscat
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with run:
        text = run.stdout.read()
    return [json.loads(line[line.index("{"):]) for line in text.splitlines() if "{" in line] or text


HELLO = {"type": "HELLO", "version": "1.0.0", "capabilities": []}


@pytest.mark.parametrize("args", [(), ("-s", "viworks-agent-v1")])
def test_wscat_is_an_agent(bridge, wscat, args):
    b = bridge()
    b.redis.xadd_command("gw-1", "ECHO", correlation_id="c-1", params={"message": "hi"})
    ts = viwtest.rfc3339()
    got = talk(wscat, b, "gw-1", {**HELLO, "agent_id": "gw-1"},
               {"type": "TELEMETRY", "agent_id": "gw-1", "ts": ts, "metrics": {"cpu_pct": 1.5}}, {"type": "PING"},
               args=args)
    assert [f["type"] for f in got if f["type"] in ("HELLO_ACK", "WELCOME", "PONG")] == ["HELLO_ACK", "WELCOME", "PONG"]
    assert next(f for f in got if f["type"] == "COMMAND")["args"] == {"message": "hi"}
    assert json.loads(b.entries("telemetry", agent_id="gw-1")[0]["frame"])["metrics"] == {"cpu_pct": 1.5}


def test_wscat_is_told_why_not(bridge, wscat):
    b = bridge(allowed_agent_ids="gw-1")
    assert "403" in talk(wscat, b, "gw-2", HELLO)
    assert "400" in talk(wscat, b, "gw-1", HELLO, args=("-s", "chat"))


def test_wscat_with_a_client_certificate(bridge, pki, wscat):
    b = mtls(bridge, pki)
    cert, key = pki.agent("gw-1")
    args = ("--ca", pki.path("ca.pem"), "--cert", cert, "--key", key)
    got = talk(wscat, b, "gw-1", {**HELLO, "agent_id": "gw-1"}, args=args)
    assert [f["type"] for f in got][:2] == ["HELLO_ACK", "WELCOME"]
