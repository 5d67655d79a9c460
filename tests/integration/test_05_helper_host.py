"""Privilege: the helper on a real host: its unit under systemd, journald, D-Bus, podman."""
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

import viwtest
from helperlib import KEY, Helper, code
from realhost import Podman, Systemd
from viwtest import BIN, ROOT, HelperClient, rfc3339, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
UNITS = ROOT / "compose" / "systemd"
SCRIPTS = "/opt/Viworks/scripts_viworks"


def test_unit_exposure_stays_where_it_is():
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", UNITS / "viworks-host-helper.service"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1]) <= 2.9


class Host:
    """The helper as a host has it: unit, socket, manifests, scripts, group."""

    def __init__(self, s):
        self.s = s
        s.run("groupadd", "-r", "viworks")
        s.put("/usr/bin/host-helper", BIN / "host-helper", mode=0o755)
        for unit in ("viworks-host-helper.service", "viworks-host-helper.socket"):
            s.put(f"/etc/systemd/system/{unit}", UNITS / unit)
        # the leak checker of test builds traces its own process, which the unit forbids
        s.put("/etc/viworks/host-helper.env", "ASAN_OPTIONS=detect_leaks=0\n")
        s.put("/etc/viworks/host_helper.secret", KEY, mode=0o400)
        for m in (ROOT / "host-helper/verbs.d").glob("*.json"):
            s.put(f"/etc/viworks/verbs.d/{m.name}", m)
        for f in (ROOT / "host-helper/scripts").iterdir():
            s.put(f"{SCRIPTS}/{f.name}", f, mode=f.stat().st_mode & 0o777)
        s.put(f"{SCRIPTS}/viworks.conf", "RELOADABLE=chatty.service\n")
        s.put("/etc/systemd/system/chatty.service", "[Service]\nExecStart=/bin/sh -c 'echo one; echo two password=hunter2; exec sleep 1000'\n"
              "ExecReload=/bin/sh -c 'echo reloaded'\n")
        s.put("/etc/systemd/system/broken.service", "[Service]\nExecStart=/bin/false\n")
        self.verb("slow", "sleep 2; echo late")
        s.run("systemctl", "daemon-reload")
        s.run("systemctl", "start", "viworks-host-helper.socket")
        self.socket = f"/proc/{s.init}/root/run/viworks/host_helper.sock"

    def verb(self, name, body, **fields):
        self.s.put(f"{SCRIPTS}/{name}.sh", "#!/bin/bash\n" + body + "\n", mode=0o755)
        self.s.put(f"/etc/viworks/verbs.d/{name}.json", json.dumps({"verb": name, "exec": f"{SCRIPTS}/{name}.sh", **fields}))

    def client(self):
        return HelperClient(self.socket, KEY, timeout=25)

    def run(self, verb, args=None, cid=None, **fields):
        c = self.client()
        try:
            return c.call(verb=verb, args=args or {}, correlation_id=cid or str(uuid.uuid4()), deadline=rfc3339(60), **fields)
        finally:
            c.close()

    def ok(self, verb, args=None):
        reply = self.run(verb, args)
        assert reply["status"] == "ok" and reply.get("rc", 0) == 0, (reply, self.s.journal("viworks-host-helper.service"))
        return reply.get("stdout") if "stdout" in reply else reply["data"]


@pytest.mark.timeout(180)
def test_the_unit_runs_every_shipped_verb(tmp):
    with Systemd(tmp) as s:
        h = Host(s)
        check_unit(h)
        check_users(h)
        check_services(h)
        check_logs(h)
        check_restart(h)
        check_audit(h)
        s.run("systemctl", "stop", "viworks-host-helper.service")
        show = s.run("systemctl", "show", "viworks-host-helper.service", "-p", "Result").stdout
        assert "Result=success" in show, s.journal("viworks-host-helper.service")


def check_unit(h):
    st = h.s.run("stat", "-c", "%U:%G %a", "/run/viworks/host_helper.sock").stdout.strip()
    assert st == "root:viworks 660"
    # socket activation: the first request starts the service
    c = h.client()
    hello = c.call(op="hello")
    assert hello["status"] == "ok"
    names = {v["name"] for v in hello["data"]["verbs"]}
    assert {"create_panel_user", "update_fwknop", "slow", "tail_logs"} <= names
    show = h.s.run("systemctl", "show", "viworks-host-helper.service", "-p", "ActiveState,NoNewPrivileges,KillMode").stdout
    assert "ActiveState=active" in show and "NoNewPrivileges=yes" in show and "KillMode=process" in show


