"""01 connect: the real agent and the real bridge in both modes of trust, native mTLS and the shipped
nginx site in front; and what each refuses."""
import json
import shutil
import signal
import time
import uuid

import pytest

import peers
import viwtest
from bridgetest import SECRET, Bridge
from bridges import wait_result
from test_06_deploy import nginx_files
from viwtest import wait_for


def agent_env(tmp, pki, port, identity=None, agent_id="gw-1", **more):
    cert, key = identity or pki.agent(agent_id)
    env = peers.agent_env(tmp, f"wss://localhost:{port}/agent/ws", agent_id=agent_id, VIW_AGENT_CERT_PATH=cert,
                          VIW_AGENT_KEY_PATH=key, VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem"),
                          VIW_AGENT_BACKEND_SPKI_PIN=pki.spki_pin(pki.server[0]), VIW_AGENT_SHARED_SECRET=SECRET)
    env.update(more)
    return env


@pytest.fixture
def native(start, redis, connect, pki):
    internal = viwtest.free_port()
    b = Bridge(start, redis, connect, tls_cert=pki.server[0], tls_key=pki.server[1],
               tls_client_ca=pki.path("client_ca.pem"), tls_crl=pki.crl, internal_bind=f"127.0.0.1:{internal}",
               rate_per_agent=10000)
    return b


@pytest.fixture
def proxied(start, redis, connect, pki, tmp):
    b = Bridge(start, redis, connect, trusted_proxies="127.0.0.1/32", admin_token="a-test-token",
               internal_bind=f"127.0.0.1:{viwtest.free_port()}", wait=False, rate_per_agent=10000)
    b.proc.wait_log("listening")
    b.front = viwtest.free_port()
    b.nginx_conf = nginx_files(tmp, pki, b.port, b.front)
    b.nginx = start("/usr/sbin/nginx", args=["-e", "stderr", "-c", b.nginx_conf])
    import socket

    def up():
        try:
            socket.create_connection(("127.0.0.1", b.front), 1).close()
            return True
        except OSError:
            return False
    wait_for(up, 10, "nginx listens")
    return b


@pytest.fixture(params=["native", "nginx"])
def trusted(request):
    """(bridge, port that agents dial)"""
    if request.param == "nginx":
        if not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
            pytest.skip("needs nginx")
        b = request.getfixturevalue("proxied")
        return b, b.front
    b = request.getfixturevalue("native")
    return b, b.port


def test_telemetry_and_a_command_with_mtls(trusted, start, redis, pki, tmp):
    b, port = trusted
    p = start("gateway-agent", env=agent_env(tmp, pki, port))
    p.wait_log("connected")
    wait_for(lambda: redis.client.xlen("viw.telemetry") >= 2, 10)
    frame = json.loads(redis.client.xrange("viw.telemetry")[-1][1]["frame"])
    assert frame["agent_id"] == "gw-1" and 28 <= frame["metrics"]["cert_days_left"]["client"] <= 30
    cid = redis.xadd_command("gw-1", "ECHO", params={"message": "through TLS"})
    assert wait_result(redis, cid)["frame"]["stdout"] == "through TLS"


@pytest.mark.parametrize("who", ["rogue", "other", "revoked"])
def test_a_certificate_that_does_not_fit_is_refused(trusted, start, redis, pki, tmp, who):
    b, port = trusted
    identity = {"rogue": lambda: pki.rogue("gw-1"), "other": lambda: pki.agent("gw-2"),
                "revoked": lambda: pki.agent("gw-1", file="to-revoke")}[who]()
    if who == "revoked":
        pki.revoke(identity[0])
        if hasattr(b, "nginx"):
            b.nginx.signal(signal.SIGHUP)
            wait_for(lambda: "reconfiguring" in b.nginx.text and "gracefully shutting down" in b.nginx.text, 5)
        else:
            b.proc.signal(signal.SIGHUP)
            b.proc.wait_log("reloaded")
    p = start("gateway-agent", env=agent_env(tmp, pki, port, identity=identity))
    wait_for(lambda: p.find_logs("connected") or p.find_logs("disconnected"), 15)
    line = p.wait_log("disconnected", timeout=15)
    assert line["error"] in ("tls", "http", "lost"), line
    if who == "other":
        assert "403" in line["msg"], line
    assert not p.find_logs("connected")
    assert redis.client.xlen("viw.telemetry") == 0


def test_wrong_secret_is_401(trusted, start, pki, tmp):
    b, port = trusted
    p = start("gateway-agent", env=agent_env(tmp, pki, port, VIW_AGENT_SHARED_SECRET="not it"))
    assert "401" in p.wait_log("disconnected", error="http")["msg"]


def test_two_agents_with_one_id_do_not_fight(native, start, redis, pki, tmp):
    """4000: the older one stands back at the maximum."""
    identity = pki.agent("gw-1")  # once: a file written anew would be taken for a renewal, and dialled with
    first = start("gateway-agent", env=agent_env(tmp, pki, native.port, identity=identity))
    first.wait_log("connected")
    second = start("gateway-agent", env=agent_env(tmp, pki, native.port, identity=identity))
    second.wait_log("connected")
    line = first.wait_log("disconnected", error="close")
    assert "4000" in line["msg"] and int(line["msg"].split("next try in ")[1].split()[0]) >= 54000


def test_bridge_restart_and_redis_loss(native, start, redis, pki, tmp):
    p = start("gateway-agent", env=agent_env(tmp, pki, native.port))
    p.wait_log("connected")
    native.proc.stop()
    p.wait_log("disconnected", timeout=10)
    line = p.find_logs("disconnected")[0]  # dialling anew at once it may have met the drain, a 503, as well
    assert "1001" in line["msg"] and int(line["msg"].split("next try in ")[1].split()[0]) <= 5000
    again = start("agent-bridge", env=native.env)
    again.wait_log("listening")
    p.wait_log("connected", count=2, timeout=20)
    t = time.monotonic()
    again.kill()
    p.wait_log("disconnected", error="lost", timeout=10)
    third = start("agent-bridge", env=native.env)
    p.wait_log("connected", count=3, timeout=30)
    assert time.monotonic() - t < 30
    cid = redis.xadd_command("gw-1", "ECHO", params={"message": "again"}, correlation_id=str(uuid.uuid4()))
    assert wait_result(redis, cid, timeout=20)["frame"]["stdout"] == "again"
    assert third.alive
