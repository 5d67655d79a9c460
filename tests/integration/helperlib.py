"""host-helper under test: its private directories, its verbs, and a client of its socket."""
import json
import os
import signal
import socket
import time
import uuid
from pathlib import Path

import viwtest
from viwtest import HelperClient, rfc3339, wait_for, write_script, write_secret, write_verb

KEY = "0123456789abcdef0123456789abcdef"


def silent_engine(path):
    """A listening engine socket that is root's alone and answers nothing by itself."""
    engine = socket.socket(socket.AF_UNIX)
    engine.bind(str(path))
    path.chmod(0o600)
    engine.listen()
    engine.settimeout(10)
    return engine


class Helper:
    """host-helper in a root-only directory; start(), kill() and start() again as a test needs."""

    def __init__(self, start, root, **env):
        self._start, self.root = start, Path(root)
        self.socket = self.root / "run" / "helper.sock"
        self.state = self.root / "state"
        self.verbs = self.root / "verbs.d"
        self.scripts = self.root / "scripts"
        for d in (self.root / "run", self.verbs, self.scripts):
            d.mkdir(mode=0o755, exist_ok=True)
        self.ledger = self.root / "ledger"
        self.secret = write_secret(self.root / "secret", KEY)
        self.env = {"HOST_HELPER_SOCKET": str(self.socket), "HOST_HELPER_SOCKET_GROUP": "0",
                    "HOST_HELPER_SECRET_FILE": str(self.secret), "HOST_HELPER_VERBS_DIR": str(self.verbs),
                    "HOST_HELPER_STATE_DIR": str(self.state), "HOST_HELPER_ALLOWED_UIDS": "0",
                    "HOST_HELPER_ENGINE_SOCKET": str(self.root / "no-engine.sock")}
        self.env.update(env)
        self.proc = None

    def start(self, **env):
        self.env.update(env)
        self.proc = self._start("host-helper", env=self.env)
        self.proc.wait_log("ready")
        return self

    def stop(self):
        return self.proc.stop()

    def kill(self):
        self.proc.kill()

    def client(self, **kw):
        return HelperClient(self.socket, KEY, **kw)

    def call(self, **fields):
        """One request on a connection of its own."""
        c = self.client(timeout=fields.pop("timeout", 20.0))
        try:
            return c.call(**fields)
        finally:
            c.close()

    def run(self, verb, args=None, cid=None, deadline=60, **fields):
        return self.call(verb=verb, args={} if args is None else args,
                         correlation_id=cid or str(uuid.uuid4()), deadline=rfc3339(deadline), **fields)

    def query(self, cid, op="query", **fields):
        return self.call(op=op, correlation_id=cid, **fields)

    def verb(self, name, body=None, argv=(), params=None, **fields):
        """A script and its manifest. Every script appends `start` and `end` lines to the ledger."""
        path = self.scripts / f"{name}.sh"
        if body is not None:
            write_script(path, body.replace("LEDGER", str(self.ledger)))
        write_verb(self.verbs, name, path, argv, params, **fields)
        return path

    def ledger_lines(self):
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    def starts(self, cid):
        return sum(1 for l in self.ledger_lines() if l == f"start {cid}")

    def journal_files(self):
        d = self.state / "journal"
        return sorted(p for p in d.iterdir() if not p.name.startswith("."))

    def audit(self):
        return [json.loads(l) for l in (self.state / "audit.log").read_text().splitlines()]


MARK = 'echo "start $VIW_CORRELATION_ID" >> LEDGER\n'
END = 'echo "end $VIW_CORRELATION_ID" >> LEDGER\n'


def code(reply):
    assert reply is not None, "the connection was closed without a reply"
    return reply.get("error", {}).get("code")


def reload(helper):
    n = len(helper.proc.find_logs("verbs_loaded"))
    helper.proc.signal(signal.SIGHUP)
    helper.proc.wait_log("verbs_loaded", count=n + 1)


def supervisor_of(pid):
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rsplit(")", 1)[1].split()[1])


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# A daemon as by the book: forks, new session, forks again, forgets its environment, descriptors and folder; keeps forking.
DAEMON = """import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.chdir("/")
for fd in range(3): os.close(fd)
os.environ.clear()
os.execve(sys.executable, ["unrelated", "-c", '''
import os, signal, time
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
open("PIDS", "a").write(f"{os.getpid()}\\\\n")
while True:
    time.sleep(0.01)
    if os.fork(): os._exit(0)
    open("PIDS", "a").write(f"{os.getpid()}\\\\n")
'''], {})
"""


def daemon(helper, name, then, **fields):
    """A verb that starts such a daemon as `nobody` and then does something."""
    pids = helper.root / "pids"
    pids.touch()
    os.chown(pids, 65534, 65534)
    helper.root.chmod(0o711)
    program = helper.scripts / "daemon.py"
    program.write_text(DAEMON.replace("PIDS", str(pids)))
    program.chmod(0o644)
    helper.verb(name, f"/usr/bin/python3 {program}; while [ ! -s {pids} ]; do sleep 0.01; done; {then}", **fields)
    return pids


def all_dead(pids):
    return not any(alive(int(p)) for p in pids.read_text().split())


def quiet(pids):
    """Dead, and nothing writes its pid any more; it forks many times meanwhile when it lives."""
    before = pids.read_text()
    time.sleep(0.3)
    return pids.read_text() == before and all_dead(pids)