def check_users(h):
    assert h.ok("create_panel_user", {"username": "alice", "userpass": "Pa55:word"}) == "created alice\n"
    assert "alice:" in h.s.run("cat", "/etc/passwd").stdout
    assert h.s.run("su", "-s", "/bin/true", "alice").returncode == 0
    h.s.run("mkdir", "-p", "/etc/openvpn/server", "/etc/fwknop", "/var/lib/viworks")
    h.s.run("systemctl", "restart", "viworks-host-helper.service")  # the new folders become writable
    assert "created bob" in h.ok("create_openvpn_user", {"username": "bob", "userpass": "hunter22", "source_ip": "192.0.2.7",
                                                         "key": "a2V5a2V5a2V5"})
    assert h.ok("list_users").startswith("panel alice\nvpn bob 192.0.2.7 ")
    assert "access of bob" in h.ok("update_fwknop", {"username": "bob", "source_ip": "192.0.2.8", "key": "a2V5a2V5a2V5"})
    id = h.ok("generate_bootstrap", {"username": "bob"}).split()[1]
    h.ok("revoke_bootstrap", {"bootstrap_id": id})
    assert h.ok("delete_user", {"username": "alice"}) == "deleted alice\n"
    assert "alice:" not in h.s.run("cat", "/etc/passwd").stdout
    # what the sandbox keeps from a script that declares everything
    h.verb("escape", "echo x > /etc/viworks/x; echo x > /etc/cron.d/x; echo x > /usr/bin/x; echo x > /root/x; mount -t tmpfs x /mnt; "
                     "unshare -n true; echo done", effects=False)
    h.s.run("systemctl", "reload", "viworks-host-helper.service")
    wait_for(lambda: code(h.run("escape")) != "verb_not_allowed", 10)
    reply = h.run("escape")
    assert reply.get("stdout") == "done\n", reply
    assert reply["stderr"].count("Read-only file system") + reply["stderr"].count("Permission denied") >= 4, reply["stderr"]
    for path in ("/etc/viworks/x", "/etc/cron.d/x", "/usr/bin/x", "/root/x"):
        assert h.s.run("test", "-e", path, check=False).returncode == 1


def check_services(h):
    def state(unit):
        return h.ok("get_service_status", {"unit": unit})
    h.s.run("systemctl", "start", "chatty")
    up = state("chatty")
    assert (up["state"], up["active_state"], up["unit"]) == ("running", "active", "chatty.service") and up["main_pid"] > 1
    assert "reloaded chatty.service: active" in h.ok("reload_service", {"unit": "chatty"})
    h.s.run("systemctl", "stop", "chatty")
    assert state("chatty")["state"] == "stopped"
    h.s.run("systemctl", "start", "broken", check=False)
    wait_for(lambda: state("broken")["state"] == "failed", 10)
    assert state("no-such-unit")["state"] == "unknown"
    data = h.ok("get_monitoring_data", {"services": "chatty,broken.service,nope"})
    assert data["services"] == {"chatty.service": "stopped", "broken.service": "failed", "nope.service": "unknown"}


def check_logs(h):
    def messages(data):
        return [l["message"] for l in data["lines"]]
    data = h.ok("tail_logs", {"unit": "chatty", "lines": 50})
    assert "one" in messages(data) and "two password=***" in messages(data)
    assert {"ts", "cursor", "unit", "pid", "priority", "message"} <= data["lines"][0].keys()
    assert data["gap"] is False
    cursor = data["next_cursor"]
    assert h.ok("tail_logs", {"unit": "chatty", "since_cursor": cursor})["lines"] == []
    h.s.run("systemctl", "start", "chatty")
    fresh = wait_for(lambda: [m for m in messages(h.ok("tail_logs", {"unit": "chatty", "since_cursor": cursor})) if m == "one"], 10)
    assert fresh == ["one"]
    # over a rotation the cursor still holds
    h.s.run("journalctl", "--rotate")
    after = h.ok("tail_logs", {"unit": "chatty", "since_cursor": cursor})
    assert "one" in messages(after) and after["gap"] is False
    assert len(h.ok("tail_logs", {"lines": 3})["lines"]) == 3
    assert all(l["priority"] <= 3 for l in h.ok("tail_logs", {"priority": "err"})["lines"])
    # vacuumed away: lines may be missing, and it says so
    h.s.run("journalctl", "--rotate", "--vacuum-time=1ms", check=False)
    h.s.run("systemctl", "restart", "chatty")
    wait_for(lambda: messages(h.ok("tail_logs", {"unit": "chatty"})), 10)
    gone = h.ok("tail_logs", {"unit": "chatty", "since_cursor": cursor})
    assert gone["gap"] is True and gone["lines"]
    assert code(h.run("tail_logs", {"since_cursor": "garbage"})) == "bad_args"


def check_restart(h):
    """KillMode=process: a run outlives systemctl restart, and the new helper waits for it."""
    c = h.client()
    c.send(verb="slow", args={}, correlation_id="slow-1", deadline=rfc3339(60))

    def state():
        q = h.client()
        try:
            return q.call(op="query", correlation_id="slow-1")["data"]["state"]
        finally:
            q.close()
    wait_for(lambda: state() == "running", 10)
    h.s.run("systemctl", "restart", "viworks-host-helper.service")
    assert state() == "running"
    reply = h.run("slow", cid="slow-1")
    assert reply["stdout"] == "late\n" and reply["replayed"] is True


