"""The faults. Each is a function of (world, rng) that does its harm and returns a function that takes
it back (or None), with a weight. `Faults.step` injects one and remembers when to undo it."""
import os
import re
import signal
import subprocess
import time

import links
import psycopg2
import viwtest

POINT = re.compile(r'CRASH_POINT\("([^"]+)"\)')
OWNER = {"agent-bridge": "bridge", "gateway-agent": "agent", "host-helper": "helper"}


def crash_points():
    """name -> which program passes it, from the sources."""
    found = {}
    for folder in ("agent-bridge", "workers", "gateway-agent", "host-helper"):
        for path in sorted((viwtest.ROOT / folder).rglob("*.c")):
            for name in POINT.findall(path.read_text()):
                if folder == "workers":
                    found[name] = "worker" if name.startswith("worker.") else name.split(".")[0]
                else:
                    found[name] = OWNER[folder]
    return found


def programs_of(world, kind):
    return {"bridge": world.bridges, "results": [world.results], "telemetry": [world.telemetry],
            "worker": [world.results, world.results, world.telemetry],
            "helper": [h.helper for h in world.hosts], "agent": [h.agent for h in world.hosts]}[kind]


def hurts(program, how):
    """A helper or supervisor that dies may take an outcome with it: `unknown` is the truth there."""
    if program.binary == "host-helper":
        program.host.hurt.append((time.time(), how))


# ---- processes

def kill_any(world, rng):
    p = rng.choice(world.programs)
    hurts(p, "helper killed")
    p.kill(restart_after=rng.random() * 2)
    return f"kill {p.name}", None


def kill_bridge(world, rng):
    p = rng.choice(world.bridges)
    p.kill(restart_after=rng.random() * 8)
    return f"kill {p.name}", None


def kill_agent(world, rng):
    p = rng.choice(world.hosts).agent
    p.kill(restart_after=rng.random())
    return f"kill {p.name}", None


def kill_supervisor(world, rng):
    """A child of a helper: the supervisor of a run, or the script itself."""
    host = rng.choice(world.hosts)
    pids = subprocess.run(["pgrep", "-P", str(host.helper.proc.pid)], stdout=subprocess.PIPE, text=True).stdout.split()
    if not pids:
        return None, None
    host.hurt.append((time.time(), "supervisor or script killed"))
    try:
        os.kill(int(rng.choice(pids)), signal.SIGKILL)
    except ProcessLookupError:
        pass
    return f"kill a supervisor of {host.agent_id}", None


def crash_at_point(world, rng):
    points = crash_points()
    cold = [n for n in points if n not in world.crashed]
    name = rng.choice(sorted(cold if cold and rng.random() < 0.5 else points))
    p = rng.choice(programs_of(world, points[name]))
    before = world.crash_count(name)
    p.arm.set(name, rng.choice((1, 1, 2, 5, 20)))

    def undo():
        p.arm.clear()
        if world.crash_count(name) > before:
            hurts(p, f"killed at {name}")
    hurts(p, f"to be killed at {name}")
    return f"arm {name} for {p.name}", undo


def freeze(world, rng):
    p = rng.choice([*world.bridges, *world.bridges, *world.programs])
    p.freeze()
    return f"freeze {p.name}", p.thaw


def freeze_bridge(world, rng):
    p = rng.choice(world.bridges)
    p.freeze()
    return f"freeze {p.name}", p.thaw


def freeze_redis(world, rng):
    world.redis.freeze()
    return "freeze redis", world.redis.thaw


def twin(world, rng):
    """The same agent on two bridges, from one host."""
    from world import Program
    host = rng.choice(world.hosts)
    if host.twin:
        return None, None
    env = dict(host.env)
    env["VIW_AGENT_BACKEND_URL"] = ",".join(world.ws_urls(rng.randrange(3)))
    state = host.dir / "twin"
    state.mkdir(exist_ok=True)
    env["VIW_AGENT_STATE_DIR"] = state
    host.twin = Program(world, f"twin-{host.agent_id}", "gateway-agent", env, ["run"]).start()

    def undo():
        if host.twin:
            host.twin.kill()
            host.twin = None
    return f"twin of {host.agent_id}", undo


