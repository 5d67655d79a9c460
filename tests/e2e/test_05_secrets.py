"""The canary: every shipped verb with unique secrets in every secret parameter, run by scripts that echo
them; then every place where one could have stayed is searched."""
import json
import os
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
import viwtest
from viwtest import ROOT, wait_for

SAMPLE = {"username": "bob", "ip": "192.0.2.9", "duration_s": 60, "unit": "nginx.service",
          "uuid": str(uuid.uuid4()), "int": 1, "bool": True}


def plant(root_dir):
    """The shipped manifests, each over a script that echoes all it is given, slowly enough to be looked at."""
    script = viwtest.write_script(root_dir / "echo.sh", """
echo "args: $*"; env | tr '\\n' ' '
while read -t 0.2 -r line; do echo "stdin: $line"; echo "err: $line password=$line" >&2; done
sleep 0.4; exit 3
""")
    (root_dir / "verbs.d").mkdir()
    verbs = {}
    for path in sorted((ROOT / "host-helper" / "verbs.d").glob("*.json")):
        m = json.loads(path.read_text())
        m.update(exec=str(script), writable_paths=[], capabilities=[])
        m.pop("$schema", None)
        out = root_dir / "verbs.d" / path.name
        out.write_text(json.dumps(m))
        out.chmod(0o644)
        verbs[m["verb"]] = m["params"]
    assert len(verbs) >= 10
    return verbs


def secret_args(verb, params, canaries):
    args = {}
    for name, p in params.items():
        if p["type"] == "secret":
            args[name] = f"cnry-{uuid.uuid4().hex[:20]}"
            canaries[args[name]] = f"{verb}.{name}"
        else:
            args[name] = p.get("words", [SAMPLE.get(p["type"], "x")])[0] if p["type"] == "enum" else \
                SAMPLE.get(p["type"], "x")
    return args


class ProcessWatch(threading.Thread):
    """Reads command line and environment of our programs and all their children, again and again."""

    def __init__(self, pids):
        super().__init__()
        self.pids, self.seen, self.done, self.rounds = set(pids), {}, threading.Event(), 0

    def run(self):
        while not self.done.wait(0.005):
            parents = {}
            for p in Path("/proc").glob("[0-9]*"):
                try:
                    parents[int(p.name)] = int((p / "stat").read_text().rsplit(")", 1)[1].split()[1])
                except (OSError, IndexError):
                    continue
            family = set(self.pids)
            while True:
                more = {pid for pid, parent in parents.items() if parent in family} - family
                if not more:
                    break
                family |= more
            for pid in family:
                for what in ("cmdline", "environ"):
                    try:
                        self.seen[(pid, what)] = self.seen.get((pid, what), b"") + \
                            self._new(pid, what, Path(f"/proc/{pid}/{what}").read_bytes())
                    except OSError:
                        continue
            self.rounds += 1

    def _new(self, pid, what, data):
        return b"" if data in self.seen.get((pid, what), b"") else data


def redis_bytes(client):
    """All keys and values Redis holds now."""
    out = []
    for key in client.scan_iter("*"):
        kind = client.type(key)
        read = {"stream": client.xrange, "hash": client.hgetall, "string": client.get, "set": client.smembers,
                "zset": lambda k: client.zrange(k, 0, -1), "list": lambda k: client.lrange(k, 0, -1)}[kind]
        out.append(f"{key} {read(key)}")
    return "\n".join(out).encode()


