"""Commands: from XADD to the committed row, and what a fleet costs Redis while nothing happens."""
import os
import sys
import time
import uuid
from pathlib import Path

from harness import BIN, ROOT, Bench, BenchError, cpu_s, wait_for

os.environ.setdefault("VIW_BIN", str(BIN))
sys.path.insert(0, str(ROOT / "tests" / "lib"))


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))]


class Chain:
    """Redis, PostgreSQL (fsync on, commit times kept), bridge, results-writer, 1,000 answering agents."""

    def __init__(self, b, agents):
        from viwtest import PgServer
        b.redis()
        self.b, self.agents = b, agents
        self.pg = PgServer(fsync=True).init().start("-c", "track_commit_timestamp=on").make_template()
        self.db = self.pg.new_database()
        self.bridge = b.bridge()
        self.writer = b.start("results-writer", [BIN / "results-writer"], env={
            "RESULTS_WRITER_REDIS_URL": f"unix://{b.dir}/redis.sock", "RESULTS_WRITER_DATABASE_URL": self.db.uri,
            "RESULTS_WRITER_INTERNAL_BIND": "127.0.0.1:0"})
        wait_for(lambda: b.db.exists("viw.command_results") and b.db.xinfo_groups("viw.command_results"), 15,
                 "results-writer to make its groups")
        self.load = b.load("bridge", "hold", agents)
        ready = self.load.event("ready", 60)
        if ready["up"] != agents:
            raise BenchError(f"only {ready['up']} of {agents} agents: {ready['failures']}")
        time.sleep(1)

    def close(self):
        self.load.quit()
        self.writer.stop()
        self.pg.close()

    def agent(self, i):
        return f"{self.prefix}{i % self.agents:05d}"

    @property
    def prefix(self):
        owner = next(iter(self.b.db.hscan_iter("viw.owner")))[0].decode()
        return owner[:-5]

    def rows(self):
        return self.db.query("SELECT count(*) AS n FROM agent_command_results")[0]["n"]

    def cpu(self):
        pids = {"redis": next(p.pid for p in self.b.procs if p.name == "redis"), "bridge": self.bridge.pid,
                "writer": self.writer.pid}
        return {name: cpu_s(pid) for name, pid in pids.items()}

    def xadd(self, pipe, cid, agent):
        pipe.xadd("viw.commands", {"correlation_id": cid, "agent_id": agent, "command": "ECHO",
                                   "params": '{"message":"hello"}'})

    def latencies(self, sent):
        """Of each command, in ms: XADD to its RESULT in Redis (whole ms: an entry's id), that to the committed row."""
        rows = self.db.query("SELECT correlation_id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) AS at,"
                             " split_part(entry_id, '-', 1)::float8 AS result_ms FROM agent_command_results")
        return [(r["result_ms"] - sent[r["correlation_id"]] * 1000, float(r["at"]) * 1000 - r["result_ms"])
                for r in rows if r["correlation_id"] in sent]


def paced(c, rate, seconds):
    sent, prefix, before = {}, c.prefix, c.cpu()
    began = time.monotonic()
    for i in range(int(rate * seconds)):
        time.sleep(max(0, began + i / rate - time.monotonic()))
        cid = str(uuid.uuid4())
        sent[cid] = time.time()
        c.xadd(c.b.db, cid, f"{prefix}{i * 7 % c.agents:05d}")
    wait_for(lambda: len(c.latencies(sent)) == len(sent), 30, "all rows")
    after, parts = c.cpu(), c.latencies(sent)
    ms = [a + b for a, b in parts]
    of = lambda i, p: percentile([x[i] for x in parts], p)
    return {"what": f"paced {rate}/s", "agents": c.agents, "commands": len(sent), "p50_ms": percentile(ms, 50),
            "p99_ms": percentile(ms, 99), "max_ms": max(ms), "to_result_p50_ms": of(0, 50), "to_result_p99_ms": of(0, 99),
            "to_row_p50_ms": of(1, 50), "to_row_p99_ms": of(1, 99)} | {
                f"{k}_us": (after[k] - before[k]) * 1e6 / len(sent) for k in after}


def burst(c, n):
    prefix, before, rows = c.prefix, c.cpu(), c.rows()
    began = time.monotonic()
    for at in range(0, n, 100):
        pipe = c.b.db.pipeline(transaction=False)
        for i in range(at, at + 100):
            c.xadd(pipe, str(uuid.uuid4()), f"{prefix}{i % c.agents:05d}")
        pipe.execute()
    wait_for(lambda: c.rows() - rows == n, 120, "all rows")
    seconds, after = time.monotonic() - began, c.cpu()
    return {"what": "burst", "agents": c.agents, "commands": n, "commands_per_s": n / seconds} | {
        f"{k}_us": (after[k] - before[k]) * 1e6 / n for k in after}


def commands(o):
    """From XADD to the committed row of an ECHO, 1,000 agents connected; CPU µs a command."""
    with Bench() as b:
        c = Chain(b, 1000)
        try:
            paced(c, 20, 2)  # warm
            yield paced(c, 50, 20)
            yield paced(c, 200, 10)
            yield burst(c, 10000)
        finally:
            c.close()


def quiet(o):
    """What 10,000 connected idle agents cost Redis: commands a second, CPU of a core."""
    with Bench() as b:
        b.redis()
        server = b.bridge()
        load = b.load("bridge", "hold", 10000)
        ready = load.event("ready", 90)
        if ready["up"] != 10000:
            raise BenchError(f"only {ready['up']} of 10000 agents: {ready['failures']}")
        time.sleep(12)
        calls = lambda: {k.decode() if isinstance(k, bytes) else k: v["calls"] for k, v in b.db.info("commandstats").items()}
        before, cpu, began = calls(), (cpu_s(server.pid), cpu_s(b.procs[0].pid)), time.monotonic()
        time.sleep(30)
        after, seconds = calls(), time.monotonic() - began
        sent = {k: (after.get(f"cmdstat_{k}", 0) - before.get(f"cmdstat_{k}", 0)) / seconds for k in ("evalsha", "blmpop", "xread")}
        total = sum(v - before.get(k, 0) for k, v in after.items()) / seconds
        yield {"agents": 10000, "sent_per_s": sum(sent.values()), "evalsha_per_s": sent["evalsha"],
               "with_those_inside_scripts_per_s": total,
               "bridge_core": (cpu_s(server.pid) - cpu[0]) / seconds,
               "redis_core": (cpu_s(b.procs[0].pid) - cpu[1]) / seconds}
        load.quit()
