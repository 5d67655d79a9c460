"""06 operations: the five units under a real systemd, as the packages install them: started, stopped,
killed, frozen, upgraded; a backend works all the while."""
import json
import os
import re
import shutil
import threading
import uuid
from pathlib import Path

import pytest

import viwtest
from realhost import Systemd, user_namespaces_work
from viwtest import ROOT, wait_for
from writers import wait_drained

RELEASE = Path(os.environ.get("VIW_RELEASE_BIN", ROOT / "build" / "release" / "bin"))
UNITS = ROOT / "compose" / "systemd"
PROGRAMS = ("agent-bridge", "telemetry-writer", "results-writer", "host-helper", "gateway-agent")
SECRETS = {"shared": "a-shared-secret-0123456789abcdef", "token": "an-admin-token-0123456789abcdef",
           "helper": "0123456789abcdef0123456789abcdef"}
AGENT = "gw-1"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (RELEASE / "agent-bridge").exists(), reason="needs the release build (cmake --preset release)"),
    pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate"),
    pytest.mark.timeout(120)]


class Fleet:
    """One machine with all five programs. Redis and PostgreSQL stay outside, for the test to look at;
    the machine reaches them at their usual ports."""

    def __init__(self, s, redis, database):
        self.s, self.redis, self.database, self.relays = s, redis, database, []
        self.relay(6379, redis.socket)
        self.relay(5432, f"{database.server.dir}/.s.PGSQL.{database.server.port}")
        self.accounts()
        self.files()
        s.run("systemctl", "daemon-reload")

    def relay(self, port, socket):
        """In the machine's network, but with this machine's files."""
        self.relays.append(viwtest.Proc(
            ["nsenter", "-t", self.s.init, "-n", "systemd-socket-activate", "-l", f"127.0.0.1:{port}",
             "/lib/systemd/systemd-socket-proxyd", socket], name=f"relay-{port}", dir=self.s.dir))

    def accounts(self):
        for snippet in sorted((ROOT / "debian").glob("*.sysusers")):
            self.s.put(f"/usr/lib/sysusers.d/{snippet.stem}.conf", snippet)
        for snippet in sorted((ROOT / "debian").glob("*.tmpfiles")):
            self.s.put(f"/usr/lib/tmpfiles.d/{snippet.stem}.conf", snippet)
        for _ in range(2):  # at each boot, and at each upgrade
            assert self.s.run("systemd-sysusers").stdout.count("Failed") == 0
            assert self.s.run("systemd-tmpfiles", "--create", "--prefix=/run/viworks", "--prefix=/var/lib/viworks-helper",
                              "--prefix=/etc/viworks").stdout == ""

    def files(self):
        s = self.s
        chroot = not user_namespaces_work()
        for program in PROGRAMS:
            self.install(program)
            s.put(f"/etc/systemd/system/viworks-{program}.service", UNITS / f"viworks-{program}.service")
            # 2 s instead of up to a minute
            s.put(f"/etc/systemd/system/viworks-{program}.service.d/test.conf", "[Service]\nWatchdogSec=2\n" +
                  ("PrivateUsers=no\n" if chroot and program != "host-helper" else ""))
        for program in viwtest.HELPER_PROGRAMS[1:]:
            self.install(program)
        s.put("/etc/systemd/system/viworks-host-helper.socket", UNITS / "viworks-host-helper.socket")
        etc = "/etc/viworks/"
        s.put(etc + "agent-bridge.shared-secret", SECRETS["shared"], mode=0o400)
        s.put(etc + "agent-bridge.admin-token", SECRETS["token"], mode=0o400)
        s.put(etc + "agent-bridge.env", "AGENT_BRIDGE_BIND=127.0.0.1:8082\nAGENT_BRIDGE_DRAIN_S=2\n"
                                        "AGENT_BRIDGE_RATE_PER_AGENT=10000\n")
        for writer in ("telemetry-writer", "results-writer"):
            s.put(etc + writer + ".database-url", f"postgresql://viw@127.0.0.1/{self.database.name}", mode=0o400)
        s.put(etc + "host_helper.secret", SECRETS["helper"], mode=0o400)
        for name, text in (("shared.secret", SECRETS["shared"]), ("agent_helper.secret", SECRETS["helper"])):
            s.put(etc + name, text, mode=0o400, owner="viworks-agent:viworks")
        s.put(etc + "gateway-agent.env",
              f"VIW_AGENT_ID={AGENT}\nVIW_AGENT_BACKEND_URL=ws://127.0.0.1:8082/agent/ws\n"
              f"VIW_AGENT_SHARED_SECRET_FILE={etc}shared.secret\nVIW_AGENT_HELPER_SECRET_FILE={etc}agent_helper.secret\n"
              "VIW_AGENT_FEATURE_EXEC_ENABLE=true\nVIW_AGENT_TELEMETRY_INTERVAL_S=1\n")
        s.put("/opt/Viworks/scripts_viworks/mark.sh", '#!/bin/bash\necho "$1" >>/var/lib/viworks/marks\n', mode=0o755)
        s.put("/etc/viworks/verbs.d/mark.json", json.dumps({
            "verb": "mark", "exec": "/opt/Viworks/scripts_viworks/mark.sh", "argv": ["{id}"], "idempotent": False,
            "params": {"id": {"type": "text", "max": 64}}, "effects": True, "writable_paths": ["/var/lib/viworks"]}))
        s.run("install", "-d", "/var/lib/viworks")

    def install(self, program, suffix=b""):
        """A new file under the program's name, as dpkg does it: what runs keeps the old one."""
        self.s.put(f"/usr/bin/{program}", (RELEASE / program).read_bytes() + suffix, mode=0o755)

    def systemctl(self, verb, program, **kwargs):
        return self.s.run("systemctl", verb, f"viworks-{program}.service", **kwargs)

    def show(self, program, *names):
        out = self.systemctl("show", program).stdout
        values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return [values[n] for n in names] if len(names) > 1 else values[names[0]]

    def pid(self, program):
        """Of the running main process as this machine numbers it there; 0 when it is not running yet."""
        state, pid = self.show(program, "SubState", "MainPID")
        return int(pid) if state == "running" else 0

    def wait_back(self, program, old):
        return wait_for(lambda: self.pid(program) not in (0, old) and self.pid(program), 20,
                        f"{program} runs again\n{self.journal(program)[-2000:]}")

    def journal(self, program):
        return self.s.journal(f"viworks-{program}.service")

    # ---- the backend's side

    def send(self, verb="mark"):
        cid = str(uuid.uuid4())
        return self.redis.xadd_command(AGENT, verb, cid, {"id": cid}, ttl_s="60")

    def state(self, cid):
        rows = self.database.query("SELECT status FROM agent_commands WHERE correlation_id = %s", cid)
        return rows[0]["status"] if rows else None

    def marks(self):
        return self.s.run("cat", "/var/lib/viworks/marks", check=False).stdout.split()

    def check_works(self):
        """A command with effects goes all the way to its row."""
        cid = self.send()
        wait_for(lambda: self.state(cid) == "done", 20, f"{cid} is done")
        assert self.marks().count(cid) == 1

    def check_nothing_lost(self, cids):
        wait_for(lambda: all(self.state(c) == "done" for c in cids), 30,
                 f"all are done: {[self.state(c) for c in cids]}")
        marks = self.marks()
        assert {c: marks.count(c) for c in cids} == dict.fromkeys(cids, 1)
        rows = self.database.query("SELECT correlation_id, count(*) AS n FROM agent_command_results "
                                   "WHERE correlation_id = ANY(%s) GROUP BY 1", list(cids))
        assert sorted(r["correlation_id"] for r in rows) == sorted(cids) and {r["n"] for r in rows} == {1}
        wait_drained(self.redis.client, "results")
        assert self.redis.client.xlen("viw.dead_letters") == 0

    def check_telemetry(self):
        """Each entry of the stream is a sample of a row, once."""
        def stored():
            rows = self.database.query("SELECT sum(samples) AS n FROM os_gateway_metrics WHERE agent_id = %s", AGENT)
            return rows[0]["n"] or 0
        def written():
            return self.redis.client.xinfo_stream("viw.telemetry")["entries-added"]
        wait_for(lambda: written() > 0, 10)
        want = written()
        wait_for(lambda: stored() >= want, 20, "all telemetry is stored")
        assert 0 < stored() <= written()

    def close(self):
        for p in self.relays:
            p.kill()


