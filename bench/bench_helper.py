#!/usr/bin/python3
"""What host-helper costs: requests a second and latency of read-only requests, and of one run with its journal.

    sudo /usr/bin/python3 bench/bench_helper.py [--seconds 5] [--bin build/release/bin]

Needs root (the helper trusts only root-owned files). Works in a folder of its own under /var/lib.
"""
import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lib"))
import viwtest  # noqa: E402
from viwtest import HelperClient, rfc3339, write_script, write_secret, write_verb  # noqa: E402

KEY = "0123456789abcdef0123456789abcdef"
CONNECTIONS = 4


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p))] * 1000


def cpu_s(pid):
    """CPU seconds of the helper itself and, for all children of this machine, nothing."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(socket, seconds, make, connections):
    """connections threads, each with one request at a time; gives all latencies."""
    out, until = [], time.monotonic() + seconds

    def one():
        c, mine = HelperClient(socket, KEY), []
        while time.monotonic() < until:
            fields = make()
            t = time.perf_counter()
            reply = c.call(**fields)
            mine.append(time.perf_counter() - t)
            assert reply["status"] == "ok", reply
        c.close()
        out.extend(mine)
    threads = [threading.Thread(target=one) for _ in range(connections)]
    begin = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out, time.monotonic() - begin


def effects():
    return {"verb": "noop", "args": {}, "correlation_id": str(uuid.uuid4()), "deadline": rfc3339(60)}


CASES = [
    ("query of an absent id (no process)", lambda: {"op": "query"}, CONNECTIONS),
    ("get_system_health", lambda: {"verb": "get_system_health", "args": {}}, CONNECTIONS),
    ("get_monitoring_data", lambda: {"verb": "get_monitoring_data", "args": {}}, CONNECTIONS),
    ("read-only script (/usr/bin/true)", lambda: {"verb": "peek", "args": {}}, CONNECTIONS),
    ("run with journal, one at a time", effects, 1),
    ("run with journal, 4 at once", effects, CONNECTIONS),
]


def fsync_ms(dir):
    """What this disk takes for the four syncs of one command: audit log, file, folder, file."""
    t = time.perf_counter()
    n = 50
    log = os.open(dir / "f-log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for i in range(n):
        os.write(log, b"z" * 450)
        os.fdatasync(log)
        path = dir / f"f{i}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"x" * 400)
        os.fsync(fd)
        d = os.open(dir, os.O_RDONLY)
        os.fsync(d)
        os.close(d)
        os.write(fd, b"y" * 300)
        os.fdatasync(fd)
        os.close(fd)
        path.unlink()
    os.close(log)
    return (time.perf_counter() - t) / n * 1000


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--seconds", type=float, default=5)
    ap.add_argument("--bin", default=str(ROOT / "build" / "release" / "bin"))
    a = ap.parse_args()
    dir = viwtest.make_root_dir()
    for d in ("verbs.d", "scripts", "run"):
        (dir / d).mkdir(mode=0o755)
    for name, effect in (("noop", True), ("peek", False)):
        write_verb(dir / "verbs.d", name, "/usr/bin/true", effects=effect, concurrency=8)
    env = {"HOST_HELPER_SOCKET": f"{dir}/run/s", "HOST_HELPER_SOCKET_GROUP": "0", "HOST_HELPER_LOG_LEVEL": "error",
           "HOST_HELPER_SECRET_FILE": str(write_secret(dir / "secret", KEY)), "HOST_HELPER_VERBS_DIR": f"{dir}/verbs.d",
           "HOST_HELPER_STATE_DIR": f"{dir}/state", "HOST_HELPER_RATE": "0", "HOST_HELPER_ALLOWED_UIDS": "0",
           "PATH": "/usr/bin:/bin"}
    proc = subprocess.Popen([viwtest.helper_program(a.bin)], env=env)
    try:
        viwtest.wait_for((dir / "run" / "s").exists)
        time.sleep(2.5)  # two CPU samples, so that get_system_health need not wait for its own
        print(f"{'what':<38} {'conns':>5} {'per s':>8} {'p50 ms':>8} {'p99 ms':>8} {'helper CPU us each':>19}")
        for name, make, conns in CASES:
            before = cpu_s(proc.pid)
            lat, took = drive(f"{dir}/run/s", a.seconds, make, conns)
            used = cpu_s(proc.pid) - before
            print(f"{name:<38} {conns:>5} {len(lat) / took:>8.0f} {percentile(lat, .5):>8.2f} {percentile(lat, .99):>8.2f} "
                  f"{used / len(lat) * 1e6:>19.0f}")
        print(f"\nthe disk's part: {fsync_ms(dir):.2f} ms for the four syncs of one journalled run")
        rss = next(l for l in open(f"/proc/{proc.pid}/status") if l.startswith("VmRSS"))
        print(f"helper {rss.split(':')[1].strip()} resident; journal {len(list((dir / 'state/journal').iterdir()))} files, "
              f"{subprocess.run(['du', '-sk', dir / 'state/journal'], stdout=subprocess.PIPE, text=True).stdout.split()[0]} KiB")
    finally:
        proc.terminate()
        proc.wait()
        shutil.rmtree(dir, ignore_errors=True)


if __name__ == "__main__":
    main()
