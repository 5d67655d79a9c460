"""Certificates change hands: what viwctl foretells and enrolls is what the real bridge then does."""
import datetime
import json
import signal
import subprocess

import peers
import pytest
import viwtest
from bridgetest import SECRET, Bridge
from viwtest import wait_for


@pytest.fixture
def fleet(start, redis, connect, pg, tmp, pki):
    """bridge(…) starts one with mTLS on always the same port; agent(…) a real gateway-agent."""
    start("telemetry-writer", env={
        "TELEMETRY_WRITER_REDIS_URL": redis.url, "TELEMETRY_WRITER_DATABASE_URL": pg.uri,
        "TELEMETRY_WRITER_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}"})

    class Fleet:
        port, internal = viwtest.free_port(), viwtest.free_port()
        agents = {}

        def bridge(self, **settings):
            return Bridge(start, redis, connect, bind=f"127.0.0.1:{self.port}", rate_per_agent=10000,
                          internal_bind=f"127.0.0.1:{self.internal}", **settings)

        def agent(self, agent_id, cert, key, trust, pins="", wait=True):
            self.agents[agent_id] = (cert, key, trust, pins)
            p = start("gateway-agent", env=peers.agent_env(
                tmp, f"wss://localhost:{self.port}/agent/ws", agent_id=agent_id, VIW_AGENT_CERT_PATH=cert,
                VIW_AGENT_KEY_PATH=key, VIW_AGENT_TRUST_BUNDLE=trust, VIW_AGENT_BACKEND_SPKI_PIN=pins or None,
                VIW_AGENT_SHARED_SECRET=SECRET, VIW_AGENT_LOG_LEVEL="debug"))
            if wait:
                p.wait_log("connected")
                pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = %s", agent_id)
            return p
    return Fleet()


def joined(tmp, name, *paths):
    path = tmp / name
    path.write_text("".join(open(p).read() for p in paths))
    path.chmod(0o600)
    return str(path)


def verdicts(done):
    return {row["agent_id"]: row["verdict"] for row in json.loads(done.stdout)}


@pytest.mark.timeout(90)
def test_rotation_check_foretells_who_is_cut_off(fleet, start, ctl, pg, pki, tmp):
    pki._ca("next_client_ca", "/O=ViWorkS/CN=Next Client CA")
    pki._ca("next_ca", "/CN=Next Root")
    next_cert, next_key = pki.issue("next_server", "next_ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth")
    pins = ",".join([pki.spki_pin(pki.server[0]), pki.spki_pin(next_cert)])
    both_clients = joined(tmp, "both_clients.pem", pki.path("client_ca.pem"), pki.path("next_client_ca.pem"))
    both_roots = joined(tmp, "both_roots.pem", pki.path("ca.pem"), pki.path("next_ca.pem"))
    new = {"ca": "next_client_ca"}
    server_cert, server_key = joined(tmp, "server.pem", pki.server[0]), joined(tmp, "server.key", pki.server[1])
    bridge = fleet.bridge(tls_cert=server_cert, tls_key=server_key, tls_client_ca=both_clients)
    fleet.agent("gw-old", *pki.agent("gw-old"), both_roots, pins)
    fleet.agent("gw-untrusting", *pki.agent("gw-untrusting", **new), pki.path("ca.pem"))
    fleet.agent("gw-oldpin", *pki.agent("gw-oldpin", **new), both_roots, pki.spki_pin(pki.server[0]))
    fleet.agent("gw-ready", *pki.agent("gw-ready", **new), both_roots, pins)
    fleet.agent("gw-pinless", *pki.agent("gw-pinless", **new), both_roots)

    done = ctl("rotation-check", "--client-ca", both_clients, "--days", "0")
    assert done.returncode == 0 and "5 ok" in done.stderr, done.stdout + done.stderr
    done = ctl("rotation-check", "--client-ca", pki.path("next_client_ca.pem"), "--server-cert", next_cert,
               "--days", "0", "--all", "--json")
    assert done.returncode == 1
    assert verdicts(done) == {"gw-old": "stranded", "gw-untrusting": "stranded", "gw-oldpin": "stranded",
                              "gw-ready": "ok", "gw-pinless": "ok"}
    assert pki.spki_pin(next_cert) in done.stderr
    why = {row["agent_id"]: row.get("why") for row in json.loads(done.stdout)}
    assert "client CAs" in why["gw-old"] and "trust bundle" in why["gw-untrusting"] and "pins" in why["gw-oldpin"]
    # Who is silent is not guessed; certificates that end soon are named (these live 30 days).
    pg.query("INSERT INTO os_gateways (agent_id, status) VALUES ('gw-expected', 'expected')")
    done = ctl("rotation-check", "--json")
    assert verdicts(done)["gw-expected"] == "not_known" and verdicts(done)["gw-ready"] == "ends_soon"

    # The switch itself: exactly the two that were called ready come back.
    joined(tmp, "server.key", next_key)
    joined(tmp, "server.pem", next_cert)
    joined(tmp, "both_clients.pem", pki.path("next_client_ca.pem"))
    bridge.proc.signal(signal.SIGHUP)
    bridge.proc.wait_log("tls_reloaded")
    for proc in start.procs:
        if proc.name == "gateway-agent":
            proc.stop()
    back = {name: fleet.agent(name, *files, wait=False) for name, files in list(fleet.agents.items())}
    for name, proc in back.items():
        wait_for(lambda: proc.find_logs("connected") or proc.find_logs("disconnected") or proc.find_logs("pin_mismatch"),
                 10, f"{name} tries")
    assert {name for name, proc in back.items() if proc.find_logs("connected")} == {"gw-ready", "gw-pinless"}
    listed = bridge.get("/internal/agent/agents")["agents"]
    assert {g["agent_id"] for g in listed} == {"gw-ready", "gw-pinless"}
    done = ctl("rotation-check", "--client-ca", pki.path("ca.key"))
    assert done.returncode == 64 and "no PEM certificate" in done.stderr


