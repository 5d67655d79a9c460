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
from realhost import Podman, Systemd, user_namespaces_work
from test_01_agent_uplink import bridge  # noqa: F401 (fixture)
from viwtest import ROOT, rfc3339, wait_for

RELEASE = Path(os.environ.get("VIW_RELEASE_BIN", ROOT / "build" / "release" / "bin"))
UNIT = ROOT / "compose" / "systemd" / "viworks-gateway-agent.service"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_release = pytest.mark.skipif(not (RELEASE / "gateway-agent").exists(),
                                   reason="needs the release build (cmake --preset release)")


# ---------------------------------------------------------------- container


@needs_root
@needs_release
@pytest.mark.skipif(not shutil.which("podman"), reason="needs podman")
@pytest.mark.timeout(120)
def test_container_from_scratch_with_no_rights(start, tmp, root_dir, bridge):
    rootfs = tmp / "rootfs"
    subprocess.run([ROOT / "compose" / "agent-rootfs.sh", RELEASE / "gateway-agent", rootfs], check=True)
    helper = Helper(start, root_dir, HOST_HELPER_SOCKET_GROUP="65534", HOST_HELPER_ALLOWED_UIDS="65534")
    helper.verb("make", MARK + 'echo "made $1"\n', ["{name}"], {"name": {"type": "username"}})
    helper.start()
    b = bridge(secret="s3cret")
    with Podman(tmp) as p:
        p.run("build", "-f", ROOT / "compose" / "Dockerfile.gateway-agent", "-t", "localhost/gateway-agent:test", rootfs)
        size = int(p.run("image", "inspect", "--format", "{{.Size}}", "localhost/gateway-agent:test").stdout)
        assert size <= 15 * 2 ** 20, f"{size} bytes"
        name = f"agent-{uuid.uuid4().hex[:8]}"
        env = {"VIW_AGENT_BACKEND_URL": f"ws://127.0.0.1:{b.port}/agent/ws", "VIW_AGENT_ID": "gw-1",
               "VIW_AGENT_SHARED_SECRET": "s3cret", "VIW_AGENT_HELPER_SOCKET": "/run/viworks/host_helper.sock",
               "VIW_AGENT_HELPER_SECRET": KEY, "VIW_AGENT_FEATURE_EXEC_ENABLE": "true",
               "VIW_AGENT_TELEMETRY_INTERVAL_S": "1"}
        p.run("run", "-d", "--name", name, "--network", "host", "--read-only", "--cap-drop=all",
              "--security-opt=no-new-privileges", "--tmpfs", "/tmp", "--memory", "64m",
              "-v", f"{helper.socket}:/run/viworks/host_helper.sock",
              *[x for k, v in env.items() for x in ("-e", f"{k}={v}")], "localhost/gateway-agent:test")
        try:
            hello = b.wait_frame("HELLO", timeout=20)
        except AssertionError:
            raise AssertionError(p.run("logs", name).stdout) from None
        assert "make" in hello["supported_verbs"] and hello["journal_id"]
        m = b.wait_frame("TELEMETRY", n=2)["metrics"]
        assert m["helper"] == "up" and m["agent_cgroup"]["memory_limit_bytes"] == 64 * 2 ** 20
        host = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/meminfo")}
        assert m["mem_total_bytes"] == host["MemTotal"], "the host's memory, not the container's"
        cid = b.command("gw-1", "make", {"name": "bob"})
        assert b.result(cid)["stdout"] == "made bob\n" and helper.starts(cid) == 1
        done = p.run("exec", name, "/usr/bin/gateway-agent", "status")
        assert re.search(r"^link +ready$", done.stdout, re.M), done.stdout
        pid = int(p.run("inspect", "--format", "{{.State.Pid}}", name).stdout)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^CapEff:\t0+$", status, re.M) and re.search(r"^NoNewPrivs:\t1$", status, re.M)
        assert re.search(r"^Uid:\t65534", status, re.M)
        print(f"\nimage {size} bytes, {re.search(r'VmRSS:.*', status)[0]}")
        p.run("stop", "-t", "8", name)
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
