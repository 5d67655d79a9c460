#!/usr/bin/python3
"""What the two writers do: rows a second end to end (Redis to committed), beside psql inserting the same
rows from unnest arrays on the same server in the same run; catch-up; latency when idle.

    bench/bench_workers.py [telemetry] [results] [catchup] [latency] [--entries N] [--readme]

Own Redis (AOF everysec) and PostgreSQL (fsync and synchronous_commit on), release build. --readme puts the
tables between the writers' marks of bench/README.md.
"""
import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("VIW_BIN", str(ROOT / "build" / "release" / "bin"))
sys.path.insert(0, str(ROOT / "tests" / "lib"))
import viwtest  # noqa: E402
import writers  # noqa: E402

TICK = os.sysconf("SC_CLK_TCK")
AGENTS = 1000
RESULTS = Path(__file__).resolve().parent / "results" / "writers"


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rfc(t):
    return t.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Frames:
    """n frames of 1,000 agents, one each 30 s, as the bridge stores them; about 400 bytes each."""

    def __init__(self, n):
        rounds = n // AGENTS
        start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=30 * rounds + 60)
        now = rfc(datetime.datetime.now(datetime.timezone.utc))
        self.rows, self.entries = [], []
        for i in range(rounds * AGENTS):
            agent, seq = f"gw-{i % AGENTS:05}", i // AGENTS
            at = start + datetime.timedelta(seconds=30 * seq + (i % AGENTS) * 0.02)
            m = {"cpu_pct": (i * 7) % 100 + 0.5, "mem_pct": (i * 3) % 100, "disk_pct": 41.5, "load1": 0.25,
                 "load5": 0.5, "load15": 0.75, "mem_total_bytes": 8123456789, "mem_available_bytes": 4123456789,
                 "uptime_s": 86400 + seq * 30, "containers_running": 3,
                 "services": {"nginx.service": "running", "openvpn.service": "running"}, "helper": "up"}
            frame = json.dumps({"type": "TELEMETRY", "agent_id": agent, "ts": rfc(at), "seq": seq, "metrics": m},
                               separators=(",", ":"))
            self.rows.append((agent, seq, at, m))
            self.entries.append({"agent_id": agent, "frame": frame, "bridge_id": "b1", "conn_id": f"c-{agent}",
                                 "epoch": 1, "ip": "192.0.2.7", "received_at": now})


def fill(client, stream, entries):
    for i in range(0, len(entries), 5000):
        pipe = client.pipeline(transaction=False)
        for e in entries[i:i + 5000]:
            pipe.xadd(stream, e)
        pipe.execute()


