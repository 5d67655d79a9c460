"""06 operations, the agent: reload, expiry warnings, status, check, the inbound feature."""
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

import peers
import viwtest
from test_01_agent_uplink import bare, bridge, server_context, tls_env  # noqa: F401 (fixtures)
from viwtest import wait_for


def run(args, env, user=None):
    done = subprocess.run([viwtest.BIN / "gateway-agent", *args], env={
        "PATH": os.environ["PATH"], **{k: str(v) for k, v in env.items()}}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, timeout=60, user=user)
    assert "Sanitizer" not in done.stderr, done.stderr
    return done


# ---------------------------------------------------------------- reload


def test_new_certificate_is_taken_by_itself(bridge, start, tmp, pki):
    """Certificates are replaced by rename; the agent dials anew with the new one."""
    b = bridge(ssl=server_context(pki))
    mine = tmp / "tls"
    mine.mkdir()
    cert, key = pki.agent("gw-1", days=20)
    for src, name in ((cert, "cert.pem"), (key, "key.pem")):
        shutil.copy(src, mine / name)
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, identity=(mine / "cert.pem", mine / "key.pem")))
    t = b.wait_frame("TELEMETRY")
    assert t["metrics"]["cert_days_left"]["client"] in (19, 20)
    warned = p.wait_log("cert_expiry", setting="VIW_AGENT_CERT_PATH")
    assert warned["level"] == "warn" and warned["count"] in (19, 20)
    # a key that does not fit changes nothing
    other_cert, other_key = pki.agent("gw-1", file="second", days=90)
    shutil.copy(other_key, mine / "new")
    os.replace(mine / "new", mine / "key.pem")
    assert "does not belong" in p.wait_log("reload_failed")["msg"]
    assert len(b.conns) == 1 and not b.conns[0].closed
    shutil.copy(other_cert, mine / "new")
    os.replace(mine / "new", mine / "cert.pem")
    p.wait_log("reloaded")
    b.wait_conn(2)
    t = b.wait_frame("TELEMETRY", conn=b.conns[1])
    assert t["metrics"]["cert_days_left"]["client"] in (89, 90)
    assert t["metrics"]["agent"]["reconnects"] == 1
    serial = b.conns[1].ws.transport.get_extra_info("peercert")["serialNumber"]
    assert serial != b.conns[0].ws.transport.get_extra_info("peercert")["serialNumber"]


