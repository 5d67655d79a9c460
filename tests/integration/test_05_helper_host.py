"""Privilege: the helper on a real host: its unit under systemd, journald, D-Bus, podman."""
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from helperlib import KEY, Helper, code
from realhost import Systemd
from viwtest import BIN, HELPER_PROGRAMS, ROOT, HelperClient, helper_program, make_tmp, rfc3339, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
UNITS = ROOT / "compose" / "systemd"
SCRIPTS = "/opt/Viworks/scripts_viworks"


def test_unit_exposure_stays_where_it_is():
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", UNITS / "viworks-host-helper.service"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1]
    assert float(exposure) <= 2.7
    readme = (ROOT / "host-helper" / "README.md").read_text()
    assert f"systemd-analyze security: {exposure}." in readme
    section = readme.split("systemd-analyze security:")[1].split("\n\n`ReadWritePaths")[0].replace("\\|", "|")
    left = set(re.findall(r"^\S*✗ (\S+)", done.stdout, re.M))
    assert left == set(re.findall(r"`(\S+)`", section)) - {"run_as", "ProtectClock="}, "each point that is left has its reason"


class Host:
    """The helper as a host has it: unit, socket, manifests, scripts, group."""

    def __init__(self, s):
        self.s = s
        s.run("groupadd", "-r", "viworks")
        for program in HELPER_PROGRAMS:
            s.put(f"/usr/bin/{program}", BIN / program, mode=0o755)
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

    def hello(self):
        c = self.client()
        try:
            return c.call(op="hello")
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
        check_strays(h)
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
    h.s.run("mkdir", "-p", "/etc/openvpn/server", "/etc/fwknop", "/var/lib/viworks", "/etc/cron.d")
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
    check_logs_while_rotating(h)
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


def check_logs_while_rotating(h):
    """Lines come once each and in order while journald rotates under the reader."""
    h.s.put("/etc/systemd/system/counter.service",
            "[Service]\nExecStart=/bin/bash -c 'for i in {1..300}; do echo line $i; sleep 0.005; done; exec sleep 1000'\n")
    h.s.run("systemctl", "daemon-reload")
    h.s.run("systemctl", "start", "counter")
    stop = threading.Event()

    def rotate():
        for _ in range(60):  # journald keeps 100 files: more would vacuum what is looked for later
            if stop.wait(0.05):
                return
            h.s.run("journalctl", "--rotate", check=False)
    thread = threading.Thread(target=rotate)
    thread.start()
    got, cursor = [], None

    def read():
        nonlocal cursor
        data = h.ok("tail_logs", {"unit": "counter", "lines": 1000, **({"since_cursor": cursor} if cursor else {})})
        assert data["gap"] is False
        cursor = data.get("next_cursor", cursor)  # none before the first line
        got.extend(int(l["message"].split()[1]) for l in data["lines"] if l["message"].startswith("line "))
        return got and got[-1] == 300
    try:
        wait_for(read, 30)
    finally:
        stop.set()
        thread.join()
    assert got == list(range(1, 301))
    h.s.run("systemctl", "stop", "counter")


