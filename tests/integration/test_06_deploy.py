"""What an operator installs besides the programs: units, nginx site, compose files, manifests."""
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import viwtest

ROOT = viwtest.ROOT
UNITS = sorted((ROOT / "compose" / "systemd").glob("*.service"))
# Overall exposure of `systemd-analyze security`, in tenths; each bar only ever goes down.
BARS = {"viworks-agent-bridge": 12, "viworks-telemetry-writer": 12, "viworks-results-writer": 12}


def run(*argv, **kwargs):
    return subprocess.run([str(a) for a in argv], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, **kwargs)


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_units_are_silent_under_verify(unit, tmp):
    """With programs in place of those the packages bring; verify exits 0 even on unknown keys."""
    text = re.sub(r"^(Exec\w+=)/usr/bin/\S+", r"\1/bin/true", unit.read_text(), flags=re.M)
    text = re.sub(r"^(Documentation)=.*\n", "", text, flags=re.M)
    copy = tmp / unit.name
    copy.write_text(text)
    for socket in unit.parent.glob("*.socket"):
        shutil.copy(socket, tmp)
    done = run("systemd-analyze", "verify", "--man=no", copy)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("unit", [u for u in UNITS if u.stem in BARS], ids=lambda u: u.stem)
def test_units_stay_below_their_bar(unit):
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={BARS[unit.stem]}", unit)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def compose_services(*files):
    import yaml
    services = {}
    for file in files:
        services.update(yaml.safe_load((ROOT / "compose" / file).read_text())["services"])
    return services


@pytest.mark.parametrize("file", ["docker-compose.agent.yml", "docker-compose.agent-bridge.yml",
                                  "docker-compose.gateway-agent.yml"])
def test_compose_services_have_least_privilege(file):
    services = compose_services(file)
    assert services
    for name, s in services.items():
        assert s["read_only"] is True and s["cap_drop"] == ["ALL"], name
        assert s["security_opt"] == ["no-new-privileges:true"] and not s["user"].startswith("0"), name
        assert "environment" not in s or not re.search("SECRET=|TOKEN=", json.dumps(s["environment"])), name
        assert (ROOT / "compose" / (s["env_file"] + ".example")).exists(), name


def test_compose_examples_are_valid_settings(tmp, pki):
    """Each example, with its secret files in place, passes the program's own --check-config."""
    secrets = tmp / "secrets"
    secrets.mkdir()
    viwtest.write_secret(secrets / "shared_secret", "shared-secret-0123456789abcdef")
    viwtest.write_secret(secrets / "helper_secret", "helper-secret-0123456789abcdef")
    viwtest.write_secret(secrets / "admin_token", "admin-token-0123456789abcdef01")
    viwtest.write_secret(secrets / "database_url", "postgresql://viw@db/viw")
    agent = pki.agent("demo-1")
    for name, source in (("server.crt", pki.server[0]), ("server.key", pki.server[1]), ("client_ca.crt", pki.path("client_ca.pem")),
                         ("ca.crt", pki.path("ca.pem")), ("agent.crt", agent[0]), ("agent.key", agent[1])):
        viwtest.write_secret(secrets / name, Path(source).read_text())
    for example in sorted((ROOT / "compose" / "env").glob("*.env.example")):
        program = example.name.removesuffix(".env.example").removeprefix("demo-")
        lines = [line for line in example.read_text().splitlines() if line and not line.startswith("#")]
        env = dict(line.split("=", 1) for line in lines)
        env = {k: v.replace("/run/secrets", str(secrets)) for k, v in env.items()}
        done = run(viwtest.BIN / program, "--check-config", env={"PATH": "/usr/bin:/bin", **env})
        assert done.returncode == 0, f"{example.name}: {done.stderr}"


