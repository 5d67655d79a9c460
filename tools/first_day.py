#!/usr/bin/python3
"""first_day.py ROOT DEBS NEXT OUT: a new operator's first day, on two bare Debian machines with a systemd each.

ROOT is a bare Debian with the packages' dependencies in apt's cache, DEBS and NEXT hold the packages and the
next version's. Every command below is run, what it must print is checked, and OUT becomes the transcript.
`./viw first-day` makes all of these.
"""
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "lib"))
import viwtest  # noqa: E402
from realhost import Systemd  # noqa: E402

HEAD = """# A first day

Two bare Debian machines, `hub` and `site-1`, and a new operator: install, enroll, send, read logs, rotate a
certificate, upgrade, revoke. `./viw first-day` runs every command below on two machines with a systemd each and writes
this page; nothing here is typed by hand. In parentheses: how long the command took, and the time since the start. (Debian's
own packages came from a cache, and the two machines share one network.)

"""


class Day:
    def __init__(self, root, debs, next_debs):
        self.root, self.debs, self.next_debs = root, debs, next_debs
        self.out, self.began, self.machines, self.dirs = [HEAD], time.monotonic(), {}, []

    def boot(self, name, beside=None):
        dir = viwtest.make_tmp()
        self.dirs.append(dir)
        m = Systemd(dir, root=self.root, name=name, size="3g", beside=beside)
        m.__enter__()
        self.machines[name] = m
        m.put("/etc/hosts", "127.0.0.1 localhost\n127.0.0.1 gateway.example.net\n")
        for debs, where in ((self.debs, "/root/packages"), (self.next_debs, "/root/next")):
            m.run("mkdir", "-p", where)
            for deb in sorted(Path(debs).glob("*.deb")):
                m.put(f"{where}/{deb.name}", deb)
        m.put("/root/run.sh", "export HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; cd /root; eval \"$1\"\n")
        return m

    def say(self, text):
        self.out.append(text.rstrip() + "\n\n")

    def run(self, name, command, expect=None, lines=12, code=0, timeout=300):
        """The command as typed on that machine; expect must be found in what it prints."""
        t = time.monotonic()
        done = self.machines[name].run("bash", "/root/run.sh", command, check=False, timeout=timeout)
        took, since = time.monotonic() - t, time.monotonic() - self.began
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).rstrip()
        print(f"{name}# {command}\n{text}\n({took:.1f} s, {since:.0f} s)\n", flush=True)
        if done.returncode != code or (expect and not re.search(expect, text, re.M)):
            why = self.machines[name].run("journalctl", "-o", "cat", "-n", "30", "--no-pager", check=False).stdout
            raise SystemExit(f"{why}\nfirst-day: {name}# {command}\nended with {done.returncode}, wanted {code} and /{expect}/")
        shown = text.splitlines()
        if len(shown) > lines:
            shown = [*shown[:lines], f"… {len(shown) - lines} more lines"]
        body = "\n".join([f"{name}# {command}", *[s[:180] for s in shown]])
        self.out.append(f"```console\n{body}\n```\n({took:.1f} s, {since:.0f} s)\n\n")
        return text

    def wait(self, name, command, expect, timeout=30):
        """Until the command prints it; not shown."""
        viwtest.wait_for(lambda: re.search(expect, self.machines[name].run(
            "bash", "/root/run.sh", command, check=False).stdout, re.M), timeout, f"{name}# {command}: /{expect}/", every=0.3)

    def carry(self, folder, to):
        """A folder from hub to the site, as scp would."""
        tar = subprocess.run(["tar", "-c", "-C", f"/proc/{self.machines['hub'].init}/root/root", folder], check=True,
                             stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", f"/proc/{self.machines[to].init}/root/root"], input=tar, check=True)

    def close(self):
        for m in reversed(self.machines.values()):
            m.__exit__()
        for d in self.dirs:
            shutil.rmtree(d, ignore_errors=True)


def install_hub(d):
    d.say("## The hub: bridge, writers, Redis, PostgreSQL")
    d.run("hub", "apt-get -qq -y install redis-server postgresql ./packages/viworks-agent-bridge_*.deb "
                 "./packages/viworks-workers_*.deb ./packages/viwctl_*.deb >/dev/null 2>&1; dpkg-query -W 'viw*'",
          expect="viworks-agent-bridge")
    d.say("Redis keeps what it is given, on disk:")
    d.run("hub", "printf 'appendonly yes\\nmaxmemory-policy noeviction\\n' >>/etc/redis/redis.conf && "
                 "systemctl restart redis-server && redis-cli CONFIG GET appendonly", expect="yes")
    d.say("The database. The writers come over the Unix socket as their own user, so there is no password:")
    d.run("hub", "cd / && su postgres -c 'createdb viw && createuser viworks-writer && createuser root && "
                 "viw-migrate postgresql:///viw'", expect="0003")
    d.run("hub", "cd / && su postgres -c \"psql -q viw\" <<<'GRANT viw_telemetry_writer, viw_results_writer TO \"viworks-writer\"; "
                 "GRANT viw_operator TO root'")
    d.run("hub", "umask 077; for w in telemetry results; do echo 'postgresql:///viw?host=/run/postgresql' "
                 ">/etc/viworks/$w-writer.database-url; done; systemctl enable -q --now viworks-telemetry-writer "
                 "viworks-results-writer && systemctl is-active viworks-telemetry-writer viworks-results-writer",
          expect="active\nactive")
    d.say("Certificates: a CA of our own, which signs the bridge's certificate and the agents'.")
    d.run("hub", "viwctl enroll --init-ca && mkdir -p /etc/viworks/tls && "
                 "viwctl enroll --server gateway.example.net --out /etc/viworks/tls", expect="server.key")
    d.run("hub", "install -m 0644 /etc/viworks/ca/ca.crt /etc/viworks/ca/crl.pem /etc/viworks/tls && "
                 "chown viworks-bridge: /etc/viworks/tls/server.key && ls -l /etc/viworks/tls")
    d.run("hub", "cat >/etc/viworks/agent-bridge.env <<'END'\nAGENT_BRIDGE_TLS_CERT=/etc/viworks/tls/server.crt\n"
                 "AGENT_BRIDGE_TLS_KEY=/etc/viworks/tls/server.key\nAGENT_BRIDGE_TLS_CLIENT_CA=/etc/viworks/tls/ca.crt\n"
                 "AGENT_BRIDGE_TLS_CRL=/etc/viworks/tls/crl.pem\nAGENT_BRIDGE_INTERNAL_BIND=127.0.0.1:8081\nEND\n"
                 "systemctl enable -q --now viworks-agent-bridge && systemctl is-active viworks-agent-bridge", expect="active")
    d.say("`viwctl` reads its settings from one file. `doctor` looks at everything; a bridge that has just begun makes its group "
          "in Redis within a second.")
    d.run("hub", "cat >/etc/viworks/viwctl.toml <<'END'\ndatabase_url = \"postgresql:///viw?host=/run/postgresql\"\n"
                 "bridge_url = \"http://127.0.0.1:8081\"\nadmin_token_file = \"/etc/viworks/agent-bridge.admin-token\"\nEND")
    d.wait("hub", "viwctl doctor", r"\A(ok .*\n)+\Z")
    d.run("hub", "viwctl doctor", lines=40, expect=r"\A(ok .*\n?)+\Z")


def install_site(d):
    d.say("## The first site")
    d.run("hub", "viwctl enroll site-1 --site lab --backend wss://gateway.example.net:8082/agent/ws "
                 "--shared-secret /etc/viworks/agent-bridge.shared-secret", expect="install.sh")
    d.run("site-1", "apt-get -qq -y install ./packages/viworks-gateway-agent_*.deb ./packages/viworks-host-helper_*.deb "
                    ">/dev/null 2>&1; dpkg-query -W 'viw*'", expect="viworks-host-helper")
    d.say("The folder `site-1` goes to the site over a safe way (`scp -r site-1 root@site-1:`).")
    d.carry("site-1", "site-1")
    d.run("site-1", "./site-1/install.sh && rm -r site-1 && systemctl is-active viworks-gateway-agent", expect="^active")
    d.wait("hub", "viwctl gateways", "site-1 .*online")
    d.run("hub", "viwctl gateways", expect="site-1")
    d.run("site-1", "gateway-agent status", lines=20)


def work(d):
    d.say("## Commands and logs")
    d.run("hub", "viwctl send site-1 ECHO message=hello --wait", expect="hello")
    d.run("hub", "viwctl send site-1 get_service_status unit=dbus.service --wait", expect="running")
    d.say("One that changes the host: the helper runs it once, whatever happens on the way.")
    d.run("hub", "viwctl send site-1 create_panel_user username=alice userpass=correct-horse-9 --wait", expect="alice")
    d.run("site-1", "getent passwd alice", expect="alice")
    d.run("hub", "viwctl send site-1 list_users --wait", expect="alice")
    d.run("hub", "psql -d viw -h /run/postgresql -c 'SELECT command, status, rc, duration_ms FROM agent_command_results ORDER BY id'",
          expect="create_panel_user", lines=20)
    d.say("The site's logs, through the same connection:")
    d.run("hub", "viwctl logs site-1 --unit viworks-gateway-agent.service", expect="connect|ready|welcome", lines=6)


def rotate(d):
    d.say("## A new certificate for the site\n\nThe agent sees the new pair by itself and connects anew with it; nothing is restarted.")
    d.run("hub", "viwctl enroll site-1 --out site-1-new", expect="fingerprint")
    d.carry("site-1-new", "site-1")
    d.run("site-1", "install -m 0400 -o viworks-agent -g viworks site-1-new/agent.key /etc/viworks/agent.key && "
                    "install -m 0644 site-1-new/agent.crt /etc/viworks/agent.crt && rm -r site-1-new")
    d.run("site-1", "openssl x509 -in /etc/viworks/agent.crt -noout -fingerprint -sha256", expect="Fingerprint")
    d.wait("site-1", "journalctl -u viworks-gateway-agent -o cat", "dialling anew(.*\n)+.*welcomed")
    d.run("site-1", "journalctl -u viworks-gateway-agent -o cat -n 4", expect="dialling anew")
    d.wait("site-1", "gateway-agent status", "^link +ready")
    d.run("site-1", "gateway-agent check", lines=20)
    d.run("hub", "viwctl send site-1 ECHO message=new-certificate --wait", expect="new-certificate")


def upgrade(d):
    d.say("## An upgrade\n\nFirst the hub, then the sites; settings stay, what runs is restarted, and commands sent meanwhile "
          "are waited for. (The next version here is the same programs under a higher number.)")
    cid = "upgrade-1"
    d.run("hub", f"redis-cli XADD viw.commands '*' correlation_id {cid} agent_id site-1 command list_users ttl_s 300 && "
                 "apt-get -qq -y install ./next/viworks-agent-bridge_*.deb ./next/viworks-workers_*.deb ./next/viwctl_*.deb "
                 ">/dev/null 2>&1; dpkg-query -W 'viw*'; systemctl is-active viworks-agent-bridge "
                 "viworks-telemetry-writer viworks-results-writer", expect="next[^$]*active\nactive\nactive")
    d.run("site-1", "apt-get -qq -y install ./next/viworks-gateway-agent_*.deb ./next/viworks-host-helper_*.deb "
                    ">/dev/null 2>&1; dpkg-query -W 'viw*'; systemctl is-active viworks-gateway-agent",
          expect="next[^$]*active")
    d.say("What runs is the new file of each program, not the deleted one:")
    for name, units in (("hub", "agent-bridge telemetry-writer results-writer"), ("site-1", "gateway-agent host-helper")):
        shown = d.run(name, f"for u in {units}; do readlink /proc/$(systemctl show -P MainPID viworks-$u)/exe; done",
                      expect="/usr/bin/")
        assert "deleted" not in shown and len(shown.split()) == len(units.split()), shown
    d.wait("hub", "viwctl gateways", "site-1 .*online")
    d.wait("hub", f"viwctl command {cid}", "done")
    d.run("hub", f"viwctl command {cid}", expect="done", lines=20)
    d.run("hub", "grep -c TLS_CERT /etc/viworks/agent-bridge.env; viwctl doctor | tail -5", expect="^1")


def revoke(d):
    d.say("## The site is given up")
    d.run("hub", "viwctl enroll --revoke site-1 && install -m 0644 /etc/viworks/ca/crl.pem /etc/viworks/tls/", expect="revoked")
    d.wait("hub", "viwctl gateways", "site-1 .*offline")
    d.run("hub", "viwctl gateways", expect="offline")
    d.wait("site-1", "journalctl -u viworks-gateway-agent -o cat", "revoked|4003|refused")
    d.run("site-1", "journalctl -u viworks-gateway-agent -o cat -n 3", expect="revoked|4003|refused")


def main():
    root, debs, next_debs, out = sys.argv[1:5]
    d = Day(root, debs, next_debs)
    try:
        d.boot("hub")
        d.boot("site-1", beside=d.machines["hub"])
        for chapter in (install_hub, install_site, work, rotate, upgrade, revoke):
            chapter(d)
        d.say(f"In all: {time.monotonic() - d.began:.0f} seconds.")
        Path(out).write_text("".join(d.out).rstrip() + "\n")
    finally:
        d.close()


main()
