"""What is measured. Each scenario is a function that returns rows (dicts); bench/run prints them."""
import base64
import random
import re
import signal
import time
from collections import Counter

from breakdown import profile
from commands import commands, quiet
from harness import Bench, BenchError, cpu_s, kernel_bytes, metric, open_files, rss_bytes, wait_for

SENT_US = re.compile(rb'"sent_us":(\d+)')
PEERS = ("bridge", "node", "nats", "mosquitto")
TARGET = {"bridge": "bridge", "node": "bridge", "nats": "nats", "mosquitto": "mqtt"}


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * q))]


def entries_added(b):
    try:
        return b.db.xinfo_stream("viw.telemetry")["entries-added"]
    except Exception:  # no stream yet
        return 0


def start_peer(b, peer):
    """The servers of a peer: [(name, Proc)], and a function that counts what is stored."""
    if peer in ("bridge", "node"):
        redis = b.redis()
        server = b.bridge() if peer == "bridge" else b.node()
        return {"server": server, "redis": redis}, lambda: entries_added(b)
    if peer == "nats":
        return {"server": b.nats()}, b.js.messages
    return {"server": b.mosquitto()}, None


def latency_ms(b, peer, done):
    """(p50, p99) from the frame's own time stamp to the store's. Redis ids count whole ms: half of
    one is added. mosquitto stores nothing: time to PUBACK."""
    if peer == "mosquitto":
        return done["ack"]["p50_us"] / 1000, done["ack"]["p99_us"] / 1000
    ms = []
    if peer == "nats":
        last = b.js.messages()
        for seq in sorted(random.sample(range(1, last + 1), min(last, 3000))):
            m = b.js.ask("$JS.API.STREAM.MSG.GET.viw", {"seq": seq})["message"]
            whole, rest = m["time"].rstrip("Z").split(".") if "." in m["time"] else (m["time"].rstrip("Z"), "0")
            at_us = calendar_s(whole) * 1e6 + float("0." + rest) * 1e6
            ms.append((at_us - int(SENT_US.search(base64.b64decode(m["data"])).group(1))) / 1000)
    else:
        for id, fields in b.db.xrevrange("viw.telemetry", count=30000):
            sent = int(SENT_US.search(fields[b"frame"]).group(1))
            ms.append(int(id.split(b"-")[0]) + 0.5 - sent / 1000)
    return quantile(ms, 0.5), quantile(ms, 0.99)


def calendar_s(text):
    import calendar
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def fanin_once(peer, conns, rate, frames, seconds=60):
    with Bench() as b:
        procs, stored = start_peer(b, peer)
        load = b.load(TARGET[peer], "fanin", conns, "--frames", frames, "--rate", rate)
        ready = load.event("ready", 60)
        if ready["up"] != conns:
            raise BenchError(f"{peer}: only {ready['up']} of {conns} connected: {ready['failures']}")
        time.sleep(0.5)
        before = {n: cpu_s(p.pid) for n, p in procs.items()}
        began = time.monotonic()
        load.say("go")
        done = load.event("done", seconds)
        count = frames
        if stored:
            last = [-1, time.monotonic()]

            def complete():
                n = stored()
                if n != last[0]:
                    last[:] = [n, time.monotonic()]
                return n >= frames or time.monotonic() - last[1] > 3
            wait_for(complete, seconds, "the frames to be stored")
            count, took = last[0], last[1] - began
        else:
            took = done["go_s"]
        cpu = {n: (cpu_s(p.pid) - before[n]) * 1e6 / count for n, p in procs.items()}
        row = {"peer": peer, "conns": conns, "rate": rate, "frames": frames, "stored": count,
               "frames_per_s": count / took, "server_us": cpu["server"], "redis_us": cpu.get("redis", 0.0),
               "total_us": sum(cpu.values()), "loadgen_us": (done["cpu_s"] - ready["cpu_s"]) * 1e6 / frames,
               "loadgen_user_us": (done["user_s"] - ready["user_s"]) * 1e6 / frames,
               "server_rss_mib": rss_bytes(procs["server"].pid) / 2**20}
        if rate:
            row["p50_ms"], row["p99_ms"] = latency_ms(b, peer, done)
        load.quit()
        return row