def nginx_files(tmp, pki, bridge_port, port):
    """The shipped site with this test's paths, ports and certificates put in."""
    shutil.copy(ROOT / "compose/nginx/viw-agent-bridge.conf", tmp / "snippet.conf")
    site = (ROOT / "compose/nginx/agent-bridge.conf").read_text()
    for old, new in (("127.0.0.1:8082", f"127.0.0.1:{bridge_port}"), ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
                     ("/etc/nginx/snippets/viw-agent-bridge.conf", str(tmp / "snippet.conf")),
                     ("/etc/viworks/tls/server.crt", pki.server[0]), ("/etc/viworks/tls/server.key", pki.server[1]),
                     ("/etc/viworks/ca/ca.crt", pki.path("client_ca.pem")), ("/etc/viworks/ca/crl.pem", pki.crl)):
        head, sep, tail = site.partition("\nupstream")
        assert old in site, old
        site = head + sep + tail.replace(old, new)
    conf = tmp / "nginx.conf"
    temp = "".join(f"{k}_temp_path {tmp}/{k};\n" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(f"daemon off; user nobody nogroup; pid {tmp}/pid; error_log stderr info; worker_processes 1;\n"
                    f"events {{ worker_connections 256; }}\nhttp {{ access_log off; {temp} {site} }}\n")
    return conf


def test_an_agent_connects_through_the_shipped_nginx_site(start, redis, pki, tmp, connect):
    secret, bridge_port, port = "proxied-secret-0123456789abcdef", viwtest.free_port(), viwtest.free_port()
    start("agent-bridge", env={"AGENT_BRIDGE_BIND": f"127.0.0.1:{bridge_port}", "AGENT_BRIDGE_REDIS_URL": redis.url,
                               "AGENT_BRIDGE_SHARED_SECRET": secret, "AGENT_BRIDGE_DRAIN_S": "1",
                               "AGENT_BRIDGE_TRUSTED_PROXIES": "127.0.0.1/32"})
    conf = nginx_files(tmp, pki, bridge_port, port)
    assert run("nginx", "-t", "-e", "stderr", "-c", conf).returncode == 0
    start("/usr/sbin/nginx", args=["-e", "stderr", "-c", conf])

    def up():
        try:
            return run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", f"https://127.0.0.1:{port}/").stdout != "000"
        except OSError:
            return False
    viwtest.wait_for(up, what="nginx answers")
    url = f"wss://localhost:{port}/agent/ws"
    cert, key = pki.agent("gw-1")
    ws = connect(url, headers=viwtest.handshake_headers("gw-1", secret), ssl=pki.client_context(cert, key))
    ack, _ = ws.hello("gw-1")
    assert ack["agent_id"] == "gw-1"
    entry = viwtest.wait_for(lambda: redis.client.xrange("viw.agent_hello"))[0][1]
    assert entry["ip"] == "127.0.0.1"

    import wslib
    with pytest.raises(wslib.InvalidStatusCode) as refused:  # another agent's certificate
        connect(url, headers=viwtest.handshake_headers("gw-2", secret), ssl=pki.client_context(cert, key))
    assert refused.value.status_code == 403
    with pytest.raises(wslib.InvalidStatusCode) as refused:  # none at all
        connect(url, headers=viwtest.handshake_headers("gw-1", secret), ssl=pki.client_context())
    assert refused.value.status_code == 400
    assert run("curl", "-sk", "--cert", cert, "--key", key, "-o", "/dev/null", "-w", "%{http_code}",
               f"https://localhost:{port}/internal/agent/agents").stdout == "404"


def test_agents_reach_two_bridges_through_the_shipped_passthrough(start, redis, pki, tmp, connect):
    """nginx's stream module forwards bytes: the bridge itself checks the certificate; when one bridge
    stops, the agent is let in by the other."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if not module.exists():
        pytest.skip("needs libnginx-mod-stream")
    secret, port = "through-secret-0123456789abcdef", viwtest.free_port()
    ports = [viwtest.free_port(), viwtest.free_port()]
    bridges = [start("agent-bridge", env={
        "AGENT_BRIDGE_ID": f"b{n}", "AGENT_BRIDGE_BIND": f"127.0.0.1:{p}", "AGENT_BRIDGE_REDIS_URL": redis.url,
        "AGENT_BRIDGE_SHARED_SECRET": secret, "AGENT_BRIDGE_DRAIN_S": "1", "AGENT_BRIDGE_TLS_CERT": pki.server[0],
        "AGENT_BRIDGE_TLS_KEY": pki.server[1], "AGENT_BRIDGE_TLS_CLIENT_CA": pki.path("client_ca.pem"),
        "AGENT_BRIDGE_TLS_CRL": pki.crl, "AGENT_BRIDGE_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}"})
        for n, p in enumerate(ports)]
    site = (ROOT / "compose/nginx/passthrough.conf").read_text()
    for old, new in (("10.0.0.5:8082", f"127.0.0.1:{ports[0]}"), ("10.0.0.6:8082", f"127.0.0.1:{ports[1]}"),
                     ("listen 443;", f"listen 127.0.0.1:{port};")):
        assert old in site, old
        site = site.replace(old, new)
    conf = tmp / "nginx.conf"
    conf.write_text(f"load_module {module}; daemon off; user nobody nogroup; pid {tmp}/pid; error_log stderr info;\n"
                    f"worker_processes 1; events {{ worker_connections 256; }}\n{site}")
    checked = run("nginx", "-t", "-e", "stderr", "-c", conf)
    assert checked.returncode == 0, checked.stderr
    start("/usr/sbin/nginx", args=["-e", "stderr", "-c", conf])
    cert = pki.agent("gw-1")

    def in_by():
        try:
            ws = connect(f"wss://localhost:{port}/agent/ws", headers=viwtest.handshake_headers("gw-1", secret),
                         ssl=pki.client_context(*cert))
            ws.hello("gw-1")
        except Exception:  # not up yet, or gone in the middle
            return None
        return redis.client.hget("viw.owner", "gw-1").split("|")[0]
    first = viwtest.wait_for(in_by, 20, "let in")
    for refused in (pki.client_context(), pki.client_context(*pki.rogue("gw-1"))):
        with pytest.raises(Exception) as e:
            connect(f"wss://localhost:{port}/agent/ws", headers=viwtest.handshake_headers("gw-1", secret), ssl=refused)
        assert "Status" not in type(e.value).__name__, "refused in the TLS handshake, not by HTTP"
    bridges[int(first[1])].stop()
    assert viwtest.wait_for(in_by, 20, "let in by the other") == f"b{1 - int(first[1])}"


def test_kubernetes_manifests_hold_what_production_needs():
    import yaml
    docs = [d for f in sorted((ROOT / "compose/kubernetes").glob("*.yaml")) for d in yaml.safe_load_all(f.read_text())]
    by_kind = {}
    for d in docs:
        assert d["apiVersion"] and d["kind"]
        by_kind.setdefault(d["kind"], []).append(d)
    pods = by_kind["Deployment"] + by_kind["StatefulSet"]
    assert {p["metadata"]["name"] for p in pods} == {"agent-bridge", "telemetry-writer", "results-writer"}
    budgets = {b["metadata"]["name"] for b in by_kind["PodDisruptionBudget"]}
    for p in pods:
        spec = p["spec"]["template"]["spec"]
        assert p["metadata"]["name"] in budgets and spec["securityContext"]["runAsNonRoot"]
        for c in spec["containers"]:
            assert c["livenessProbe"] and c["readinessProbe"] and c["securityContext"]["readOnlyRootFilesystem"]
            assert c["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            known = run(viwtest.BIN / c["name"], "--help").stdout
            for e in c["env"]:
                assert re.search(rf"^\s+{re.escape(e['name'])}\s", known, re.M), f"{e['name']} is no setting"