@pytest.mark.parametrize("days,warned", [(31, False), (30, True), (-1, True)])
def test_expiry_is_warned_of_30_days_ahead(bridge, start, tmp, pki, days, warned):
    """Log, telemetry and metric. (A certificate of 30 days has less than 30 left.)"""
    b, port = bridge(), viwtest.free_port()
    cert, key = pki.agent("gw-1", days=days)
    p = start("gateway-agent", env=peers.agent_env(
        tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_CERT_PATH=cert, VIW_AGENT_KEY_PATH=key,
        VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}"))
    left = b.wait_frame("TELEMETRY")["metrics"]["cert_days_left"]["client"]
    assert left in (days - 1, days)
    assert f'viw_agent_cert_days_left{{which="client"}} {left}' in call(port, "/metrics")[1]
    lines = p.find_logs("cert_expiry")
    assert bool(lines) == warned
    if warned:
        assert lines[0]["setting"] == "VIW_AGENT_CERT_PATH" and lines[0]["count"] == left
        assert ("has expired" if days < 0 else "expires soon") in lines[0]["msg"]
    assert len(lines) <= 1, "once a day"


def test_sighup_reloads_settings_from_the_file(bridge, start, tmp, pki):
    b, b2 = bridge(), bridge()
    env = peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws")
    del env["VIW_AGENT_BACKEND_URL"], env["VIW_AGENT_TELEMETRY_INTERVAL_S"]
    conf = tmp / "agent.toml"

    def write(url, interval, extra=""):
        conf.write_text(f'backend_url = "{url}"\ntelemetry_interval_s = {interval}\n{extra}')
    write(f"ws://127.0.0.1:{b.port}/agent/ws", 3600)
    p = start("gateway-agent", env=dict(env, AGENT_CONFIG=conf))
    b.wait_frame("TELEMETRY")
    write(f"ws://127.0.0.1:{b.port}/agent/ws", 1)
    p.signal(signal.SIGHUP)
    b.wait_frame("TELEMETRY", n=3)
    assert len(b.conns) == 1, "an interval is no reason to dial anew"
    write(f"ws://127.0.0.1:{b2.port}/agent/ws", 1)
    p.signal(signal.SIGHUP)
    b2.wait_frame("TELEMETRY")
    assert wait_for(lambda: b.conns[0].closed and b.conns[0].close_code, 5) == 1000
    write("wss://", 1)
    p.signal(signal.SIGHUP)
    assert "BACKEND_URL" in p.wait_log("reload_failed")["setting"].upper()
    write(f"ws://127.0.0.1:{b2.port}/agent/ws", 1, 'ring_frames = 7\n')
    p.signal(signal.SIGHUP)
    p.wait_log("reload_ignored")
    assert not b2.conns[0].closed


def test_files_named_in_the_settings_file_are_read_again_by_themselves(bridge, start, tmp):
    """A secret that only the settings file names; the settings file; and what a reload named anew."""
    b, b2, keys, more = bridge(secret="first"), bridge(secret="fourth"), tmp / "keys", tmp / "more"
    keys.mkdir()
    more.mkdir()

    def secret(path, text):
        viwtest.write_secret(tmp / "new", text)
        os.replace(tmp / "new", path)
        return path
    env = peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws")
    del env["VIW_AGENT_BACKEND_URL"]
    conf = tmp / "conf" / "agent.toml"
    conf.parent.mkdir()

    def write(to, path):
        conf.write_text(f'backend_url = "ws://127.0.0.1:{to.port}/agent/ws"\nshared_secret_file = "{path}"\n')
    write(b, secret(keys / "shared", "first"))
    p = start("gateway-agent", env=dict(env, AGENT_CONFIG=conf))
    b.wait_frame("TELEMETRY")
    b.secret = "second"
    secret(keys / "shared", "second")
    b.wait_frame("HELLO", conn=b.wait_conn(2))
    secret(more / "shared", "third")
    b.secret = "third"
    write(b, more / "shared")
    b.wait_frame("HELLO", conn=b.wait_conn(3))
    b2.secret = "fourth"
    write(b2, secret(more / "shared", "fourth"))
    b2.wait_frame("HELLO")
    b2.secret = "fifth"
    secret(more / "shared", "fifth")
    b2.wait_frame("HELLO", conn=b2.wait_conn(2))
    assert not any(word in p.text for word in ("first", "second", "third", "fourth", "fifth"))


def test_pin_change_drops_a_backend_no_longer_pinned(bridge, start, tmp, pki):
    b = bridge(ssl=server_context(pki))
    conf = tmp / "agent.toml"
    conf.write_text(f'backend_spki_pin = "{pki.spki_pin(pki.server[0])}"\n')
    p = start("gateway-agent", env=tls_env(tmp, pki, b.port, AGENT_CONFIG=conf))
    b.wait_frame("TELEMETRY")
    conf.write_text(f'backend_spki_pin = "{pki.spki_pin(pki.path("ca.pem"))}"\n')
    p.signal(signal.SIGHUP)
    p.wait_log("pin_mismatch")
    assert wait_for(lambda: b.conns[0].closed, 5)
    conf.write_text("")
    p.signal(signal.SIGHUP)
    b.wait_frame("TELEMETRY", conn=b.wait_conn(2))


def test_offline_telemetry_is_kept_and_the_gap_is_declared(bridge, start, tmp):
    b = bridge()
    p = start("gateway-agent", env=peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws",
                                                   VIW_AGENT_RING_FRAMES=2))
    b.wait_frame("TELEMETRY")
    b.refuse = (503, [("Retry-After", "5")])
    b.drop()
    p.wait_log("disconnected", error="http")
    b.refuse = None
    c = b.wait_conn(2, timeout=20)
    b.wait_frame("TELEMETRY", n=4, conn=c)
    frames = c.of("TELEMETRY")
    seqs = [f["seq"] for f in frames]
    assert seqs == sorted(seqs) and len(set(seqs)) == len(seqs)
    before = b.conns[0].of("TELEMETRY")[-1]["seq"]
    gaps = [f["metrics"]["telemetry_gap"] for f in frames if "telemetry_gap" in f["metrics"]]
    missing = set(range(before + 1, seqs[-1] + 1)) - set(seqs)
    assert missing, "5 s at one frame a second do not fit into two"
    declared = {n for g in gaps for n in range(g["first_seq"], g["last_seq"] + 1)}
    assert missing <= declared and sum(g["frames"] for g in gaps) == len(missing)


# ---------------------------------------------------------------- status


