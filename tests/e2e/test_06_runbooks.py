"""Runbooks: each begins with what is seen, and every command in them works as it stands, in blocks and
in the text alike, against the real chain with an operator's rights. What cannot run here is listed with
its reason."""
import os
import re
import subprocess

import pytest
import viwtest

FOLDER = viwtest.ROOT / "runbooks"
PAGES = sorted(FOLDER.glob("*.md"))
PROGRAMS = ("viwctl", "redis-cli", "psql", "curl", "openssl", "host-helper", "gateway-agent", "agent-bridge", "viw-migrate",
            "journalctl", "systemctl", "systemd-run", "df", "ls")
# The beginning of a command -> why it is not run here.
NOT_RUN = {
    "journalctl": "needs journald; the names of units are checked instead",
    "systemctl": "needs systemd as PID 1; the names of units are checked instead",
    "systemd-run": "needs systemd as PID 1; the same check is run without it",
    "gateway-agent check --dial": "takes the running agent's place for a minute; test_06_agent_operations.py runs it",
    "viwctl logs": "needs journald on the host; test_06_viwctl.py and test_05_helper_host.py run it",
}
LIVE = {"agent-offline.md", "commands-fail.md", "disk-full.md"}  # their $AGENT is connected


def blocks(text):
    """(language, body) of every fenced block."""
    return re.findall(r"^ *```(\S*(?: run)?)\n(.*?)^ *```", text, re.M | re.S)


def inline(text):
    """Commands in backquotes outside of blocks: a program of the list with arguments."""
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    return [c for c in re.findall(r"`([^`\n]+)`", outside) if c.split()[0] in PROGRAMS and " " in c]


def left_out(line):
    return next((why for begin, why in NOT_RUN.items() if line.strip().startswith(begin)), None)


def scripts(page):
    text = page.read_text()
    for language, body in blocks(text):
        if language == "sh run":
            yield "\n".join(line for line in body.splitlines() if not left_out(line))
    for command in inline(text):
        if not left_out(command):
            yield command


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "README.md"], ids=lambda p: p.name)
def test_a_page_begins_with_what_is_seen(page):
    text = page.read_text()
    assert re.match(r"# .+\n\n\*\*You see\*\* ", text)
    for language, body in blocks(text):
        assert language in ("", "sh run") or all(left_out(line) for line in body.splitlines()), body
    for unit in re.findall(r"(?:-u|--unit|status) (viworks-[\w.-]+)", text):
        name = unit if "." in unit else unit + ".service"
        assert (viwtest.ROOT / "compose" / "systemd" / name).exists(), unit


class World:
    """The chain with helper and agent, and what an operator and a site's root have in their environment."""

    def __init__(self, chain, ctl, root_dir, pki, tmp):
        self.chain, self.ctl, self.tmp = chain, ctl, tmp
        chain.start_helper(root_dir, HOST_HELPER_ALLOWED_UIDS=f"0,{viwtest_uid('nobody')}")
        chain.start_agent("gw-book")
        chain.pg.wait_row("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-book' AND metrics ->> 'helper' = 'up'")
        chain.pg.query("DO $$ BEGIN CREATE ROLE operator_login LOGIN IN ROLE viw_operator; "
                       "EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        pki._ca("next_ca", "/CN=Next Root")
        cert, key = pki.issue("next_server", "next_ca", "/CN=localhost", ["DNS:localhost"], usage="serverAuth")
        for name, source in (("next_client_ca.pem", pki.path("next_ca.pem")), ("next_server.pem", cert), ("next.key", key)):
            (tmp / name).write_bytes(open(source, "rb").read())
        (tmp / "admin.header").write_text("Authorization: Bearer a-test-admin-token\n")
        url = chain.pg.uri_as("operator_login")
        own = {k: v for p in (chain.bridge, chain.helper, chain.agent) for k, v in p.env.items()
               if k.startswith(("AGENT_BRIDGE_", "HOST_HELPER_", "VIW_AGENT_"))}
        self.env = {"PATH": f"{viwtest.helper_program().parent}:{viwtest.BIN}:{os.environ['PATH']}", "PAGER": "cat", "LANG": "C.UTF-8", "HOME": str(tmp),
                    "REDIS_URL": chain.redis.url, "DATABASE_URL": url, "OWNER_URL": chain.pg.uri, "BRIDGE": chain.http_url,
                    "ADMIN": str(tmp / "admin.header"), "VIWCTL_REDIS_URL": chain.redis.url, "VIWCTL_DATABASE_URL": url,
                    "VIWCTL_BRIDGE_URL": chain.http_url, "VIWCTL_ADMIN_TOKEN": "a-test-admin-token",
                    "VIWCTL_CA_DIR": str(tmp / "ca"), "ASAN_OPTIONS": "exitcode=99", **own}

    def prepare(self, page):
        """What a page's variables name: a gateway, its certificate, a command, a dead letter."""
        agent = "gw-book" if page.name in LIVE else "gw-" + page.stem
        if not (self.tmp / "ca").exists():
            assert self.ctl("enroll", "--init-ca").returncode == 0
        assert self.ctl("enroll", agent, "--out", self.tmp / page.stem).returncode == 0
        cid = self.ctl("send", "gw-book", "ECHO", "message=x").stdout.strip()
        self.chain.pg.wait_row("SELECT 1 FROM agent_command_results WHERE correlation_id = %s", cid)
        letter = self.chain.pg.query("INSERT INTO dead_letters (stream, entry_id, reason, payload) "
                                     "VALUES ('viw.commands', %s, 'x', '') RETURNING id", page.stem)[0]
        return {"AGENT": agent, "CID": cid, "FINGERPRINT": "ab" * 32, "LETTER": str(list(letter.values())[0])}


def viwtest_uid(name):
    import pwd
    return pwd.getpwnam(name).pw_uid


@pytest.mark.timeout(150)
def test_every_command_of_every_page_works(chain, ctl, root_dir, pki, tmp):
    chain.bridge.stop()
    chain.start_bridge(AGENT_BRIDGE_ADMIN_TOKEN="a-test-admin-token")
    world = World(chain, ctl, root_dir, pki, tmp)
    faults, ran = [], 0
    for page in PAGES:
        env = {**world.env, **world.prepare(page)}
        for script in scripts(page):
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=env, timeout=30, cwd=tmp,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            ran += 1
            if done.returncode or re.search(r"^\(error\)|^ERR |^NOAUTH|^FAIL|\"error\":", done.stdout, re.M):
                faults.append(f"{page.name}: exit {done.returncode}\n{script}\n{done.stdout}")
    assert ran >= 50 and not faults, f"{ran} ran\n" + "\n\n".join(faults)