def middle(rows, key):
    """The one in the middle: a shared machine now and then gives a run a third less."""
    return sorted(rows, key=lambda r: r[key])[len(rows) // 2]


def fanin(o):
    for conns in o.conns or (200, 5000):
        fleet = (600,) if conns >= 5000 else ()  # what 18,000 agents send
        for rate in o.rates or (0, *fleet, 10000, 30000):
            peers = o.peers or PEERS
            good, failed = {p: [] for p in peers}, {}
            for peer in [*peers] * (o.runs or 3):  # by turns
                frames = int(rate * o.seconds) if rate else {"node": 100000}.get(peer, 250000)
                try:
                    good[peer].append(fanin_once(peer, conns, rate, int(frames * o.scale)))
                except (BenchError, OSError) as e:
                    failed[peer] = str(e)
            for peer in peers:
                yield {"peer": peer, "conns": conns, "rate": rate, "failed": failed[peer]} if peer in failed else \
                    middle(good[peer], "total_us") | {"runs": len(good[peer])}


def growth(o):
    for conns in o.conns or (100, 1000, 10000, 18000):
        yield fanin_once("bridge", conns, 10000, int(10000 * o.seconds * o.scale))


def start_for_idle(b, peer, tls):
    if peer == "bridge":
        b.redis()
        return b.bridge(tls=tls)
    return start_peer(b, peer)[0]["server"]


def idle_once(peer, conns, tls):
    with Bench() as b:
        server = start_for_idle(b, peer, tls)
        warm = b.load(TARGET[peer], "hold", 50, tls=tls)
        warm.event("ready", 30)
        warm.quit()
        time.sleep(1)
        rss, kernel = rss_bytes(server.pid), kernel_bytes()
        load = b.load(TARGET[peer], "hold", conns, tls=tls)
        ready = load.event("ready", 240)
        if ready["up"] != conns:
            raise BenchError(f"{peer}: only {ready['up']} of {conns} connected: {ready['failures']}")
        time.sleep(2)
        row = {"peer": peer, "tls": tls, "conns": conns,
               "rss_kib_each": (rss_bytes(server.pid) - rss) / 1024 / conns,
               "kernel_kib_each_both_ends": (kernel_bytes() - kernel) / 1024 / conns}
        load.quit()
        time.sleep(5)
        row["rss_mib_before"], row["rss_mib_after_they_left"] = rss / 2**20, rss_bytes(server.pid) / 2**20
        return row


def idle(o):
    for conns in o.conns or (10000, 18000):
        for tls in (False, True):
            yield idle_once("bridge", conns, tls)
    for peer in ("node", "nats", "mosquitto"):
        if not o.peers or peer in o.peers:
            try:
                yield idle_once(peer, 10000, False)
            except (BenchError, OSError) as e:
                yield {"peer": peer, "conns": 10000, "tls": False, "failed": str(e)}


def handshake_run(tls, revoked, conns):
    with Bench() as b:
        redis = b.redis()
        server = b.bridge(tls=tls, **({"TLS_CRL": b.crl(revoked)} if revoked else {}))
        cpu, redis_cpu = cpu_s(server.pid), cpu_s(redis.pid)
        load = b.load("bridge", "hold", conns, "--concurrency", 128, tls=tls)
        ready = load.event("ready", 90)
        used, redis_used = cpu_s(server.pid) - cpu, cpu_s(redis.pid) - redis_cpu
        load.quit()
        return {"handshakes": ready["connected"], "failures": ready["failures"],
                "wall_per_s": ready["connected"] / ready["at_s"], "per_core_s": ready["connected"] / used,
                "bridge_us": used * 1e6 / conns, "redis_us": redis_used * 1e6 / conns,
                "p50_ms": ready["handshake"]["p50_us"] / 1000, "p99_ms": ready["handshake"]["p99_us"] / 1000}


def handshakes(o):
    kinds = {"HMAC": (False, 0, 15000), "mTLS": (True, 0, 6000), "mTLS, CRL of 20,000": (True, 20000, 6000)}
    runs = {kind: [] for kind in kinds}
    for _ in range(o.runs or 5):
        for kind, (tls, revoked, conns) in kinds.items():
            runs[kind].append(handshake_run(tls, revoked, conns))
    for kind, of in runs.items():
        speeds = [r["per_core_s"] for r in of]
        yield {"kind": kind, "runs": len(of), **middle(of, "bridge_us"), "per_core_s_best": max(speeds), "per_core_s_worst": min(speeds),
               "failures": dict(sum((Counter(r["failures"]) for r in of), Counter()))}


def storm(o):
    clients = (o.conns or [8000])[0]
    with Bench() as b:
        b.redis()
        b.bridge(tls=True)
        load = b.load("bridge", "storm", clients, tls=True)
        ready = load.event("ready", 240)
        yield {"clients": clients, "connected": ready["connected"], "failures": ready["failures"],
               "all_up_s": ready["at_s"], "p50_ms": ready["handshake"]["p50_us"] / 1000,
               "p99_ms": ready["handshake"]["p99_us"] / 1000}
        load.quit()


def back(o):
    """All agents connected, the bridge killed and started again at once: until the last is back."""
    agents = (o.conns or [10000])[0]
    for sig in (signal.SIGKILL, signal.SIGTERM):
        with Bench() as b:
            b.redis()
            server = b.bridge(tls=True)
            load = b.load("bridge", "hold", agents, "--reconnect", tls=True)
            load.event("ready", 240)
            server.stop(sig)
            b.bridge(tls=True, port=b.port)
            done = load.event("back", 240)
            yield {"agents": agents, "signal": sig.name, "back_after_s": done["down_s"], "failures": done["failures"]}
            load.quit()


def churn(o):
    with Bench() as b:
        b.redis()
        server = b.bridge()
        seconds = int(o.minutes * 60)
        load = b.load("bridge", "churn", 1000, "--seconds", seconds, "--concurrency", 200, "--rate", o.churn_rate)
        samples, end = [], time.monotonic() + seconds
        while time.monotonic() < end - 1:
            time.sleep(max(1, seconds / 200))
            samples.append((rss_bytes(server.pid) / 2**20, open_files(server.pid),
                            metric(b.internal, "viw_nonces_remembered")))
            for stream in ("agent_hello", "agent_events"):  # no writer reads them here
                b.db.xtrim(f"viw.{stream}", maxlen=10000)
        done = load.event("done", 30)
        load.quit()
        time.sleep(2)
        q = max(1, len(samples) // 4)
        early, late = samples[q:2 * q], samples[-q:]
        mean = lambda rows, i: sum(r[i] for r in rows) / len(rows)
        yield {"minutes": o.minutes, "connections": done["connected"], "frames": done["sent"],
               "rss_mib_second_quarter": mean(early, 0), "rss_mib_last_quarter": mean(late, 0),
               "files_second_quarter": mean(early, 1), "files_last_quarter": mean(late, 1),
               "rss_mib_after": rss_bytes(server.pid) / 2**20, "files_after": open_files(server.pid),
               "nonces_second_quarter": int(mean(early, 2)), "nonces_last_quarter": int(mean(late, 2)),
               "failures": done["failures"]}


SCENARIOS = {f.__name__: f for f in (fanin, growth, idle, handshakes, storm, back, churn, commands, quiet, profile)}