def test_status_table_and_json(bridge, start, tmp):
    b = bridge()
    env = peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws")
    done = run(["status"], env)
    assert done.returncode == 69 and "Is the agent running" in done.stderr
    p = start("gateway-agent", env=env)
    b.wait_frame("TELEMETRY", n=2)
    done = wait_for(lambda: (lambda d: d if "ready" in d.stdout else None)(run(["status"], env)), 5)
    assert done.returncode == 0, done
    assert re.search(r"^link +ready$", done.stdout, re.M) and re.search(r"^helper +down$", done.stdout, re.M)
    s = json.loads(run(["status", "--json"], env).stdout)
    assert s["agent_id"] == "gw-1" and s["link"]["state"] == "ready" and s["pid"] == p.pid
    assert s["helper"]["state"] == "down" and "HELPER_SECRET" in s["helper"]["why"]
    p.kill()
    done = run(["status"], env)
    assert done.returncode == 69 and "not running" in done.stderr


# ---------------------------------------------------------------- check: ten broken set-ups and good ones


DOC = viwtest.ROOT / "docs" / "agent.md"


def as_documented(text, tmp):
    for pattern, plain in ((re.escape(str(tmp)), "/etc/viworks"), (r"(port |localhost:|127\.1:|invalid:)\d{4,5}\b", r"\g<1>8082"),
                           (r"pin [A-Za-z0-9+/]{43}=", "pin …"), (r"[0-9a-f]{8}-[0-9a-f-]{27}", "…"), (r"\b(29|30) days", "29 days"),
                           (r"\S*/state-gw-1", "/var/lib/viworks-agent")):
        text = re.sub(pattern, plain, text)
    return text


def check_doc(name, lines, tmp):
    """docs/agent.md shows these lines; VIW_WRITE_DOCS=1 writes them."""
    lines, text = as_documented("\n".join(lines), tmp).splitlines(), DOC.read_text()
    lines = [line for line in lines if "sent TLS alert" not in line]  # TLS 1.3: mostly the connection just ends
    block = re.compile(rf"(<!-- check {name} -->\n```text\n)(.*?)(```\n)", re.S)
    told = block.search(text)[2].splitlines()
    if os.environ.get("VIW_WRITE_DOCS"):
        told = lines
        DOC.write_text(block.sub(lambda m: m[1] + "".join(line + "\n" for line in told) + m[3], text))
    assert told == lines or (set(lines) < set(told) and name in ("client_cert", "expired")), f"docs/agent.md: {name}: {lines}"


def check_env(tmp, pki, port, **more):
    return tls_env(tmp, pki, port, **more)


def test_check_good(bridge, tmp, pki):
    b = bridge(ssl=server_context(pki), secret="s")
    done = run(["check"], check_env(tmp, pki, b.port, VIW_AGENT_SHARED_SECRET="s",
                                    VIW_AGENT_BACKEND_SPKI_PIN=pki.spki_pin(pki.server[0])))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepts this agent" in done.stdout and "(pinned)" in done.stdout
    assert "FAIL" not in done.stdout
    check_doc("good", done.stdout.splitlines(), tmp)


def test_check_does_not_take_the_running_agents_place(bridge, start, tmp, pki):
    b = bridge(ssl=server_context(pki))
    env = check_env(tmp, pki, b.port)
    start("gateway-agent", env=env)
    b.wait_frame("TELEMETRY", n=2)
    wait_for(lambda: "ready" in run(["status"], env).stdout, 5)
    done = run(["check"], env)
    assert done.returncode == 0 and "the running agent is connected to it" in done.stdout
    assert len(b.conns) == 1
    assert "accepts this agent" in run(["check", "--dial"], env).stdout and len(b.conns) == 2
    assert run(["check", "--nonsense"], env).returncode == 78


def broken_no_dns(tmp, pki, b):
    return check_env(tmp, pki, b.port, host="nowhere.invalid"), "does not resolve", "DNS"


def broken_refused(tmp, pki, b):
    return check_env(tmp, pki, viwtest.free_port()), "connect", "is the bridge running"


def broken_pin(tmp, pki, b):
    pin = pki.spki_pin(pki.path("ca.pem"))
    return check_env(tmp, pki, b.port, VIW_AGENT_BACKEND_SPKI_PIN=pin), pki.spki_pin(pki.server[0]), "somebody is in between"


def broken_ca(tmp, pki, b):
    return check_env(tmp, pki, b.port, VIW_AGENT_TRUST_BUNDLE=pki.path("client_ca.pem")), "(tls)", "TRUST_BUNDLE"