def check_audit(h):
    out = h.s.run("journalctl", "-o", "json", "VIW_CORRELATION_ID=slow-1", "VIW_EVENT=request", "--no-pager").stdout
    records = [json.loads(l) for l in out.splitlines() if l.startswith("{")]
    assert any(r.get("VIW_VERB") == "slow" and r["VIW_CODE"] == "ok" and r["VIW_PEER_UID"] == "0" for r in records)
    assert "unbroken" in h.s.run("env", "ASAN_OPTIONS=detect_leaks=0", "host-helper", "audit", "verify").stdout


# ---------------------------------------------------------------- containers


def make_rootfs(root):
    """A shell and sleep of this machine, with the libraries they need."""
    for name in ("sh", "sleep"):
        src = Path(f"/bin/{name}").resolve()
        libs = re.findall(r"(/\S+)", subprocess.run(["ldd", src], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for path, to in [(src, f"/bin/{name}")] + [(lib, lib) for lib in libs]:
            target = root / to.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


@pytest.fixture
def podman(tmp):
    if not shutil.which("podman"):
        pytest.skip("needs podman")
    with Podman(tmp) as p:
        rootfs = tmp / "image"
        make_rootfs(rootfs)
        tar = tmp / "image.tar"
        subprocess.run(["tar", "-C", rootfs, "-cf", tar, "."], check=True)
        p.run("import", "-c", 'CMD ["/bin/sh","-c","trap : TERM; /bin/sleep 1000 & wait"]', tar, "localhost/app:1")
        yield p


@pytest.mark.timeout(150)
def test_containers_on_real_podman(start, root_dir, podman):
    engine = root_dir / "engine.sock"
    service = subprocess.Popen(podman.argv("system", "service", "--time=0", f"unix://{engine}"),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(engine.exists, 10)
        h = Helper(start, root_dir, HOST_HELPER_ENGINE_SOCKET=str(engine), HOST_HELPER_CONTAINER_IMAGES="localhost/app:1",
                   HOST_HELPER_CONTAINER_NETWORK="host", HOST_HELPER_CONTAINER_PORTS="18000-18002",
                   HOST_HELPER_CONTAINER_MEMORY_MB="64", HOST_HELPER_CONTAINER_PIDS="32").start()
        # somebody else's container is neither listed nor touched
        podman.run("run", "-d", "--network", "host", "--name", "theirs", "localhost/app:1")
        assert h.run("list_containers")["data"]["containers"] == []
        assert code(h.run("stop_container", {"container": "theirs"})) == "bad_args"
        assert code(h.run("spawn_container", {"image": "docker.io/evil:latest"})) == "bad_args"
        first = h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")
        assert first["status"] == "ok", first
        assert first["data"]["port"] == 18000 and first["data"]["state"] == "running"
        again = h.run("spawn_container", {"name": "one", "username": "bob", "userpass": "S3cretPass"}, cid="spawn-1")
        assert again["replayed"] is True and again["data"] == first["data"]
        h.kill()
        h.start()
        second = h.run("spawn_container")["data"]
        assert second["port"] == 18001  # the allocation outlives the helper
        listed = {c["name"]: c for c in h.run("list_containers")["data"]["containers"]}
        assert listed["one"]["port"] == 18000 and listed["one"]["username"] == "bob" and listed["one"]["state"] == "running"
        info = json.loads(podman.run("inspect", "one").stdout)[0]
        host = info["HostConfig"]
        assert host["Memory"] == 64 << 20 and host["PidsLimit"] == 32 and host["CpuShares"] == 512
        assert "no-new-privileges" in " ".join(host["SecurityOpt"]) and not info.get("EffectiveCaps")
        assert "S3cretPass" not in json.dumps(h.run("list_containers"))
        metrics = h.run("get_monitoring_data")["data"]
        assert metrics["containers_running"] == 2 and {c["name"] for c in metrics["containers"]} == {"one", second["name"]}
        h.run("spawn_container")
        assert code(h.run("spawn_container")) == "busy"  # no port left
        stopped = h.run("stop_container", {"container": "one", "timeout": 5})
        assert stopped["status"] == "ok" and stopped["data"]["state"] == "removed", stopped
        assert h.run("spawn_container")["data"]["port"] == 18000
        assert "theirs" in podman.run("ps", "--format", "{{.Names}}").stdout
    finally:
        service.terminate()
        service.wait()


def test_without_an_engine_the_container_verbs_say_so(start, root_dir):
    h = Helper(start, root_dir).start()
    reply = h.run("list_containers")
    assert code(reply) == "internal" and "container engine" in reply["error"]["msg"]
    assert code(h.run("spawn_container")) == "internal"
    assert "containers" not in h.run("get_monitoring_data")["data"]