# ---- links

def bad_link(world, rng):
    link, mode = rng.choice(world.links), rng.choice(links.MODES)
    link.set_mode(mode)
    return f"{mode} on {link.name}", lambda: link.set_mode("pass")


def bad_helper_link(world, rng):
    link = rng.choice(world.hosts).link
    mode = rng.choice(("truncate", "drop_replies", "refuse"))
    link.set_mode(mode)
    return f"{mode} on {link.name}", lambda: link.set_mode("pass")


def two_faced(world, rng):
    """A client that moves to another bridge and still listens to the old one."""
    agent = rng.choice(world.plain)
    if agent.paused:
        return None, None
    agent.second_face(rng.choice(agent.urls), 5)
    return f"{agent.agent_id} moves and listens on", None


def bridge_without_redis(world, rng):
    link = rng.choice(world.bridges).redis_link
    link.set_mode("stall")
    return f"cut {link.name}", lambda: link.set_mode("pass")


# ---- disks

def fill(path, leave=0):
    """A file that takes all space that is left."""
    ballast = path / "ballast"
    size = os.statvfs(path)
    left = max(0, size.f_bavail * size.f_frsize - leave)
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while left > 0:
            left -= os.write(fd, b"\0" * min(left, 1 << 20))
    except OSError:  # full: that is the point
        pass
    finally:
        os.close(fd)
    return ballast


def journal_disk_full(world, rng):
    host = rng.choice(world.hosts)
    ballast = fill(host.disk, rng.choice((0, 4096, 200000)))
    return f"disk full at {host.agent_id}", lambda: ballast.unlink(missing_ok=True)


def aof_disk_full(world, rng):
    ballast = fill(world.redis_disk, rng.choice((0, 4096)))

    def undo():  # it has ended: with appendfsync always it cannot go on
        ballast.unlink(missing_ok=True)
        world.tend_stores()
    return "disk full at redis", undo


def wal_disk_full(world, rng):
    ballast = fill(world.pg_disk)

    def undo():
        ballast.unlink(missing_ok=True)
        world.tend_stores()
    return "disk full at postgres", undo


# ---- stores

def redis_killed(world, rng):
    if (world.redis_disk / "ballast").exists():  # what it could not write would be lost: another fault
        return None, None
    world.redis.thaw()
    world.redis.kill()
    return "kill redis", world.tend_stores


def flushall(world, rng):
    world.lost_data(lambda: world.backend.flushall())
    return "FLUSHALL", None


def xgroup_destroy(world, rng):
    stream, group = rng.choice((("commands", "agent-bridge"), ("commands", "results-writer"),
                                ("command_results", "results-writer"), ("command_events", "results-writer"),
                                ("agent_events", "telemetry-writer"), ("telemetry", "telemetry-writer")))
    world.backend.xgroup_destroy(f"viw.{stream}", group)
    return f"XGROUP DESTROY viw.{stream} {group}", None


def aof_tail_cut(world, rng):
    def cut():
        world.redis.thaw()
        world.redis.kill()
        files = sorted((world.redis.dir / "appendonlydir").glob("*.incr.aof"), key=lambda p: p.stat().st_mtime)
        data = files[-1].read_bytes()
        # Behind a whole transaction: of one torn in its middle Redis 7.0 drops all at the first load, and does half at
        # the second (MULTI stays in the file without EXEC, and what is written later closes it).
        whole = b"*1\r\n$4\r\nEXEC\r\n"
        end = data.rfind(whole, 0, max(0, len(data) - rng.randrange(1, 60000)))
        os.truncate(files[-1], end + len(whole) if end >= 0 else 0)
        world.redis.start("--aof-load-truncated", "yes")
    world.lost_data(cut)
    return "AOF tail cut", None


