"""Where the bridge's time goes, by perf(1): shares of its CPU under paced and fast TELEMETRY."""
import re
import shutil
import subprocess
import time

from harness import Bench, BenchError

# First match wins. Names are of functions; the library is matched when no function is.
PARTS = (
    ("kernel: epoll, waking and being woken", r"epoll|ep_|sock_poll|tcp_poll|schedule|finish_task_switch|hrtimer|eventpoll|fdget|wake"),
    ("kernel: TCP and copying in and out", r"tcp_|ip_|skb|sock|copy_|inet|recv|send|unix_|net|alloc|kmem|slab|memcg|page|folio|release"),
    ("JSON: validate and decode", r"^json_|^wire_|member|on_member|clock_parse|string|number|utf8|name_is_new"),
    ("XADD: build, send, count replies", r"store_|telemetry|put_|redis|resp|commit_|ring_pop|ring_push|flush|hiredis|sds"),
    ("session, last frames, counters", r"frames_|on_ws|take|ring_|session|metric|on_receive|named_agent|append|frame_get"),
)
LIBRARIES = (("kernel", "kernel: the rest (entry, locks, interrupts)"), ("libwebsockets", "libwebsockets"),
             ("libuv", "libuv"), ("hiredis", "XADD: build, send, count replies"), ("libc", "libc: memcpy, malloc, strlen"),
             ("vdso", "libc: memcpy, malloc, strlen"), ("agent-bridge", "agent-bridge: the rest"))


def part_of(library, function):
    kernel = "kernel" in library
    if kernel or "agent-bridge" in library:
        for name, pattern in PARTS:
            if name.startswith("kernel") == kernel and re.search(pattern, function):
                return name
    return next((name for word, name in LIBRARIES if word in library), "other")


def shares(data):
    out = subprocess.run(["perf", "report", "-i", data, "--no-children", "-g", "none", "--stdio", "-F",
                          "overhead,dso,sym"], capture_output=True, text=True).stdout
    total = {}
    for line in out.splitlines():
        m = re.match(r"\s*([\d.]+)%\s+(\S+)\s+\[(?:k|\.)\]\s+(\S+)", line)
        if m:
            name = part_of(m.group(2), m.group(3))
            total[name] = total.get(name, 0) + float(m.group(1))
    return sorted(total.items(), key=lambda x: -x[1])


def profile(o):
    if not shutil.which("perf"):
        raise BenchError("perf is missing (Debian package linux-perf)")
    for what, conns, rate, frames in (("200 connections, fast", 200, 0, 400000), ("5,000 connections, 10,000/s", 5000, 10000, 60000)):
        with Bench() as b:
            b.redis()
            server = b.bridge()
            load = b.load("bridge", "fanin", conns, "--frames", int(frames * o.scale), "--rate", rate)
            load.event("ready", 60)
            data = b.dir / "perf.data"
            perf = b.start("perf", ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-o", data, "-p", server.pid])
            time.sleep(0.5)
            load.say("go")
            load.event("done", 60)
            time.sleep(0.3)
            perf.stop(2)
            load.quit()
            for name, percent in shares(data):
                if percent >= 0.5:
                    yield {"load": what, "part": name, "percent": round(percent, 1)}