@pytest.fixture(scope="module")
def fleet(pg_cluster):
    tmp = viwtest.make_tmp()
    redis = viwtest.RedisServer(tmp).start()
    database = pg_cluster.new_database()
    try:
        with Systemd(tmp) as s:
            s.run("systemctl", "log-target", "journal")
            f = Fleet(s, redis, database)
            s.run("systemctl", "start", "viworks-host-helper.socket")
            for program in PROGRAMS:
                if program != "host-helper":  # its socket starts it
                    f.systemctl("start", program)
            try:
                f.check_works()
                yield f
            finally:
                f.close()
    finally:
        database.close()
        redis.close()
        shutil.rmtree(tmp, ignore_errors=True)


class Backend(threading.Thread):
    """Sends commands all the while."""

    def __init__(self, fleet):
        super().__init__(daemon=True)
        self.fleet, self.cids, self.ended = fleet, [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def run(self):
        while not self.ended.wait(0.1):
            self.cids.append(self.fleet.send())

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def test_sysusers_and_tmpfiles_make_what_the_units_need(fleet):
    for user in ("viworks-bridge", "viworks-writer", "viworks-agent"):
        entry = fleet.s.run("getent", "passwd", user).stdout.strip().split(":")
        assert int(entry[2]) < 1000 and entry[6].endswith("nologin"), entry
    assert fleet.s.run("id", "-gn", "viworks-agent").stdout.strip() == "viworks"
    modes = fleet.s.run("stat", "-c", "%n %U:%G %a", "/run/viworks", "/var/lib/viworks-helper", "/etc/viworks/verbs.d",
                        "/run/viworks/host_helper.sock").stdout.split("\n")
    assert modes[:4] == ["/run/viworks root:viworks 750", "/var/lib/viworks-helper root:root 700",
                         "/etc/viworks/verbs.d root:root 755", "/run/viworks/host_helper.sock root:viworks 660"]


def test_units_are_silent_under_verify_where_they_are_installed(fleet):
    for unit in [f"viworks-{p}.service" for p in PROGRAMS] + ["viworks-host-helper.socket"]:
        out = fleet.s.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit}").stdout
        assert [line for line in out.splitlines() if "viworks" in line and "does not exist" not in line] == [], out


