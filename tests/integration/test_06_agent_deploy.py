"""06 operations: the agent as a container (from scratch, no rights) and as a systemd unit."""
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import peers
import viwtest
from helperlib import KEY, MARK, Helper
from realhost import Podman, Systemd, needs_podman_exec, user_namespaces_work
from test_01_agent_uplink import bridge, server_context  # noqa: F401 (fixture)
from viwtest import ROOT, rfc3339, wait_for

RELEASE = Path(os.environ.get("VIW_RELEASE_BIN", ROOT / "build" / "release" / "bin"))
UNIT = ROOT / "compose" / "systemd" / "viworks-gateway-agent.service"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_release = pytest.mark.skipif(not (RELEASE / "gateway-agent").exists(),
                                   reason="needs the release build (cmake --preset release)")


# ---------------------------------------------------------------- container


def compose_run(tmp, pki, bridge, helper):
    """What the compose file asks for, as podman's options; settings and secrets as an operator puts them beside it: the
    example filled in. Only the place of the helper's socket differs, and the container shares this machine's network
    (podman-compose of Debian 12 cannot do that, so it is not what runs it here)."""
    import yaml
    service = yaml.safe_load((ROOT / "compose" / "docker-compose.gateway-agent.yml").read_text())["services"]["gateway-agent"]
    assert service.pop("build")["target"] == "gateway-agent"
    secrets, env = tmp / "secrets", (ROOT / "compose" / "env" / "gateway-agent.env.example").read_text()
    secrets.mkdir()
    cert, key = pki.agent("gw-1")
    for name, content in (("agent.crt", Path(cert).read_text()), ("agent.key", Path(key).read_text()),
                          ("ca.crt", Path(pki.path("ca.pem")).read_text()), ("shared_secret", "s3cret"), ("helper_secret", KEY)):
        os.chown(viwtest.write_secret(secrets / name, content), 65534, 65534)
    for name, value in (("BACKEND_URL", f"wss://localhost:{bridge.port}/agent/ws"), ("ID", "gw-1"),
                        ("FEATURE_EXEC_ENABLE", "true")):
        env, n = re.subn(rf"^VIW_AGENT_{name}=.*$", f"VIW_AGENT_{name}={value}", env, flags=re.M)
        assert n == 1, name
    (tmp / "gateway-agent.env").write_text(env + "VIW_AGENT_TELEMETRY_INTERVAL_S=1\n")
    assert service.pop("env_file") == "env/gateway-agent.env" and service.pop("volumes") == [
        "/run/viworks/host_helper.sock:/run/viworks/host_helper.sock", "./secrets:/run/secrets:ro"]
    options = ["--network", "host", "--env-file", tmp / "gateway-agent.env", "-v", f"{secrets}:/run/secrets:ro",
               "-v", f"{helper.socket}:/run/viworks/host_helper.sock"]
    one = {"user": "--user", "restart": "--restart", "pids_limit": "--pids-limit", "mem_limit": "--memory"}
    many = {"cap_drop": "--cap-drop", "security_opt": "--security-opt", "tmpfs": "--tmpfs"}
    image, grace = service.pop("image"), service.pop("stop_grace_period")
    for name, value in service.items():
        if name == "read_only":
            options += ["--read-only", "--read-only-tmpfs=false"] * value  # as Docker: no tmpfs that nobody asked for
        else:
            options += [x for v in (value if name in many else [value]) for x in ({**one, **many}[name], v)]
    return [*options, "--stop-timeout", grace.removesuffix("s"), image]