@pytest.mark.timeout(90)
def test_an_enrolled_agent_connects_and_a_revoked_one_does_not(fleet, ctl, redis, pki, tmp):
    """With a certificate from the local CA and with one from a request; --revoke reaches Redis and
    the CRL, each of which is enough."""
    assert ctl("enroll", "--init-ca").returncode == 0
    ca = tmp / "ca"
    settings = dict(tls_cert=pki.server[0], tls_key=pki.server[1], tls_client_ca=ca / "ca.crt", tls_crl=ca / "crl.pem")
    bridge = fleet.bridge(**settings)
    assert ctl("enroll", "gw-1", "--trust", pki.path("ca.pem")).returncode == 0
    a = fleet.agent("gw-1", tmp / "gw-1" / "agent.crt", tmp / "gw-1" / "agent.key", tmp / "gw-1" / "trust.crt")
    pki._ssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp / "own.key", "-out", tmp / "own.csr", "-subj", "/CN=x")
    (tmp / "own.key").chmod(0o600)
    assert ctl("enroll", "gw-2", "--csr", tmp / "own.csr").returncode == 0
    fleet.agent("gw-2", tmp / "gw-2" / "agent.crt", tmp / "own.key", pki.path("ca.pem"))

    assert ctl("enroll", "--revoke", "gw-1").returncode == 0
    a.wait_log("stopped_by_bridge", timeout=15)  # 4003, by viw.revoked
    redis.client.delete("viw.revoked")
    bridge.proc.signal(signal.SIGHUP)
    bridge.proc.wait_log("tls_reloaded")
    again = fleet.agent("gw-1", tmp / "gw-1" / "agent.crt", tmp / "gw-1" / "agent.key", pki.path("ca.pem"), wait=False)
    wait_for(lambda: bridge.proc.find_logs("tls_refused") or again.find_logs("disconnected"), 15, "a refusal")
    assert not again.find_logs("connected")
    assert [g["agent_id"] for g in bridge.get("/internal/agent/agents")["agents"]] == ["gw-2"]


def test_a_crl_lasts_and_is_signed_anew_with_what_was_revoked(ctl, tmp, pki):
    assert ctl("enroll", "--init-ca").returncode == 0
    assert ctl("enroll", "gw-1").returncode == 0 and ctl("enroll", "--revoke", "gw-1").returncode == 0
    crl = tmp / "ca" / "crl.pem"
    before = crl.read_bytes()
    assert ctl("enroll", "--renew-crl").returncode == 0 and crl.read_bytes() != before
    text = subprocess.run(["openssl", "crl", "-in", crl, "-noout", "-text"], text=True, stdout=subprocess.PIPE).stdout
    assert text.count("Serial Number") == 1
    year = subprocess.run(["openssl", "crl", "-in", crl, "-noout", "-nextupdate"], text=True, stdout=subprocess.PIPE).stdout
    until = datetime.datetime.strptime(year.strip().split("=")[1], "%b %d %H:%M:%S %Y %Z")
    assert until - datetime.datetime.utcnow() > datetime.timedelta(days=390)