def test_secrets_are_credentials_and_in_no_environment(fleet):
    for program, names in (("agent-bridge", ["admin_token", "shared_secret"]),
                           ("telemetry-writer", ["database_url"]), ("results-writer", ["database_url"])):
        pid = fleet.pid(program)
        environ = fleet.s.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline").stdout
        folder = re.search(r"CREDENTIALS_DIRECTORY=(/[^\0]+)", environ)[1]
        listed = fleet.s.run("ls", f"/proc/{pid}/root{folder}").stdout.split()
        assert sorted(listed) == names
        assert "postgresql://" not in environ and not any(v in environ for v in SECRETS.values())
        assert not any(v in fleet.journal(program) for v in SECRETS.values())


@pytest.mark.parametrize("program", PROGRAMS)
def test_stopped_and_started(fleet, program):
    old = fleet.pid(program)
    assert old
    fleet.systemctl("stop", program)
    result, code, active = fleet.show(program, "Result", "ExecMainStatus", "ActiveState")
    assert (result, code, active) == ("success", "0", "inactive"), fleet.journal(program)[-2000:]
    cid = fleet.send()
    if program != "host-helper":  # whom the agent's next word wakes
        fleet.systemctl("start", program)
    fleet.check_nothing_lost([cid])
    assert fleet.pid(program) not in (0, old)


