"""An agent by hand: wscat, which offers no subprotocol and knows nothing of ours (contract 1)."""
import json
import os
import shutil
import subprocess

import pytest
import viwtest
from test_01_bridge_tls import mtls


@pytest.fixture(scope="session")
def wscat():
    return shutil.which("wscat") or pytest.skip("wscat is missing: apt-get install node-ws")


class Wscat:
    """wscat on a pipe: a line in is a frame out, a frame in is a line out."""

    def __init__(self, program, b, agent_id, *args):
        headers = [a for k, v in b.headers(agent_id).items() for a in ("-H", f"{k}: {v}")]
        # Debian's place of modules, for a Node that is not Debian's
        env = {**os.environ, "NODE_PATH": "/usr/share/nodejs", "NODE_OPTIONS": "--dns-result-order=ipv4first"}
        self.run = subprocess.Popen([program, "-c", b.url(), *headers, *args], text=True, env=env,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run.terminate()
        self.run.__exit__(None, None, None)

    def say(self, **frame):
        self.run.stdin.write(json.dumps(frame) + "\n")
        self.run.stdin.flush()

    def hear(self, type):
        """The next frame, which must be of this type. A test's own time limit ends the waiting."""
        said = ""
        for line in self.run.stdout:
            said += line
            if "{" in line:
                frame = json.loads(line[line.index("{"):line.rindex("}") + 1])
                assert frame["type"] == type, frame
                return frame
        raise AssertionError(f"wscat has ended: {said}")

    def rest(self):
        return self.run.stdout.read()


@pytest.mark.parametrize("args", [(), ("-s", "viworks-agent-v1")])
def test_wscat_is_an_agent(bridge, wscat, args):
    b = bridge()
    with Wscat(wscat, b, "gw-1", *args) as w:
        assert w.hear("HELLO_ACK")["agent_id"] == "gw-1"
        w.say(type="HELLO", agent_id="gw-1", version="1.0.0", capabilities=[])
        w.hear("WELCOME")
        w.say(type="TELEMETRY", agent_id="gw-1", ts=viwtest.rfc3339(), metrics={"cpu_pct": 1.5})
        w.say(type="PING")
        w.hear("PONG")
        cid = b.redis.xadd_command("gw-1", "ECHO", params={"message": "hi"})
        command = w.hear("COMMAND")
        assert command["correlation_id"] == cid and command["args"] == {"message": "hi"}
        w.say(type="RESULT", agent_id="gw-1", correlation_id=cid, status="success", rc=0, stdout="hi")
        assert w.hear("RESULT_ACK")["correlation_id"] == cid
    assert json.loads(b.entries("telemetry", agent_id="gw-1")[0]["frame"])["metrics"] == {"cpu_pct": 1.5}
    assert b.entries("command_results", correlation_id=cid)


def test_wscat_is_told_why_not(bridge, wscat):
    b = bridge(allowed_agent_ids="gw-1")
    with Wscat(wscat, b, "gw-2") as w:
        assert "403" in w.rest()
    with Wscat(wscat, b, "gw-1", "-s", "chat") as w:
        assert "400" in w.rest()


def test_wscat_with_a_client_certificate(bridge, pki, wscat):
    b = mtls(bridge, pki)
    cert, key = pki.agent("gw-1")
    with Wscat(wscat, b, "gw-1", "--ca", pki.path("ca.pem"), "--cert", cert, "--key", key) as w:
        w.hear("HELLO_ACK")
        w.say(type="HELLO", agent_id="gw-1", version="1.0.0", capabilities=[])
        w.hear("WELCOME")
