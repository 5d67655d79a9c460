"""Everything that runs: Redis, PostgreSQL, bridges, writers, hosts (helper and agent), plain agents,
and a proxy on every link. What dies is started again by `tend`."""
import os
import random
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import viwtest
from clients import PlainAgent
from links import Link, Loop

SECRET = "chaos-shared-secret-0123456789abcdef"
HELPER_KEY = "chaos-helper-key-0123456789abcdef0123"
SCRIPT = r"""
echo "$1 $$ start 0" >>"$4"
[ "$3" = 0 ] || sleep "$3"
echo "$1 $$ end $2" >>"$4"
exit "$2"
"""


class Ledger:
    """The truth about executions, outside of the system: one line a start, one an end."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.touch(0o666)
        self.fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def write(self, cid, what, rc):
        os.write(self.fd, f"{cid} {os.getpid()} {what} {rc}\n".encode())

    def read(self):
        """correlation_id -> [starts, [rc of each end]]"""
        seen = {}
        for line in self.path.read_text().splitlines():
            cid, _pid, what, rc = line.split()
            entry = seen.setdefault(cid, [0, []])
            if what == "start":
                entry[0] += 1
            else:
                entry[1].append(int(rc))
        return seen


class Clock:
    """The file behind VIW_CLOCK_FILE of one program."""

    def __init__(self, path):
        self.path = path
        self.jump(0)

    def jump(self, ms):
        with open(self.path, "r+b" if self.path.exists() else "wb") as f:
            f.write(struct.pack("=q", ms))


class Arm:
    """The file behind VIW_CRASH_ARM: which crash point kills, at which passing."""

    def __init__(self, path):
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(128))

    def _put(self, at, data):
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(data)

    def set(self, name, passings):
        self._put(0, struct.pack("=q", 0))
        self._put(8, name.encode().ljust(120, b"\0"))
        self._put(0, struct.pack("=q", passings))

    def clear(self):
        self._put(0, struct.pack("=q", 0))


class Program:
    """One of our programs, and how to start it again."""

    def __init__(self, world, name, binary, env, args=(), user=None):
        self.world, self.name, self.binary, self.args, self.user = world, name, binary, args, user
        self.clock = Clock(world.dir / f"clock.{name}")
        self.arm = Arm(world.dir / f"arm.{binary if binary == 'agent-bridge' else name}")  # bridges share one
        self.env = {**env, "VIW_CLOCK_FILE": self.clock.path, "VIW_CRASH_ARM": self.arm.path,
                    "VIW_CRASH_LOG": world.crash_log,
                    "VIW_CRASH_OFF": world.off}
        self.proc, self.wanted, self.frozen, self.start_after = None, True, False, 0.0
        self.starts, self.first_size, self.unexpected = 0, None, []

    def start(self):
        dir = self.world.dir / "logs" / self.name
        dir.mkdir(parents=True, exist_ok=True)
        path = viwtest.helper_program() if self.binary == "host-helper" else viwtest.BIN / self.binary
        self.proc = viwtest.Proc([path, *self.args], name=self.name, dir=dir, env=self.env, user=self.user)
        self.starts += 1
        self.started, self.first_size = time.monotonic(), None
        return self

    def kill(self, restart_after=0.0):
        self.thaw()
        if self.proc:
            self.proc.kill()
        self.start_after = time.monotonic() + restart_after

    def freeze(self):
        self.frozen = True
        self.proc.freeze()

    def thaw(self):
        if self.frozen and self.proc.alive:
            self.proc.thaw()
        self.frozen = False

    def tend(self):
        """Starts it again when it died; an exit nobody asked for is noted."""
        if self.proc.alive:
            if self.first_size is None and time.monotonic() - self.started > 3:
                self.first_size = self.size()
            return
        code = self.proc.returncode
        if code not in (-9, 0, 69) and not getattr(self, "noted", None) == self.proc.pid:
            self.noted = self.proc.pid
            self.unexpected.append(f"{self.name} ended with {code}: {self.proc.tail(12)}")
        if self.wanted and time.monotonic() >= self.start_after:
            self.start_after = time.monotonic() + 0.5
            self.start()

    def size(self):
        """(descriptors, resident KiB)"""
        try:
            fds = len(os.listdir(f"/proc/{self.proc.pid}/fd"))
            rss = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.proc.pid}/status").read_text())[1])
            return fds, rss
        except (OSError, TypeError):
            return None


class Host:
    """A site: a helper with its journal on a disk of its own, and the agent that uses it."""

    def __init__(self, world, i):
        self.world, self.agent_id = world, f"host-{i}"
        self.dir = world.root_dir / self.agent_id
        self.disk = self.dir / "disk"
        self.disk.mkdir(parents=True)
        world.mount(self.disk, "24m")
        (self.disk / "state").mkdir(mode=0o700)
        self.hurt = []  # (time, what) of faults that may leave an outcome unknown here
        key = viwtest.write_secret(self.dir / "secret", HELPER_KEY)
        self.helper = Program(world, f"helper-{i}", "host-helper", {
            "HOST_HELPER_SOCKET": self.dir / "sock", "HOST_HELPER_SECRET_FILE": key,
            "HOST_HELPER_VERBS_DIR": world.verbs_dir, "HOST_HELPER_STATE_DIR": self.disk / "state",
            "HOST_HELPER_ALLOWED_UIDS": "0,65534", "HOST_HELPER_SOCKET_GROUP": "0"})
        self.helper.host = self
        self.helper.start()
        viwtest.wait_for((self.dir / "sock").exists, what=f"socket of {self.helper.name}\n{self.helper.proc.tail()}")
        self.link = Link(world.loop, f"helper-link-{i}", self.dir / "sock", world.rng, self.dir / "link")
        state = self.dir / "agent"
        state.mkdir()
        self.env = {
            "VIW_AGENT_ID": self.agent_id, "VIW_AGENT_SITE": "chaos",
            "VIW_AGENT_BACKEND_URL": ",".join(world.ws_urls(i)),
            "VIW_AGENT_SHARED_SECRET": SECRET, "VIW_AGENT_HELPER_SECRET": HELPER_KEY,
            "VIW_AGENT_HELPER_SOCKET": self.dir / "link", "VIW_AGENT_STATE_DIR": state,
            "VIW_AGENT_FEATURE_EXEC_ENABLE": "true", "VIW_AGENT_TELEMETRY_INTERVAL_S": "5"}
        self.agent = Program(world, f"agent-{i}", "gateway-agent", self.env, ["run"]).start()
        self.agent.host = self
        self.twin = None


class World:
    def __init__(self, seed, *, bridges=3, hosts=4, plain=8, off="", keep=False, log=print):
        self.seed, self.rng, self.off, self.keep, self.log = seed, random.Random(seed), off, keep, log
        self.mounts, self.programs, self._backend = [], [], None
        self.dir = viwtest.make_tmp()
        self.root_dir = viwtest.make_root_dir()
        self.crash_log = self.dir / "crash.log"
        self.crash_log.touch()
        self.crash_log.chmod(0o666)
        self.loop = Loop()
        self.ledger = Ledger(self.root_dir / "ledger")
        self._verbs()
        self._stores()
        self.bridges = [self._bridge(i) for i in range(bridges)]
        self.results = self._writer("results-writer", "RESULTS_WRITER")
        self.telemetry = self._writer("telemetry-writer", "TELEMETRY_WRITER")
        for b in self.bridges:
            self._listening(b)
        self.hosts = [Host(self, i) for i in range(hosts)]
        self.plain = [PlainAgent(self.loop, f"plain-{i}", self.ws_urls(i), SECRET, self.ledger, self.rng)
                      for i in range(plain)]
        self.programs = [*self.bridges, self.results, self.telemetry,
                         *(p for h in self.hosts for p in (h.helper, h.agent))]

        self.all_sent, self.data_losses, self.has_lost = {}, [], False
        self.prepare_redis()

    @property
    def backend(self):
        """The backend's own way to Redis; it does not wait for ever."""
        if self._backend is None:
            import redis
            self._backend = redis.Redis(unix_socket_path=self.redis.socket, decode_responses=True, socket_timeout=0.5)
        return self._backend

    def prepare_redis(self):
        self.backend.sadd("viw.decommissioned", "gone-1")

    def lost_data(self, how):
        """Redis loses what it knew; ids it had not shown to anybody may be gone without a row."""
        self.data_losses.append(time.time() + 1)
        self.has_lost = True
        how()
        self.prepare_redis()
        self.data_losses[-1] = time.time()

    @property
    def crashed(self):
        """Crash points that killed a process so far."""
        return {line.split()[1] for line in self.crash_log.read_text().splitlines() if line.startswith("crash ")}

    def crash_count(self, name):
        return self.crash_log.read_text().count(f"crash {name} ")

    @property
    def passed(self):
        return {line.split()[1] for line in self.crash_log.read_text().splitlines()}

    # ---- parts

    def mount(self, path, size):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "chaos", str(path)], check=True)
        self.mounts.append(path)

    def _verbs(self):
        self.verbs_dir = self.root_dir / "verbs.d"
        script = viwtest.write_script(self.root_dir / "mark.sh", SCRIPT)
        viwtest.write_verb(self.verbs_dir, "mark", script, ["{cid}", "{rc}", "{s}", str(self.ledger.path)],
                           {"cid": {"type": "text", "max": 128}, "rc": {"type": "int", "min": 0, "max": 99},
                            "s": {"type": "text", "max": 8}}, concurrency=8,
                           writable_paths=[str(self.root_dir)])

    def _stores(self):
        redis_disk, pg_disk = self.dir / "redis-disk", self.dir / "pg-disk"
        for path, size in ((redis_disk, "256m"), (pg_disk, "512m")):
            path.mkdir()
            self.mount(path, size)
            path.chmod(0o711)
        # With everysec a killed Redis may lose what it had said, without a word: losses are faults of their own here.
        self.redis = viwtest.RedisServer(redis_disk, fsync="always").start()
        self.pg_server = viwtest.PgServer(parent=pg_disk, fsync=True).init().start().make_template()
        self.pg = self.pg_server.new_database()
        self.pg.query(AUDIT)
        self.redis_disk, self.pg_disk = redis_disk, pg_disk

    def _redis_link(self, name):
        link = Link(self.loop, f"redis-{name}", self.redis.port, self.rng)
        return link, f"redis://127.0.0.1:{link.port}/0"

    def _bridge(self, i):
        link, url = self._redis_link(f"bridge-{i}")
        port = viwtest.free_port()
        p = Program(self, f"bridge-{i}", "agent-bridge", {
            "AGENT_BRIDGE_ID": f"bridge-{i}", "AGENT_BRIDGE_BIND": f"127.0.0.1:{port}",
            "AGENT_BRIDGE_SHARED_SECRET": SECRET, "AGENT_BRIDGE_REDIS_URL": url,
            "AGENT_BRIDGE_RATE_PER_AGENT": "1000000", "AGENT_BRIDGE_RATE_PER_IP": "10000000",
            "AGENT_BRIDGE_VERBS_DIR": self.verbs_dir, "AGENT_BRIDGE_DRAIN_S": "1"})
        p.port, p.redis_link = port, link
        p.ws_link = Link(self.loop, f"ws-bridge-{i}", port, self.rng)
        return p.start()

    def _listening(self, bridge):
        import socket

        def up():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", bridge.port)) == 0
        viwtest.wait_for(up, 15, f"{bridge.name} listens\n{bridge.proc.tail()}")

    def _writer(self, binary, prefix):
        redis_link, url = self._redis_link(binary)
        pg_link = Link(self.loop, f"pg-{binary}", self.pg_server.port, self.rng)
        p = Program(self, binary, binary, {
            f"{prefix}_REDIS_URL": url, f"{prefix}_VERBS_DIR": self.verbs_dir,
            f"{prefix}_DATABASE_URL": self.pg_server.tcp_uri(self.pg.name, port=pg_link.port),
            f"{prefix}_CONSUMER": "chaos", f"{prefix}_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}"})
        if binary == "telemetry-writer":
            del p.env[f"{prefix}_VERBS_DIR"]
        p.redis_link, p.pg_link = redis_link, pg_link
        return p.start()

    def ws_urls(self, first):
        urls = [f"ws://127.0.0.1:{b.ws_link.port}/agent/ws" for b in self.bridges]
        first %= len(urls)
        return urls[first:] + urls[:first]

    @property
    def links(self):
        return [*(b.redis_link for b in self.bridges), *(b.ws_link for b in self.bridges),
                self.results.redis_link, self.results.pg_link, self.telemetry.redis_link,
                self.telemetry.pg_link, *(h.link for h in self.hosts)]

    # ---- life

    def tend(self):
        for p in self.programs:
            p.tend()
        for h in self.hosts:
            if h.twin and not h.twin.proc.alive:
                h.twin = None

    def heal(self):
        """Everything runs, nothing is in the way."""
        for link in self.links:
            link.set_mode("pass")
        for p in self.programs:
            p.thaw()
            p.clock.jump(0)
            p.wanted, p.start_after = True, 0.0
            p.arm.clear()
        for h in self.hosts:
            if h.twin:
                h.twin.kill()
                h.twin.wanted, h.twin = False, None
            (h.disk / "ballast").unlink(missing_ok=True)
        (self.redis_disk / "ballast").unlink(missing_ok=True)
        (self.pg_disk / "ballast").unlink(missing_ok=True)
        self.tend_stores()
        self.tend()

    def tend_stores(self):
        if not self.redis.proc.alive:
            self.redis.start()
        self.redis.thaw()
        self.pg_server.proc.thaw()
        if not self.pg_server.proc.alive:
            self.pg_server.start()
        else:
            viwtest.wait_for(self._pg_up, 30, "PostgreSQL answers")

    def _pg_up(self):
        try:
            return self.query("SELECT 1")
        except Exception:  # recovering
            return False

    def query(self, sql, *args):
        try:
            return self.pg.query(sql, *args)
        except Exception:
            self.pg._conn = None
            return self.pg.query(sql, *args)

    def close(self):
        for a in self.plain if hasattr(self, "plain") else []:
            self.loop.call(a.stop)
        for p in self.programs:
            p.wanted = False
            p.thaw()
            if p.proc and p.proc.alive:
                p.proc.signal(15)
        for p in self.programs:
            try:
                p.proc.popen.wait(5)
            except subprocess.TimeoutExpired:
                p.kill()
        if hasattr(self, "redis"):
            self.redis.close()
        if hasattr(self, "pg_server"):
            if self.pg_server.proc and self.pg_server.proc.alive:
                self.pg_server.kill()
        self.loop.close()
        time.sleep(0.1)
        for path in reversed(self.mounts):
            subprocess.run(["umount", "-l", str(path)], check=False)
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
            shutil.rmtree(self.root_dir, ignore_errors=True)


# Every change of a row that was terminal already, and every second result.
AUDIT = """
CREATE TABLE chaos_audit (at timestamptz DEFAULT now(), correlation_id text, was text, became text);
CREATE FUNCTION chaos_audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO chaos_audit (correlation_id, was, became)
    VALUES (OLD.correlation_id, OLD.status, CASE WHEN TG_OP = 'UPDATE' THEN NEW.status ELSE 'deleted' END);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_commands AFTER UPDATE ON agent_commands FOR EACH ROW
    WHEN (OLD.completed_at IS NOT NULL AND (NEW.status IS DISTINCT FROM OLD.status
          OR NEW.completed_at IS DISTINCT FROM OLD.completed_at)) EXECUTE FUNCTION chaos_audit();
CREATE TRIGGER chaos_commands_deleted AFTER DELETE ON agent_commands FOR EACH ROW EXECUTE FUNCTION chaos_audit();
CREATE TRIGGER chaos_results AFTER UPDATE OR DELETE ON agent_command_results FOR EACH ROW
    EXECUTE FUNCTION chaos_audit();
"""
