"""04 reconnect: the system's resolver does not answer (its server is behind a black hole). Programs go on, and end
when they are asked to, though a thread of theirs is still inside getaddrinfo(3)."""
import os
import socket
import time

import pytest

import peers
from bridges import SECRET
from viwtest import BIN, free_port

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a port 53 and a resolv.conf of its own")


@pytest.fixture
def deaf(start, tmp):
    """deaf(program, env, *args): the program, where every DNS query is swallowed."""
    made = []

    def go(program, env, *args):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.{10 + len(made)}", 53))
        made.append(s)
        resolv, nss = tmp / f"resolv{len(made)}", tmp / "nsswitch"
        resolv.write_text(f"nameserver {s.getsockname()[0]}\noptions timeout:10 attempts:3\n")
        nss.write_text("hosts: files dns\n")
        p = start("/usr/bin/unshare", env=env, args=[
            "-m", "--propagation", "private", "bash", "-c",
            f'mount --bind {resolv} /etc/resolv.conf; mount --bind {nss} /etc/nsswitch.conf; exec "$@"', "-", BIN / program, *args])
        p.queries = s
        return p
    yield go
    for s in made:
        s.close()


def asked(p):
    p.queries.settimeout(15)
    return p.queries.recv(512)


def test_programs_go_on_and_end(deaf, tmp, pki):
    """All at once, since patience takes 15 s."""
    def agent(name, *args):
        return deaf("gateway-agent", peers.agent_env(
            tmp, "wss://bridge.nowhere.test/agent/ws", agent_id=name, VIW_AGENT_SHARED_SECRET="x",
            VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem")), *args)

    def ends(p, within):
        t = time.monotonic()
        assert p.stop() == 0 and time.monotonic() - t < within
    waits, check = agent("gw-1"), agent("gw-2", "check", "--json")
    soon = agent("gw-3")
    bridge = deaf("agent-bridge", {
        "AGENT_BRIDGE_BIND": f"127.0.0.1:{free_port()}", "AGENT_BRIDGE_SHARED_SECRET": SECRET, "AGENT_BRIDGE_DRAIN_S": "1",
        "AGENT_BRIDGE_REDIS_URL": "redis://redis.nowhere.test:6379/0"})
    for p in (waits, check, soon, bridge):
        assert b"nowhere" in asked(p)
    ends(soon, 3)
    ends(bridge, 6)
    assert "not resolved in time" in waits.wait_log("disconnected", error="timeout", timeout=20)["msg"]
    assert check.wait_exit(timeout=10) == 69
    waits.wait_log("disconnected", count=1)
    assert len(os.listdir(f"/proc/{waits.pid}/task")) <= 3, "asks do not pile up"
    ends(waits, 3)