def check_strays(h):
    """Helper and supervisor killed at once: what the run left is in nobody's tree any more, but still in the unit's control group.
    The next helper ends it before it serves; another run, whose supervisor lives, goes on."""
    h.verb("stray", "(setsid env -i /bin/bash -c 'trap \"\" TERM HUP; exec sleep 4321' </dev/null >/dev/null 2>&1 &); echo $$ > /tmp/stray; sleep 4320",
           run_as="nobody", timeout_s=60)
    h.verb("keeper", "sleep 4; echo kept", timeout_s=60)
    h.s.run("systemctl", "reload", "viworks-host-helper.service")
    wait_for(lambda: "stray" in {v["name"] for v in h.hello()["data"]["verbs"]}, 10)
    c = h.client()
    c.send(verb="keeper", args={}, correlation_id="keep-1", deadline=rfc3339(60))
    c.send(verb="stray", args={}, correlation_id="stray-1", deadline=rfc3339(60))
    pgrep = lambda *args: h.s.run("pgrep", *args, check=False).stdout.split()
    wait_for(lambda: len(pgrep("-u", "nobody", "sleep")) == 2, 10)
    supervisor = next(p for p in pgrep("-x", "viw-run") if pgrep("-P", p, "-u", "nobody"))

    def main_pid():
        return h.s.run("systemctl", "show", "viworks-host-helper.service", "-p", "MainPID", "--value").stdout.strip()
    main = main_pid()
    h.s.run("kill", "-9", main, supervisor)
    assert len(pgrep("-u", "nobody", "sleep")) >= 1  # they live on, children of PID 1
    wait_for(lambda: main_pid() != main, 10)  # who connects before systemd has noticed is turned away (FlushPending=yes)
    assert code(h.run("stray", cid="stray-1")) == "outcome_unknown"  # socket activation started the next helper
    assert pgrep("-u", "nobody", "sleep") == []
    kept = h.run("keeper", cid="keep-1")
    assert kept["stdout"] == "kept\n" and kept["replayed"] is True


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
    def told(*match):
        text = h.s.run("journalctl", "-o", "json", "--no-pager", *match, check=False).stdout
        return [json.loads(l) for l in text.splitlines() if l.startswith("{")]
    wait_for(lambda: any(r.get("VIW_VERB") == "slow" and r["VIW_CODE"] == "ok" and r["VIW_PEER_UID"] == "0"
                         for r in told("VIW_CORRELATION_ID=slow-1", "VIW_EVENT=request")), 10, "the journal tells of slow-1")
    # a refused verb is any text: it brings no field of its own into the journal
    forged = "x\nVIW_FORGED=1\nMESSAGE=forged"
    assert code(h.run(forged, cid="forged-1")) == "verb_not_allowed"
    wait_for(lambda: told("VIW_CORRELATION_ID=forged-1"), 10)
    assert [r["VIW_VERB"] for r in told("VIW_CORRELATION_ID=forged-1")] == [forged]
    assert told("VIW_FORGED=1") == [] and told("MESSAGE=forged") == []
    assert "unbroken" in h.s.run("env", "ASAN_OPTIONS=detect_leaks=0", "host-helper", "audit", "verify").stdout


# ---------------------------------------------------------------- a journal that is cut


@pytest.fixture
def journal(root_dir):
    """A folder with one journal file that a real journald wrote."""
    folder = root_dir / "journal"
    folder.mkdir()
    dir = make_tmp()
    try:
        with Systemd(dir) as s:
            s.run("sh", "-c", "for i in $(seq 50); do echo line $i; done | systemd-cat -t counter")
            wait_for(lambda: "line 50\n" in s.run("journalctl", "-t", "counter", "-o", "cat", check=False).stdout)
            s.run("journalctl", "--sync")
            written = next(Path(f"/proc/{s.init}/root").glob("*/log/journal/*/system.journal"))
            shutil.copy(written, folder / "system.journal")
    finally:
        shutil.rmtree(dir, ignore_errors=True)
    return folder / "system.journal"


def traced(helper, path, inject):
    """The helper, with something done to every process below it that maps this file."""
    trace = helper.root / "strace"
    trace.unlink(missing_ok=True)
    helper.proc = helper._start("/usr/bin/strace", env=dict(helper.env, ASAN_OPTIONS="detect_leaks=0"), args=[
        "-f", "-qq", "-o", str(trace), "-P", str(path), "-e", "trace=mmap", "-e", f"inject=mmap:{inject}", str(helper_program())])
    helper.proc.wait_log("ready")
    return trace