def pg_immediate_stop(world, rng):
    world.pg_server.kill()
    return "postgres immediate stop", world.tend_stores


def pg_lock(world, rng):
    table = rng.choice(("agent_commands", "agent_command_results", "os_gateways", "agent_events"))
    conn = world.pg.connect()
    conn.autocommit = False
    cursor = conn.cursor()
    cursor.execute("SET LOCAL lock_timeout = '2s'")
    try:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    except psycopg2.errors.LockNotAvailable:  # another of these holds it, or a writer for long
        conn.close()
        return None, None
    return f"lock {table}", conn.close


# ---- clocks

def clock_jump(world, rng):
    p = rng.choice(world.programs)
    ms = rng.choice((-1, 1)) * rng.choice((2000, 45000, 90000, 400000))
    p.clock.jump(ms)
    return f"clock of {p.name} {ms:+d} ms", lambda: p.clock.jump(0)


# name: (function, weight, loses Redis data)
TABLE = {
    "kill_any": (kill_any, 8, False), "kill_bridge": (kill_bridge, 6, False),
    "kill_supervisor": (kill_supervisor, 2, False), "crash_at_point": (crash_at_point, 14, False),
    "kill_agent": (kill_agent, 3, False), "freeze_bridge": (freeze_bridge, 2, False),
    "bad_helper_link": (bad_helper_link, 3, False), "two_faced": (two_faced, 2, False),
    "freeze": (freeze, 6, False), "freeze_redis": (freeze_redis, 1, False), "twin": (twin, 1, False),
    "bad_link": (bad_link, 14, False), "bridge_without_redis": (bridge_without_redis, 3, False),
    "journal_disk_full": (journal_disk_full, 2, False), "aof_disk_full": (aof_disk_full, 1, False),
    "wal_disk_full": (wal_disk_full, 1, False), "redis_killed": (redis_killed, 2, False),
    "flushall": (flushall, 1, True), "xgroup_destroy": (xgroup_destroy, 2, False),
    "aof_tail_cut": (aof_tail_cut, 1, True), "pg_immediate_stop": (pg_immediate_stop, 1, False),
    "pg_lock": (pg_lock, 2, False), "clock_jump": (clock_jump, 3, False),
}
# How long a fault lasts, in seconds: past the router's lease (5 s) and a bridge's (15 s) at times.
LASTS = {"freeze": (1, 7, 18), "freeze_bridge": (1, 7, 18),
         "bad_helper_link": (1, 3), "bridge_without_redis": (2, 7, 18), "freeze_redis": (1, 3), "twin": (2, 6),
         "crash_at_point": (4,), "bad_link": (1, 3, 7), "pg_lock": (1, 4), "journal_disk_full": (2, 4),
         "aof_disk_full": (1, 3), "wal_disk_full": (2,), "redis_killed": (0, 1, 3),
         "pg_immediate_stop": (0, 2), "clock_jump": (2, 6)}


class Faults:
    def __init__(self, world, rng, names=None):
        self.world, self.rng, self.open, self.done, self.failed = world, rng, [], {}, []
        self.names = list(names or TABLE)
        self.weights = [TABLE[n][1] for n in self.names]

    def inject(self, name=None):
        name = name or self.rng.choices(self.names, self.weights)[0]
        try:
            text, undo = TABLE[name][0](self.world, self.rng)
        except Exception as e:  # the store it needs is down already
            self.failed.append(f"{name}: {type(e).__name__} {e}")
            return None
        if text is None:
            return None
        self.done[name] = self.done.get(name, 0) + 1
        if undo:
            self.open.append((time.monotonic() + self.rng.choice(LASTS.get(name, (1,))), undo))
        return text

    def tend(self, all=False):
        """Takes back what has lasted long enough."""
        now, rest = time.monotonic(), []
        for until, undo in self.open:
            if all or now >= until:
                try:
                    undo()
                except Exception as e:
                    self.failed.append(f"undo: {type(e).__name__} {e}")
            else:
                rest.append((until, undo))
        self.open = rest