@pytest.mark.timeout(150)
def test_no_secret_stays_anywhere(chain, root_dir, tmp):
    verbs = plant(root_dir)
    canaries, commands = {}, {}
    chain.bridge.stop()
    chain.results_writer.stop()
    chain.start_bridge(AGENT_BRIDGE_VERBS_DIR=str(root_dir / "verbs.d"))
    chain.results_writer = chain.start("results-writer", env={
        "RESULTS_WRITER_REDIS_URL": chain.redis.url, "RESULTS_WRITER_DATABASE_URL": chain.pg.uri,
        "RESULTS_WRITER_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}", "RESULTS_WRITER_LOG_LEVEL": "debug",
        "RESULTS_WRITER_VERBS_DIR": str(root_dir / "verbs.d")})
    chain.start_helper(root_dir, HOST_HELPER_LOG_LEVEL="debug")
    chain.start_agent("gw-1", VIW_AGENT_LOG_LEVEL="debug")
    chain.pg.wait_row("SELECT 1 FROM os_gateways WHERE agent_id = 'gw-1' AND status = 'online'", timeout=20)
    programs = [chain.bridge, chain.telemetry_writer, chain.results_writer, chain.helper, chain.agent]
    watch = ProcessWatch([p.pid for p in programs])
    watch.start()
    try:
        for verb, params in verbs.items():
            cid = str(uuid.uuid4())
            commands[cid] = verb
            chain.redis.client.xadd("viw.commands", {
                "correlation_id": cid, "agent_id": "gw-1", "command": verb, "ttl_s": 120,
                "params": json.dumps(secret_args(verb, params, canaries))})
        # One that no manifest knows, secret by its name alone, and refused on the host.
        cid = str(uuid.uuid4())
        commands[cid] = "unknown"
        bare = f"cnry-{uuid.uuid4().hex[:20]}"
        canaries[bare] = "unknown.api_token"
        chain.redis.client.xadd("viw.commands", {"correlation_id": cid, "agent_id": "gw-1", "command": "unknown",
                                                 "ttl_s": 120, "params": json.dumps({"api_token": bare})})
        wait_for(lambda: chain.pg.query("SELECT count(*) AS n FROM agent_command_results")[0]["n"] == len(commands),
                 90, "all commands ended")
    finally:
        watch.done.set()
        watch.join()
    assert len(canaries) >= 6 and watch.rounds > 20

    rows = {str(r["correlation_id"]): r for r in chain.pg.query("SELECT * FROM agent_command_results")}
    ran = [rows[c] for c, verb in commands.items() if verb != "unknown"]
    # The scripts did run and did echo: masked, not empty.
    assert all(r["rc"] == 3 and "args:" in r["stdout_redacted"] for r in ran), [
        (commands[str(r["correlation_id"])], r["error_code"], r["error_msg"]) for r in ran]
    with_secrets = [r for r in ran if "stdin: " in r["stdout_redacted"]]
    assert with_secrets and all("stdin: ***" in r["stdout_redacted"] and "err: ***" in r["stderr_redacted"]
                                for r in with_secrets)

    places = {f"/proc/{pid}/{what}": data for (pid, what), data in watch.seen.items()}
    dump = subprocess.run([viwtest.pg_bindir() / "pg_dump", chain.pg.uri], stdout=subprocess.PIPE, check=True)
    places["pg_dump"] = dump.stdout
    for base in (tmp, root_dir):
        for path in base.rglob("*"):
            # Redis' own files hold the commands stream of its past: SECURITY.md says so.
            if path.is_file() and "appendonly" not in str(path):
                places[str(path)] = path.read_bytes()
    cores = [p for p in places if os.path.basename(p).startswith("core")]
    assert cores == []
    for p in programs:
        limits = Path(f"/proc/{p.pid}/limits").read_text()
        assert "Max core file size        0 " in limits, p.name
    hits = [(place, canaries[c]) for place, data in places.items() for c in canaries if c.encode() in data]
    assert hits == []
    # The search looked where it says: at the scripts themselves, each program's log, the journal, the rows.
    assert any(b"echo.sh" in data for (_, what), data in watch.seen.items() if what == "cmdline")
    assert all(str(p.log_path) in places for p in programs)
    assert len([p for p in places if p.startswith(str(root_dir / "state"))]) >= len(verbs)
    assert all(verb.encode() in places["pg_dump"] for verb in verbs)

    # Delivered entries are removed from Redis soon; until then the commands stream holds them.
    wait_for(lambda: not [n for c, n in canaries.items() if c.encode() in redis_bytes(chain.redis.client)], 30,
             "Redis holds no secret of a command that ended")