def end_traced(helper):
    kids = subprocess.run(["pgrep", "-P", str(helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    os.kill(int(kids[0]), signal.SIGTERM)
    helper.proc.wait_exit(10)


def maps(path):
    for p in Path("/proc").glob("[0-9]*/maps"):
        try:
            if str(path) in p.read_text():
                return p
        except OSError:
            pass  # it ended
    return None


@pytest.mark.timeout(90)
def test_a_journal_file_that_is_cut_while_it_is_read(start, root_dir, journal):
    """What has mapped it gets SIGBUS: it is read anew, and when that never ends, the verb says so and ends."""
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("strace cannot trace here")
    helper = Helper(start, root_dir, HOST_HELPER_JOURNAL_DIR=str(journal.parent)).start()
    want = helper.run("tail_logs", {"lines": 20})["data"]["lines"]
    assert len(want) == 20
    helper.stop()
    # at every reading
    trace = traced(helper, journal, "signal=SIGBUS")
    reply = helper.run("tail_logs", {"lines": 20})
    assert code(reply) == "internal" and "too quickly" in reply["error"]["msg"], reply
    assert trace.read_text().count("--- SIGBUS") == 8
    assert code(helper.run("get_system_health")) is None
    end_traced(helper)
    # at the first
    traced(helper, journal, "signal=SIGBUS:when=1")
    assert helper.run("tail_logs", {"lines": 20})["data"]["lines"] == want
    end_traced(helper)
    # in truth
    trace = traced(helper, journal, "delay_exit=3000000:when=1")
    c = helper.client()
    c.send(verb="tail_logs", args={"lines": 20})
    wait_for(lambda: maps(journal))
    os.truncate(journal, 4096)
    reply = c.recv()
    assert "--- SIGBUS" in trace.read_text()
    assert code(reply) is None and reply["data"]["lines"] == [], reply  # what is left of it is no journal file
    end_traced(helper)


def test_tail_logs_reads_journals_and_nothing_else(start, root_dir, journal):
    """Its capability opens every file: Landlock opens the journal's folder only. A link in there leads nowhere."""
    folder = root_dir / "links"
    folder.mkdir()
    (folder / "system.journal").symlink_to(journal)
    helper = Helper(start, root_dir, HOST_HELPER_JOURNAL_DIR=str(folder)).start()
    if helper.proc.find_logs("no_landlock"):
        pytest.skip("this kernel has no Landlock")
    reply = helper.run("tail_logs", {"lines": 20})
    assert code(reply) is None and reply["data"]["lines"] == [], reply
    helper.stop()
    helper.start(HOST_HELPER_JOURNAL_DIR=str(journal.parent))
    journal.chmod(0o600)
    assert len(helper.run("tail_logs", {"lines": 20})["data"]["lines"]) == 20, "the capability it keeps opens root's own"


# ---------------------------------------------------------------- a real OpenVPN


VPN_SERVER = """dev tun
server 10.89.0.0 255.255.255.0
proto udp4
local 127.0.0.1
port 21194
management 127.0.0.1 7505
status /run/openvpn/server.status 1
status-version 2
cert /etc/vpn/server.crt
key /etc/vpn/server.key
dh none
<peer-fingerprint>
%s
</peer-fingerprint>
"""
VPN_CLIENT = """dev null
tls-client
remote 127.0.0.1 21194
proto udp4
nobind
connect-retry 1 1
cert /etc/vpn/bob.crt
key /etc/vpn/bob.key
peer-fingerprint %s
"""


@pytest.mark.timeout(120)
def test_sessions_of_a_real_openvpn_from_inside_the_unit(tmp):
    if not shutil.which("openvpn") or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs openvpn and /dev/net/tun")
    with Systemd(tmp) as s:
        h = Host(s)
        s.run("mkdir", "-p", "/dev/net", "/run/openvpn", "/etc/vpn")
        if s.run("mknod", "/dev/net/tun", "c", "10", "200", check=False).returncode:
            pytest.skip("no device nodes can be made here")
        prints = {}
        for name in ("server", "bob"):
            s.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                  "-keyout", f"/etc/vpn/{name}.key", "-out", f"/etc/vpn/{name}.crt", "-subj", f"/CN={name}")
            prints[name] = s.run("openssl", "x509", "-in", f"/etc/vpn/{name}.crt", "-noout", "-fingerprint", "-sha256").stdout.strip().split("=")[1]
        s.put("/etc/vpn/server.conf", VPN_SERVER % prints["bob"])
        s.put("/etc/vpn/client.conf", VPN_CLIENT % prints["server"])
        # nobody listens yet: both say so
        assert h.run("get_session_status", {"username": "bob"})["rc"] == 3
        assert h.run("terminate_session", {"username": "bob"})["rc"] == 3
        procs = [s.spawn(["openvpn", "--config", f"/etc/vpn/{side}.conf", "--log", f"/run/openvpn/{side}.log",
                          "--writepid", f"/run/openvpn/{side}.pid"]) for side in ("server", "client")]
        try:
            status = lambda: h.ok("get_session_status", {"username": "bob"})
            wait_for(lambda: h.run("get_session_status", {"username": "bob"}).get("rc") == 0, 20)
            wait_for(lambda: status().startswith("session bob from 127.0.0.1:"), 30,
                     lambda: s.run("cat", "/run/openvpn/server.log", "/run/openvpn/client.log").stdout)
            assert h.ok("get_session_status", {"username": "alice"}) == "no session\n"
            s.run("kill", s.run("cat", "/run/openvpn/client.pid").stdout.strip())  # or it would come back at once
            assert h.ok("terminate_session", {"username": "bob"}) == "common name 'bob' found, 1 client(s) killed\n"
            wait_for(lambda: status() == "no session\n", 10)
            gone = h.run("terminate_session", {"username": "bob"})
            assert gone["rc"] == 2 and "'bob' not found" in gone["stderr"]
        finally:
            for p in procs:
                p.kill()
                p.wait()