@needs_root
@needs_release
@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
@pytest.mark.timeout(120)
def test_container_from_scratch_with_no_rights(start, tmp, pki, root_dir, bridge):
    """The Dockerfile's target, run by the compose file, with mTLS and the helper's socket. (The target's other stages,
    which fetch packages, are built in test_06_containers.py.)"""
    rootfs = tmp / "rootfs"
    subprocess.run([ROOT / "compose" / "agent-rootfs.sh", RELEASE / "gateway-agent", rootfs / "agent-rootfs"], check=True)
    helper = Helper(start, root_dir, HOST_HELPER_SOCKET_GROUP="65534", HOST_HELPER_ALLOWED_UIDS="65534")
    helper.verb("make", MARK + 'echo "made $1"\n', ["{name}"], {"name": {"type": "username"}})
    helper.start()
    b = bridge(secret="s3cret", ssl=server_context(pki))
    with Podman(tmp) as p:
        p.run("build", "--format", "docker", "-f", ROOT / "compose" / "Dockerfile", "--target", "gateway-agent",
              "--build-context", f"agent-rootfs={rootfs}", "-t", "viworks/gateway-agent", ROOT / "compose")
        facts = json.loads(p.run("image", "inspect", "viworks/gateway-agent").stdout)[0]
        assert facts["Size"] <= 15 * 2 ** 20, f"{facts['Size']} bytes"
        assert facts["Healthcheck"]["Test"] == ["CMD", "/usr/bin/gateway-agent", "status"]
        name = f"agent-{uuid.uuid4().hex[:8]}"
        p.run("run", "-d", "--name", name, *compose_run(tmp, pki, b, helper))
        try:
            hello = b.wait_frame("HELLO", timeout=20)
        except AssertionError:
            raise AssertionError(p.run("logs", name).stdout) from None
        assert "make" in hello["supported_verbs"] and hello["journal_id"]
        m = b.wait_frame("TELEMETRY", n=3)["metrics"]
        assert m["helper"] == "up" and m["agent_cgroup"]["memory_limit_bytes"] == 64 * 2 ** 20
        host = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/meminfo")}
        assert m["mem_total_bytes"] == host["MemTotal"], "the host's memory, not the container's"
        assert abs(m["uptime_s"] - float(open("/proc/uptime").read().split()[0])) < 30
        cid = b.command("gw-1", "make", {"name": "bob"})
        assert b.result(cid)["stdout"] == "made bob\n" and helper.starts(cid) == 1
        needs_podman_exec()
        done = p.run("exec", name, "/usr/bin/gateway-agent", "status")
        assert re.search(r"^link +ready$", done.stdout, re.M), done.stdout
        p.run("healthcheck", "run", name)
        assert p.run("exec", name, "/bin/sh", check=False).returncode != 0, "there is no shell"
        pid = int(p.run("inspect", "--format", "{{.State.Pid}}", name).stdout)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.M) and re.search(r"^CapBnd:\t0+$", status, re.M)
        assert re.search(r"^Uid:\t65534", status, re.M) and re.search(r"^NoNewPrivs:\t1$", status, re.M)
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        assert next(f for _, where, _, f, *_ in mounts if where == "/").split(",")[0] == "ro"
        writable = {where for what, where, kind, f, *_ in mounts if f.split(",")[0] == "rw" and kind != "proc"
                    and not where.startswith(("/dev", "/sys", "/proc"))}
        # the runtime's own files for names and the like; podman puts them there for every container
        assert writable - {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"} \
            == {"/tmp", "/run/viworks/host_helper.sock"}, writable
        rss = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
        assert rss <= 6144, f"{rss} KiB resident, connected with mTLS"
        print(f"\nimage {facts['Size']} bytes, {rss} KiB resident")
        p.run("stop", name)
        assert p.run("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"


# ---------------------------------------------------------------- systemd


def test_unit_is_tight():
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=15", UNIT],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-600:]
    score = float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1])
    assert score <= 1.5