@pytest.mark.parametrize("program", PROGRAMS)
def test_killed_it_is_back(fleet, program):
    old = fleet.pid(program)
    with Backend(fleet) as backend:
        fleet.s.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", f"viworks-{program}.service")
        fleet.wait_back(program, old)
    fleet.check_nothing_lost(backend.cids)


@pytest.mark.parametrize("program", PROGRAMS)
def test_frozen_the_watchdog_starts_it_again(fleet, program):
    old = fleet.pid(program)
    with Backend(fleet) as backend:
        fleet.s.run("kill", "-STOP", old)
        fleet.wait_back(program, old)
    assert "Watchdog timeout" in fleet.journal(program)
    fleet.check_nothing_lost(backend.cids)


@pytest.mark.parametrize("program", PROGRAMS)
def test_upgraded_nothing_is_lost(fleet, program):
    old = fleet.pid(program)
    with Backend(fleet) as backend:
        fleet.install(program, b"\nthe next version\n")
        assert fleet.s.run("readlink", f"/proc/{old}/exe").stdout.strip().endswith("(deleted)")
        fleet.systemctl("try-restart", program)  # what the package's postinst asks for
        new = fleet.wait_back(program, old)
        assert fleet.s.run("stat", "-Lc", "%i", f"/proc/{new}/exe").stdout == \
            fleet.s.run("stat", "-c", "%i", f"/usr/bin/{program}").stdout
    fleet.check_nothing_lost(backend.cids)
    assert fleet.show(program, "Result") == "success"


def test_no_telemetry_was_lost_or_counted_twice(fleet):
    fleet.check_telemetry()


def test_a_disabled_bridge_stays_down_and_is_no_failure(fleet):
    fleet.systemctl("stop", "agent-bridge")
    fleet.s.put("/etc/systemd/system/viworks-agent-bridge.service.d/off.conf",
                "[Service]\nEnvironment=AGENT_BRIDGE_ENABLED=false\n")
    fleet.s.run("systemctl", "daemon-reload")
    fleet.systemctl("start", "agent-bridge")
    wait_for(lambda: fleet.show("agent-bridge", "ActiveState") == "inactive", 10)
    assert fleet.show("agent-bridge", "Result", "NRestarts") == ["success", "0"]
    fleet.s.run("rm", "/etc/systemd/system/viworks-agent-bridge.service.d/off.conf")
    fleet.s.run("systemctl", "daemon-reload")
    fleet.systemctl("start", "agent-bridge")
    fleet.check_works()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_setting_fails_once_and_says_which(fleet, program):
    prefix = {"gateway-agent": "VIW_AGENT", "host-helper": "HOST_HELPER"}.get(program, program.upper().replace("-", "_"))
    drop_in = f"/etc/systemd/system/viworks-{program}.service.d/wrong.conf"
    fleet.s.put(drop_in, f"[Service]\nEnvironment={prefix}_LOG_LEVEL=loud\n")
    fleet.s.run("systemctl", "daemon-reload")
    try:
        assert fleet.systemctl("restart", program, check=False).returncode != 0
        # The agent's next connection makes systemd try the helper again, which fails again.
        wait_for(lambda: fleet.show(program, "ExecMainStatus", "ActiveState", "NRestarts") == ["78", "failed", "0"], 10)
        assert re.search(f"{prefix}_LOG_LEVEL", fleet.journal(program))
    finally:
        fleet.s.run("rm", drop_in)
        fleet.s.run("systemctl", "daemon-reload")
        fleet.s.run("systemctl", "reset-failed")
        fleet.s.run("systemctl", "start", "viworks-host-helper.socket")
        fleet.systemctl("start", program)
    fleet.check_works()