def sql_text(values):
    """An array literal inside a SQL string."""
    inner = ",".join('"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values)
    return "'{" + inner.replace("'", "''") + "}'"


def sql_array(values):
    return "'{" + ",".join(str(v) for v in values) + "}'"


def telemetry_sql(rows):
    """One batch as psql gets it: the two upserts of the writer, folded the same way."""
    last, minutes = {}, {}
    for agent, seq, at, m in rows:
        last[agent] = (agent, seq, at, m)
        bucket = at.replace(second=0, microsecond=0)
        minutes.setdefault((agent, bucket), []).append((seq, at, m))
    s = [last[a] for a in sorted(last)]
    out = ["BEGIN;"]
    out.append(
        "INSERT INTO os_gateway_status AS s (agent_id, epoch, seq, ts, cpu_pct, mem_pct, disk_pct, load1, load5, "
        "load15, containers_running, services, metrics) SELECT * FROM unnest(" + ", ".join([
            sql_text([r[0] for r in s]) + "::text[]", sql_array([1] * len(s)) + "::bigint[]",
            sql_array([r[1] for r in s]) + "::bigint[]", sql_text([rfc(r[2]) for r in s]) + "::timestamptz[]"] +
            [sql_array([r[3][k] for r in s]) + "::float8[]" for k in
             ("cpu_pct", "mem_pct", "disk_pct", "load1", "load5", "load15")] +
            [sql_array([r[3]["containers_running"] for r in s]) + "::integer[]",
             sql_text([json.dumps(r[3]["services"]) for r in s]) + "::jsonb[]",
             sql_text([json.dumps(r[3]) for r in s]) + "::jsonb[]"]) +
        ") ON CONFLICT (agent_id) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, ts = excluded.ts, "
        "cpu_pct = excluded.cpu_pct, mem_pct = excluded.mem_pct, disk_pct = excluded.disk_pct, "
        "load1 = excluded.load1, load5 = excluded.load5, load15 = excluded.load15, "
        "containers_running = excluded.containers_running, services = excluded.services, "
        "metrics = excluded.metrics, updated_at = now() "
        "WHERE (s.epoch, s.seq, s.ts) < (excluded.epoch, excluded.seq, excluded.ts);")
    keys = sorted(minutes)
    cols = [sql_text([k[0] for k in keys]) + "::text[]", sql_text([rfc(k[1]) for k in keys]) + "::timestamptz[]",
            sql_array([len(minutes[k]) for k in keys]) + "::integer[]"]
    for name in ("cpu_pct", "mem_pct", "disk_pct", "load1"):
        cols += [sql_array([sum(x[2][name] for x in minutes[k]) for k in keys]) + "::float8[]",
                 sql_array([len(minutes[k]) for k in keys]) + "::integer[]",
                 sql_array([max(x[2][name] for x in minutes[k]) for k in keys]) + "::float8[]"]
    cols.append(sql_text(["{" + ",".join(str(x[0] << 16 | (x[1].second * 1000 + x[1].microsecond // 1000))
                                         for x in minutes[k]) + "}" for k in keys]) + "::text[]")
    out.append(
        "INSERT INTO os_gateway_metrics AS m (agent_id, bucket, samples, cpu_sum, cpu_n, cpu_max, mem_sum, mem_n, "
        "mem_max, disk_sum, disk_n, disk_max, load1_sum, load1_n, load1_max, seen) "
        "SELECT u.a, u.b, u.n, u.s1, u.n1, u.m1, u.s2, u.n2, u.m2, u.s3, u.n3, u.m3, u.s4, u.n4, u.m4, "
        "u.seen::bigint[] FROM unnest(" + ", ".join(cols) +
        ") AS u (a, b, n, s1, n1, m1, s2, n2, m2, s3, n3, m3, s4, n4, m4, seen) "
        "ON CONFLICT (agent_id, bucket) DO UPDATE SET samples = m.samples + excluded.samples, "
        "cpu_sum = m.cpu_sum + excluded.cpu_sum, cpu_n = m.cpu_n + excluded.cpu_n, "
        "cpu_max = GREATEST(m.cpu_max, excluded.cpu_max), mem_sum = m.mem_sum + excluded.mem_sum, "
        "mem_n = m.mem_n + excluded.mem_n, mem_max = GREATEST(m.mem_max, excluded.mem_max), "
        "disk_sum = m.disk_sum + excluded.disk_sum, disk_n = m.disk_n + excluded.disk_n, "
        "disk_max = GREATEST(m.disk_max, excluded.disk_max), load1_sum = m.load1_sum + excluded.load1_sum, "
        "load1_n = m.load1_n + excluded.load1_n, load1_max = GREATEST(m.load1_max, excluded.load1_max), "
        "seen = m.seen || excluded.seen WHERE NOT (m.seen && excluded.seen) AND cardinality(m.seen) < 3000;")
    out.append("COMMIT;")
    return "\n".join(out) + "\n"


def results_sql(rows):
    """The same rows as plain upserts: a command (as queued and ended) and its result."""
    ids = sorted(r["correlation_id"] for r in rows)
    n = len(ids)
    now = rfc(datetime.datetime.now(datetime.timezone.utc))
    return ("BEGIN;\nINSERT INTO agent_commands AS c (correlation_id, agent_id, command, params, status, issued_at, "
            "queued_at, completed_at, result_entry, entry_id, params_masked, signed) SELECT * FROM unnest(" +
            ", ".join([sql_text(ids) + "::text[]", sql_text(["gw-1"] * n) + "::text[]",
                       sql_text(["ECHO"] * n) + "::text[]", sql_text(['{"message": "hello"}'] * n) + "::jsonb[]",
                       sql_text(["done"] * n) + "::text[]"] + [sql_text([now] * n) + "::timestamptz[]"] * 3 +
                      [sql_text(["1-1"] * n) + "::text[]"] * 2 + [sql_array(["f"] * n) + "::boolean[]"] * 2) +
            ") ON CONFLICT (correlation_id) DO UPDATE SET command = COALESCE(c.command, excluded.command), "
            "status = excluded.status, completed_at = COALESCE(c.completed_at, excluded.completed_at);\n"
            "INSERT INTO agent_command_results (correlation_id, agent_id, command, status, rc, stdout_redacted, "
            "started_at, finished_at, duration_ms, source, entry_id) SELECT * FROM unnest(" +
            ", ".join([sql_text(ids) + "::text[]", sql_text(["gw-1"] * n) + "::text[]",
                       sql_text(["ECHO"] * n) + "::text[]", sql_text(["done"] * n) + "::text[]",
                       sql_array([0] * n) + "::integer[]", sql_text(["hello\n" * 20] * n) + "::text[]"] +
                      [sql_text([now] * n) + "::timestamptz[]"] * 2 + [sql_array([12] * n) + "::bigint[]",
                       sql_text(["agent"] * n) + "::text[]", sql_text(["1-1"] * n) + "::text[]"]) +
            ") ON CONFLICT (correlation_id) DO NOTHING;\nCOMMIT;\n")


class World:
    def __init__(self):
        self.tmp = viwtest.make_tmp()
        self.redis = viwtest.RedisServer(self.tmp).start()
        self.pg = viwtest.PgServer(fsync=True).init().start("-c", "max_wal_size=4GB").make_template()
        self.start = viwtest.Starter(self.tmp)

    def close(self):
        self.start.close()
        self.redis.close()
        self.pg.close()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def psql(self, db, path):
        """Seconds psql needs for the file."""
        began = time.monotonic()
        done = subprocess.run([viwtest.pg_bindir() / "psql", db.uri, "-q", "-X", "-v", "ON_ERROR_STOP=1", "-f",
                               str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[:2000])
        return time.monotonic() - began

    def writer(self, db, kind, batch, stream_entries):
        """Lets a running writer loose on filled streams until they are drained: seconds, CPU seconds, peak RSS."""
        c = self.redis.client
        w = start_writer(self, kind, db.uri, batch)
        w.wait_log("started")
        w.freeze()
        for stream, entries in stream_entries.items():
            for part in entries if isinstance(entries[0], list) else [entries]:
                fill(c, f"viw.{stream}", part)
        began, cpu0, peak = time.monotonic(), cpu_s(w.pid), 0
        w.thaw()
        while not all(writers.drained(c, s, f"{kind}-writer") for s in stream_entries):
            peak = max(peak, writers.rss_bytes(w.pid))
            time.sleep(0.03)
        took, cpu = time.monotonic() - began, cpu_s(w.pid) - cpu0
        w.stop()
        return took, cpu, peak


def start_writer(world, kind, uri, batch):
    prefix = f"{kind.upper()}_WRITER"
    return world.start(f"{kind}-writer", env={
        f"{prefix}_REDIS_URL": world.redis.unix_url, f"{prefix}_DATABASE_URL": uri, f"{prefix}_LOG_LEVEL": "info",
        f"{prefix}_INTERNAL_BIND": f"127.0.0.1:{viwtest.free_port()}", f"{prefix}_BATCH_MAX": str(batch)})


def best(runs):
    return min(runs, key=lambda r: r[0])


def compare(world, kind, n, sql_of, stream_entries):
    """Alternates writer and psql three times a batch size, so that both meet the same weather."""
    for batch in (100, 1000, 5000):
        path = world.tmp / "rows.sql"
        with open(path, "w") as f:
            for i in range(0, n, batch):
                f.write(sql_of(i, i + batch))
        ours, theirs = [], []
        for _ in range(3):
            db = world.pg.new_database()
            theirs.append((world.psql(db, path),))
            db.close()
            world.redis.client.flushall()
            db = world.pg.new_database()
            ours.append(world.writer(db, kind, batch, stream_entries))
            db.close()
        (took, cpu, peak), (ref,) = best(ours), best(theirs)
        yield {"batch": batch, "rows_s": n / took, "psql_rows_s": n / ref, "share": ref / took,
               "cpu_us_per_row": cpu / n * 1e6, "peak_rss_mib": peak / 2**20}


def bench_telemetry(world, o):
    frames = Frames(o.entries)
    yield from compare(world, "telemetry", len(frames.rows),
                       lambda a, b: telemetry_sql(frames.rows[a:b]), {"telemetry": frames.entries})


def bench_results(world, o):
    n = o.entries // 2
    now = rfc(datetime.datetime.now(datetime.timezone.utc))
    commands = [{"correlation_id": f"c-{i:07}", "agent_id": "gw-1", "command": "ECHO",
                 "params": '{"message": "hello"}'} for i in range(n)]
    results = [{"correlation_id": c["correlation_id"], "agent_id": "gw-1", "source": "agent", "command": "ECHO",
                "received_at": now, "frame": json.dumps(writers.result(
                    c["correlation_id"], rc=0, stdout="hello\n" * 20, started_at=now, finished_at=now,
                    duration_ms=12))} for c in commands]
    yield from compare(world, "results", n, lambda a, b: results_sql(commands[a:b]),
                       {"commands": commands, "command_results": results})


def bench_catchup(world, o):
    """A million entries waiting: time to drain, memory of the writer."""
    world.redis.client.flushall()
    frames = Frames(100000)
    db = world.pg.new_database()
    took, cpu, peak = world.writer(db, "telemetry", 1000, {"telemetry": [frames.entries] * 10})
    n = world.redis.client.xlen("viw.telemetry")
    db.close()
    yield {"entries": n, "seconds": took, "entries_s": n / took, "peak_rss_mib": peak / 2**20,
           "cpu_us_per_row": cpu / n * 1e6}


def bench_latency(world, o):
    """One entry at a time, 20 to 60 ms apart: XADD to the row seen by another session."""
    world.redis.client.flushall()
    db = world.pg.new_database()
    w = start_writer(world, "telemetry", db.uri, 1000)
    conn = db.connect()
    cur, times = conn.cursor(), []
    for i in range(520):
        time.sleep(0.02 + (i * 7 % 40) / 1000)
        began = time.monotonic()
        writers.add_telemetry(world.redis.client, "gw-1", seq=i, cpu_pct=1)
        while True:
            cur.execute("SELECT 1 FROM os_gateway_status WHERE agent_id = 'gw-1' AND seq >= %s", (i,))
            if cur.fetchone():
                break
        times.append((time.monotonic() - began) * 1000)
    conn.close()
    w.stop()
    db.close()
    times = sorted(times[20:])
    yield {"samples": len(times), "p50_ms": times[len(times) // 2], "p99_ms": times[int(len(times) * 0.99)],
           "max_ms": times[-1]}


BENCHES = {"telemetry": bench_telemetry, "results": bench_results, "catchup": bench_catchup,
           "latency": bench_latency}
TITLES = {"telemetry": "telemetry-writer: frames a second, Redis to committed, beside psql with the same rows",
          "results": "results-writer: commands a second (command and result entries), beside psql",
          "catchup": "Catch-up of waiting entries", "latency": "Idle: XADD to the row another session sees"}


def show(v):
    return str(v) if isinstance(v, int) else f"{v:,.0f}" if v >= 1000 else f"{v:.2f}"


def table(name, rows):
    head = list(rows[0])
    lines = [f"**{TITLES[name]}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(show(r[k]) for k in head) + " |" for r in rows]
    return "\n".join(lines)


def readme():
    tables = [table(n, json.loads((RESULTS / f"{n}.json").read_text()))
              for n in BENCHES if (RESULTS / f"{n}.json").exists()]
    path = Path(__file__).resolve().parent / "README.md"
    text = path.read_text()
    begin, end = "<!-- writers:begin -->", "<!-- writers:end -->"
    head, rest = text.split(begin, 1)
    path.write_text(head + begin + "\n\n" + "\n\n".join(tables) + "\n\n" + end + rest.split(end, 1)[1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", help=", ".join(BENCHES))
    p.add_argument("--entries", type=int, default=100000)
    p.add_argument("--readme", action="store_true")
    o = p.parse_args()
    if not o.readme or o.names:
        RESULTS.mkdir(parents=True, exist_ok=True)
        world = World()
        try:
            for name in o.names or BENCHES:
                load = os.getloadavg()[0]
                rows = [{**r, "load_1min": load} for r in BENCHES[name](world, o)]
                print(table(name, rows) + "\n", flush=True)
                (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        finally:
            world.close()
    if o.readme:
        readme()


if __name__ == "__main__":
    main()