@needs_root
@needs_release
@pytest.mark.timeout(120)
def test_unit_runs_under_a_real_systemd(tmp):
    with Systemd(tmp) as s:
        s.put("/usr/lib/sysusers.d/viworks.conf", ROOT / "debian" / "viworks-gateway-agent.sysusers")
        s.run("systemd-sysusers")
        s.put("/usr/bin/gateway-agent", RELEASE / "gateway-agent", mode=0o755)
        s.put("/etc/systemd/system/viworks-gateway-agent.service", UNIT)
        if not user_namespaces_work():
            s.put("/etc/systemd/system/viworks-gateway-agent.service.d/chroot.conf", "[Service]\nPrivateUsers=no\n")
        s.put("/etc/viworks/agent.secret", "s3cret\n", mode=0o400, owner="viworks-agent:viworks")
        s.put("/etc/viworks/gateway-agent.toml", 'backend_url = "ws://127.0.0.1:9009/agent/ws"\nid = "gw-1"\n'
              'shared_secret_file = "/etc/viworks/agent.secret"\ntelemetry_interval_s = 1\n')
        verified = s.run("systemd-analyze", "verify", "/etc/systemd/system/viworks-gateway-agent.service")
        assert "gateway-agent" not in verified.stdout, verified.stdout
        out = s.dir / "frames"
        bridge = s.spawn([sys.executable if os.path.exists(sys.executable) else "/usr/bin/python3",
                          ROOT / "tests" / "lib" / "peer_main.py", "9009", out, "s3cret"],
                         stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            s.run("systemctl", "daemon-reload")
            s.run("systemctl", "start", "viworks-gateway-agent.service")  # Type=notify: waits for READY

            def frames(kind):
                text = out.read_text() if out.exists() else ""
                return [f for f in map(json.loads, text.splitlines()) if f["type"] == kind]
            wait_for(lambda: len(frames("TELEMETRY")) >= 2, 15, "two TELEMETRY frames")
            m = frames("TELEMETRY")[1]["metrics"]
            assert m["helper"] == "down" and 0 <= m["mem_pct"] <= 100 and m["cpu_pct"] <= 100
            assert m["agent_cgroup"]["memory_limit_bytes"] == 64 * 2 ** 20
            show = s.run("systemctl", "show", "viworks-gateway-agent.service", "-p", "MainPID,User,NoNewPrivileges,ActiveState").stdout
            assert "ActiveState=active" in show and "User=viworks-agent" in show and "NoNewPrivileges=yes" in show
            done = s.run("env", "AGENT_CONFIG=/etc/viworks/gateway-agent.toml", "gateway-agent", "status")
            assert re.search(r"^link +ready$", done.stdout, re.M), done.stdout
            cid = str(uuid.uuid4())
            bridge.stdin.write(json.dumps({
                "type": "COMMAND", "correlation_id": cid, "agent_id": "gw-1", "verb": "ECHO", "args": {"message": "hi"},
                "issued_at": rfc3339(), "expires_at": rfc3339(30), "ttl_remaining_ms": 30000}) + "\n")
            bridge.stdin.flush()
            assert wait_for(lambda: frames("RESULT"), 10)[0]["stdout"] == "hi"
            s.put("/etc/viworks/gateway-agent.toml", 'backend_url = "ws://127.0.0.1:9009/agent/ws"\nid = "gw-1"\n'
                  'shared_secret_file = "/etc/viworks/agent.secret"\ntelemetry_interval_s = 2\n')
            s.run("systemctl", "reload", "viworks-gateway-agent.service")
            wait_for(lambda: "reloaded" in s.journal("viworks-gateway-agent.service"), 10)
            s.run("systemctl", "kill", "-s", "KILL", "viworks-gateway-agent.service")
            wait_for(lambda: len(frames("HELLO")) >= 2, 15, "systemd starts it again")
            s.run("systemctl", "stop", "viworks-gateway-agent.service")
            show = s.run("systemctl", "show", "viworks-gateway-agent.service", "-p", "Result,ExecMainStatus").stdout
            assert "Result=success" in show and "ExecMainStatus=0" in show
            assert "s3cret" not in s.journal("viworks-gateway-agent.service")
        finally:
            bridge.kill()
            bridge.wait()