def broken_name(tmp, pki, b):
    return check_env(tmp, pki, b.port, host="127.1"), "is not for 127.1", "host name"


def broken_hmac(tmp, pki, b):
    return check_env(tmp, pki, b.port, VIW_AGENT_SHARED_SECRET="wrong"), "401", "differs from the bridge's"


def broken_client_cert(tmp, pki, b):
    return check_env(tmp, pki, b.port, identity=pki.rogue("gw-1")), "backend", "certificate"


def broken_key(tmp, pki, b):
    cert, _ = pki.agent("gw-1")
    _, key = pki.agent("gw-1", file="other")
    return check_env(tmp, pki, b.port, identity=(cert, key)), "KEY_PATH", "does not belong"


def broken_mode(tmp, pki, b):
    cert, key = pki.agent("gw-1")
    os.chmod(key, 0o644)
    return check_env(tmp, pki, b.port, identity=(cert, key)), "KEY_PATH", "readable by others"


def broken_helper(tmp, pki, b):
    return check_env(tmp, pki, b.port, VIW_AGENT_HELPER_SECRET="x", VIW_AGENT_SHARED_SECRET="s",
                     VIW_AGENT_HELPER_SOCKET=tmp / "none.sock"), "No such file", "is host-helper running"


def broken_expired(tmp, pki, b):
    return check_env(tmp, pki, b.port, identity=pki.agent("gw-1", days=-1)), "certificate", "expired"


def broken_path(tmp, pki, b):
    env = check_env(tmp, pki, b.port)
    b.refuse = (404, [])
    return env, "404", "/agent/ws"


@pytest.mark.parametrize("broken", [v for k, v in sorted(globals().items()) if k.startswith("broken_")],
                         ids=lambda f: f.__name__[7:])
def test_check_says_what_is_wrong_and_what_to_do(bridge, tmp, pki, broken):
    b = bridge(ssl=server_context(pki), secret="s")
    env, fault, remedy = broken(tmp, pki, b)
    env.setdefault("VIW_AGENT_SHARED_SECRET", "s")
    done = run(["check"], env)
    fails = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 69 and fails, done.stdout + done.stderr
    assert any(fault in line and remedy in line for line in fails), done.stdout
    check_doc(broken.__name__[7:], fails, tmp)
    rows = json.loads(run(["check", "--json"], env).stdout)
    assert any(r["result"] == "fail" and fault in r["what"] + r["text"] for r in rows)


@pytest.mark.parametrize("change,setting,remedy", [
    ({"VIW_AGENT_BACKEND_URL": "ws://bridge.example/agent/ws"}, "VIW_AGENT_BACKEND_URL", "use wss://"),
    ({"VIW_AGENT_ID": "-x"}, "VIW_AGENT_ID", "must begin with a letter or digit"),
    ({"VIW_AGENT_TRUST_BUNDLE": None}, "VIW_AGENT_TRUST_BUNDLE", "must name the CA"),
    ({"VIW_AGENT_KEY_PATH": None}, "VIW_AGENT_KEY_PATH", "come together"),
    ({"VIW_AGENT_TRUST_BUNDLE": "/none.crt"}, "VIW_AGENT_TRUST_BUNDLE /none.crt:", "No such file"),
    ({"VIW_AGENT_BACKEND_SPKI_PIN": "zzz"}, "VIW_AGENT_BACKEND_SPKI_PIN", "base64"),
    ({"VIW_AGENT_MAX_CONCURENCY": "4"}, "VIW_AGENT_MAX_CONCURENCY", ""),
    ({"VIW_AGENT_FEATURE_INBOUND_HTTP": "true", "VIW_AGENT_BIND_ADDRESS": "0.0.0.0:8443"}, "BIND_ADDRESS", "loopback"),
    ({"VIW_AGENT_LABELS": "a"}, "VIW_AGENT_LABELS", "name=value"),
    ({"VIW_AGENT_LABELS": "a=1,ab=1,b=1,a=2"}, "VIW_AGENT_LABELS `a`", "there twice"),
    ({"VIW_AGENT_LABELS": "x" * 128 + "=1"}, "VIW_AGENT_LABELS", "at most 127 bytes"),
    ({"VIW_AGENT_LABELS": ",".join(f"l{i}=" for i in range(65))}, "VIW_AGENT_LABELS", "at most 64"),
    ({"VIW_AGENT_SERVICES": "ssh, redis=redis-server,redis"}, "VIW_AGENT_SERVICES `redis`", "there twice"),
    ({"VIW_AGENT_SERVICES": "x" * 256}, "VIW_AGENT_SERVICES", "at most 255 bytes"),
    ({"VIW_AGENT_SERVICES": ",".join(f"service-{i}" for i in range(60))}, "VIW_AGENT_SERVICES", "1024 bytes"),
])
def test_check_config_names_setting_and_remedy(tmp, pki, change, setting, remedy):
    env = check_env(tmp, pki, 1)
    env.update(change)
    done = run(["--check-config"], {k: v for k, v in env.items() if v is not None})
    assert done.returncode == 78 and setting in done.stderr and remedy in done.stderr, done.stderr


