"""The deployment pages of docs/, run as written: one host under a real systemd, with its own Redis and
PostgreSQL, then a site with mTLS. Only what packages would put there is put by hand (the packages
themselves: ./viw package --check and ./viw first-day)."""
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import peers
import viwtest
from bridgetest import SECRET, Bridge
from realhost import Systemd, user_namespaces_work
from viwtest import ROOT, wait_for

RELEASE = Path(os.environ.get("VIW_RELEASE_BIN", ROOT / "build" / "release" / "bin"))
needs_machine = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (RELEASE / "viwctl").exists(), reason="needs the release build (./viw build release)"),
    pytest.mark.skipif(not shutil.which("pg_createcluster"), reason="needs postgresql-common"),
    pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="needs systemd")]


def blocks(page):
    return re.findall(r"^```sh run\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)


class Machine:
    """A bare host on which the packages have just been installed."""

    def __init__(self, s):
        self.s = s
        for program in ("agent-bridge", "telemetry-writer", "results-writer", *viwtest.HELPER_PROGRAMS, "gateway-agent", "viwctl",
                        "viw-migrate"):
            s.put(f"/usr/bin/{program}", RELEASE / program, mode=0o755)
        for unit in (ROOT / "compose" / "systemd").iterdir():
            s.put(f"/lib/systemd/system/{unit.name}", unit)
            if unit.suffix == ".service" and not user_namespaces_work() and "helper" not in unit.name:
                s.put(f"/etc/systemd/system/{unit.name}.d/test.conf", "[Service]\nPrivateUsers=no\n")
        if not user_namespaces_work():
            s.put("/etc/systemd/system/redis-server.service.d/test.conf", "[Service]\nPrivateUsers=no\n")
        for kind in ("sysusers", "tmpfiles"):
            for snippet in (ROOT / "debian").glob(f"*.{kind}"):
                s.put(f"/usr/lib/{kind}.d/{snippet.stem}.conf", snippet)
        for env in (ROOT / "debian" / "etc").iterdir():
            s.put(f"/etc/viworks/{env.name}", env)
        s.run("systemd-sysusers")
        s.run("systemd-tmpfiles", "--create", "--prefix=/run/viworks", "--prefix=/var/lib/viworks-helper", "--prefix=/etc/viworks")
        version = sorted(os.listdir("/usr/lib/postgresql"))[-1]
        s.run("bash", "-c", f"rm -rf /etc/postgresql/{version}/main /var/lib/postgresql/{version}/main; install -d -o postgres -g postgres /var/run/postgresql; "
                            f"pg_createcluster {version} main -- -N", timeout=60)
        s.run("systemctl", "daemon-reload")
        s.run("systemctl", "start", f"postgresql@{version}-main", timeout=60)

    def page(self, page, **env):
        """Runs the blocks of a page as root types them; returns what each printed."""
        out = []
        for block in blocks(page):
            done = self.s.run("env", "HOME=/root", *(f"{k}={v}" for k, v in env.items()), "bash", "-euo", "pipefail", "-c",
                              "cd /root\n" + block, check=False, timeout=60)
            assert done.returncode == 0, f"{page}: exit {done.returncode}\n{block}\n{done.stdout}\n" + "".join(
                self.s.journal(f"viworks-{u}")[-1500:] for u in ("agent-bridge", "results-writer", "gateway-agent", "host-helper"))
            out.append(done.stdout)
        return out


@pytest.fixture
def machine():
    dir = viwtest.make_root_dir()
    with Systemd(dir) as s:
        yield Machine(s)
    shutil.rmtree(dir, ignore_errors=True)


class TestMachine:
    pytestmark = needs_machine

    def test_one_host_then_a_site(self, machine):
        out = machine.page("deploy-systemd.md")
        assert "bad " not in out[3] and "status              done" in out[5], out
        assert "gw-1" in out[5] and "agent-bridge" in out[5]
        assert out[6].count(": configuration is valid") == 5, out[6]
        self.monitor(machine)
        machine.s.put("/etc/hosts", "127.0.0.1 localhost gateway.example.net\n")
        out = machine.page("split-site.md", NAME="gateway.example.net")
        assert "FAIL" not in out[2] and "stdout" in out[4] and "hello ann, from root on " in out[4], out
        assert "cert_days_left" in out[4]
        listed = machine.s.run("viwctl", "gateways").stdout
        assert re.search(r"gw-2 +online +north", listed), listed

    def monitor(self, machine):
        """Prometheus itself scrapes what the page says, and has loaded every alarm."""
        s = machine.s
        s.run("groupadd", "-f", "prometheus")
        for name in ("prometheus.yml", "alerts.yml"):
            s.put(f"/root/compose/prometheus/{name}", ROOT / "compose" / "prometheus" / name)
        s.run("mkdir", "-p", "/root/data")
        s.put("/etc/systemd/system/prometheus.service", "[Service]\nExecStart=/usr/bin/prometheus --config.file="
              "/etc/prometheus/prometheus.yml --storage.tsdb.path=/root/data --web.listen-address=127.0.0.1:9090\n")
        s.run("systemctl", "daemon-reload")
        machine.page("monitoring.md")

        def ask(path):
            done = s.run("curl", "-s", f"http://127.0.0.1:9090/api/v1/{path}", check=False).stdout
            return json.loads(done)["data"] if done.startswith("{") else {}

        def targets():
            return {t["labels"]["job"]: (t["health"], t["lastError"]) for t in ask("targets").get("activeTargets", [])}
        programs = ("agent-bridge", "telemetry-writer", "results-writer")
        wait_for(lambda: targets() == {p: ("up", "") for p in programs}, 60, f"all are scraped: {targets()}", every=0.5)
        rules = [r for g in ask("rules")["groups"] for r in g["rules"]]
        assert {r["name"] for r in rules if r["type"] == "alerting"} == set(
            re.findall(r"alert: (\w+)", (ROOT / "compose" / "prometheus" / "alerts.yml").read_text()))
        gateways = ask("query?query=viw_gateways")["result"]
        assert {g["metric"]["status"] for g in gateways} == {"expected", "online", "offline", "decommissioned"}
        s.run("systemctl", "stop", "prometheus")

    def test_an_agent_on_the_host_becomes_a_container_and_nothing_else_changes(self, machine):
        """The container itself: test_06_agent_deploy.py. Here its user, its id, its view of the helper."""
        s = machine.s
        machine.page("deploy-systemd.md")
        health = ("viwctl", "send", "gw-1", "get_system_health", "--wait", "--json")
        before = json.loads(s.run(*health).stdout.splitlines()[-1])
        machine.page("migrate-agent.md")
        s.run("systemctl", "disable", "--now", "viworks-gateway-agent")
        waits = s.run("viwctl", "send", "gw-1", "ECHO", "message=meanwhile", "--ttl", "300").stdout.strip()
        s.put("/root/container.env", "\n".join([
            "VIW_AGENT_ID=gw-1", "VIW_AGENT_BACKEND_URL=ws://127.0.0.1:8082/agent/ws", "VIW_AGENT_STATE_DIR=/tmp",
            "VIW_AGENT_SHARED_SECRET_FILE=/root/secrets/shared", "VIW_AGENT_HELPER_SECRET_FILE=/root/secrets/helper",
            "VIW_AGENT_HELPER_SOCKET=/srv/helper.sock", "VIW_AGENT_SCRIPTS_ROOT=/opt/Viworks/scripts_viworks", "VIW_AGENT_CONTAINER_ENGINE=podman", ""]))
        s.run("bash", "-ec", "chmod 711 /root; install -d -m 711 /root/secrets; "
              "install -m 400 -o 65534 /etc/viworks/agent-bridge.shared-secret /root/secrets/shared; "
              "install -m 400 -o 65534 /etc/viworks/host_helper.secret /root/secrets/helper")
        s.run("systemd-run", "--unit=container", "-p", "User=65534", "-p", "Group=65534", "-p",
              "EnvironmentFile=/root/container.env", "-p", "TemporaryFileSystem=/srv /etc/viworks", "-p",
              "BindPaths=/run/viworks/host_helper.sock:/srv/helper.sock", "gateway-agent")  # as compose mounts it
        done = wait_for(lambda: '"done"' in s.run("viwctl", "command", waits, "--json", check=False).stdout, 30,
                        "what was sent meanwhile is done\n" + s.journal("container"))
        after = json.loads(s.run(*health).stdout.splitlines()[-1])
        assert done and after.keys() == before.keys() and after["status"] == "done"
        log = s.journal("container")
        assert "HOST_HELPER_VERBS_DIR" in log and "HOST_HELPER_ENGINE_SOCKET" in log, "old settings are named"


def settings(page):
    """The ini blocks of a page as dicts, with what a comment names as the file."""
    found = {}
    for block in re.findall(r"^```ini\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S):
        lines = block.splitlines()
        found[lines[0].lstrip("# ")] = [line for line in lines[1:]]
    return found


class TestTwoBridges:
    def test_the_settings_of_the_page_are_settings(self, pki):
        for where, lines in settings("two-bridges.md").items():
            program = "gateway-agent" if "gateway-agent.env" in where else "agent-bridge" if "agent-bridge" in where else None
            if not program:
                assert lines[0].startswith("postgresql://") and "target_session_attrs=read-write" in lines[0]
                continue
            env = dict(line.split("=", 1) for line in lines)
            env |= {"VIW_AGENT_ID": "gw-1", "VIW_AGENT_SHARED_SECRET": SECRET, "VIW_AGENT_TRUST_BUNDLE": pki.path("ca.pem")} if program == "gateway-agent" else {"AGENT_BRIDGE_SHARED_SECRET": SECRET}
            done = subprocess.run([viwtest.BIN / program, "--check-config"], env=env, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
            assert done.returncode == 0, done.stdout

    def test_an_agent_goes_to_the_other_bridge(self, start, redis, connect, tmp):
        a, b = (Bridge(start, redis, connect, id=f"bridge-{n}") for n in "ab")
        agent = start("gateway-agent", env=peers.agent_env(tmp, f"{a.url()},{b.url()}", VIW_AGENT_SHARED_SECRET=SECRET))
        agent.wait_log("connected")
        here, other = (a, b) if a.get("/internal/agent/agents")["agents"] else (b, a)
        here.proc.signal(signal.SIGTERM)
        wait_for(lambda: other.get("/internal/agent/agents")["agents"], 15, "it is at the other one")

    @pytest.mark.timeout(90)
    def test_the_standby_of_the_page_follows_and_is_promoted(self, pg_server):
        from viwtest import PgServer, Proc, pg_bindir
        first, make, promote = blocks("two-bridges.md")
        primary, standby = pg_server, PgServer()
        primary.stop()
        primary.start("-c", "synchronous_commit=on", "-c", "wal_level=replica", "-c", "max_wal_senders=4")
        env = {"PATH": f"{pg_bindir()}:/usr/bin:/bin", "PRIMARY": primary.uri("postgres"), "STANDBY_DATA": str(standby.dir / "data"),
               "STANDBY": standby.uri("postgres"), "LANG": "C.UTF-8"}

        def run(block):
            who = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
            done = subprocess.run([*who, "bash", "-euo", "pipefail", "-c", block], env=env, cwd="/", text=True, timeout=40,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert done.returncode == 0, f"{block}\n{done.stdout}"
            return done.stdout
        try:
            run(first)
            standby.proc = Proc([pg_bindir() / "postgres", "-D", standby.dir / "data", "-k", standby.dir, "-p", standby.port,
                                 "-h", "127.0.0.1"], name="postgres", dir=standby.dir, user=standby.user)
            wait_for(lambda: "streaming" in run(make), 20, "the standby streams", every=0.3)
            primary.sql("postgres", "CREATE TABLE kept (n int)")
            primary.sql("postgres", "INSERT INTO kept VALUES (7)")
            primary.kill()
            run(promote)
            conn = standby.connect("postgres")
            with conn.cursor() as cur:
                cur.execute("INSERT INTO kept VALUES (8)")
                cur.execute("SELECT sum(n) FROM kept")
                assert cur.fetchone() == (15,)
            conn.close()
        finally:
            standby.close()


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as ./viw up does")
def test_quick_start():
    from test_06_up import Viw
    dir = viwtest.make_root_dir()
    viw = Viw(dir)
    once, files, send = (b.replace(".run/", f"{viw.up_dir}/").replace(f"$PWD/{viw.up_dir}", str(viw.up_dir))
                         for b in blocks("quick-start.md"))

    def run(block):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], env=viw.env, cwd=ROOT, text=True, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{block}\n{done.stdout}"
        return done.stdout
    up = None
    try:
        run(once)
        run(files)
        log = open(dir / "out", "w+")
        up = subprocess.Popen(["env", "--default-signal=INT", ROOT / "viw", "up"], env=viw.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(lambda: "Ctrl-C ends" in (dir / "out").read_text() or up.poll() is not None, 60, "up stays")
        out = run(send)
        assert re.search(r"greet-1 *\| done *\| *0 \| hello ann, from ", out), out
        assert re.search(r"greet-2 *\| failed .*bad_args|greet-2 *\| failed .*name", out), out
    finally:
        if up:
            os.killpg(up.pid, signal.SIGINT)  # as a terminal does
            up.wait(30)
        viw("down")
        shutil.rmtree(dir, ignore_errors=True)