def test_old_settings_are_accepted_with_a_hint(tmp, pki):
    done = run(["--check-config"], check_env(tmp, pki, 1, VIW_AGENT_SCRIPTS_ROOT="/x", VIW_AGENT_CONTAINER_ENGINE="y"))
    assert done.returncode == 0
    assert "HOST_HELPER_VERBS_DIR" in done.stderr and "HOST_HELPER_ENGINE_SOCKET" in done.stderr


# ---------------------------------------------------------------- the inbound feature


def call(port, path, method="GET", token=None, body=None):
    req = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method,
                                 data=json.dumps(body).encode() if body is not None else None)
    if token:
        req.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(req, timeout=10) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_a_start_without_descriptors_exits_71_and_says_so(bridge, start, tmp):
    b = bridge(secret="s3cret")
    for n in range(6, 40):
        p = start("/usr/bin/prlimit", args=[f"--nofile={n}", viwtest.BIN / "gateway-agent"], env=peers.agent_env(
            tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_SHARED_SECRET="s3cret", ASAN_OPTIONS="detect_leaks=0",
            VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{viwtest.free_port()}"))
        wait_for(lambda: not p.alive or p.find_logs("connected"), 10)
        if p.alive:
            break
        assert p.wait_exit() == 71 and p.find_logs("start_failed")[0]["error"] == "Too many open files", (n, p.text)
    assert 15 < n < 35


def test_inbound_http(bridge, start, tmp):
    b, port = bridge(), viwtest.free_port()
    env = peers.agent_env(tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_FEATURE_INBOUND_HTTP="true",
                          AGENT_BIND_ADDRESS=f"127.0.0.1:{port}", VIW_AGENT_LOCAL_TOKEN="t0ken")
    p = start("gateway-agent", env=env)
    b.wait_frame("TELEMETRY")
    for path in ("/health", "/_healthz"):
        status, text = call(port, path)
        assert status == 200 and json.loads(text)["connected"] is True
    assert call(port, "/_readyz")[0] == 200
    assert call(port, "/simple-status") == (200, "connected\n")
    assert json.loads(call(port, "/status")[1])["link"]["state"] == "ready"
    metrics = call(port, "/metrics")[1]
    assert "viw_agent_connected 1" in metrics and 'viw_frames_total{type="TELEMETRY",direction="out"}' in metrics
    assert call(port, "/execute", "POST", body={"command": "ECHO"})[0] == 401
    assert call(port, "/execute", "POST", token="wrong", body={"command": "ECHO"})[0] == 401
    status, text = call(port, "/execute", "POST", "t0ken", {"command": "ECHO", "params": {"message": "hi"}})
    assert status == 200 and json.loads(text)["stdout"] == "hi"
    status, text = call(port, "/execute", "POST", "t0ken", {"command": "create_panel_user"})
    assert status == 200 and json.loads(text)["error"]["code"] == "verb_not_allowed"
    assert call(port, "/execute", "POST", "t0ken", {"params": {}})[0] == 400
    assert call(port, "/nothing")[0] == 404 and call(port, "/execute", token="t0ken")[0] == 405
    assert not b.conns[0].of("RESULT"), "what was asked here is answered here"
    b.refuse = (503, [])
    b.drop()
    wait_for(lambda: call(port, "/_readyz")[0] == 503, 5)
    assert "t0ken" not in p.text


def test_inbound_execute_is_off_without_a_token(bridge, start, tmp):
    b, port = bridge(), viwtest.free_port()
    start("gateway-agent", env=peers.agent_env(
        tmp, f"ws://127.0.0.1:{b.port}/agent/ws", VIW_AGENT_FEATURE_INBOUND_HTTP="true",
        VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{port}"))
    b.wait_frame("HELLO")
    assert call(port, "/execute", "POST", body={"command": "ECHO"})[0] == 404
