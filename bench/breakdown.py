"""Where the bridge's time goes, by perf(1): shares of its CPU under paced and fast TELEMETRY, and under handshakes."""
import re
import shutil
import subprocess
import time

from harness import Bench, BenchError

# First match wins. Names are of functions; the library is matched when no function is.
PARTS = (
    ("kernel: epoll, waking and being woken", r"epoll|ep_|sock_poll|tcp_poll|schedule|finish_task_switch|hrtimer|eventpoll|fdget|wake"),
    ("kernel: TCP and copying in and out", r"tcp_|ip_|skb|sock|copy_|inet|recv|send|unix_|net|alloc|kmem|slab|memcg|page|folio|release"),
    ("log lines", r"^log_|escape|^put_(str|text|number|fields)$|write_line"),
    ("accept, judge, claim, sessions", r"handshake|^check_|judge|nonces|hash_pair|ratelimit|netaddr|identity|opening|^http_|^head_"
                                       r"|upgrade|header|accept|^look$|ident_|crypto|hmac|sha256|^dispatch|^map_|sessions_|on_open"
                                       r"|on_claim|on_established|holding|denied|connected|hello|welcome|greet"),
    ("JSON: validate and decode", r"^json_|^wire_|member|on_member|clock_parse|string|number|utf8|name_is_new"),
    ("XADD: build, send, count replies", r"store_|telemetry|put_|redis|resp|commit_|ring_pop|ring_push|flush|hiredis|sds"),
    ("session, last frames, counters", r"frames_|on_ws|take|ring_|session|metric|on_receive|named_agent|append|frame_get"),
)
LIBRARIES = (("kernel", "kernel: the rest (entry, locks, interrupts)"), ("libwebsockets", "libwebsockets"),
             ("libuv", "libuv"), ("hiredis", "XADD: build, send, count replies"), ("libcrypto", "OpenSSL: HMAC, SHA-256"),
             ("libc", "libc: memcpy, malloc, strlen"),
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
    for what, mode, conns, rate, frames in (("200 connections, fast", "fanin", 200, 0, 400000),
                                            ("5,000 connections, 10,000/s", "fanin", 5000, 10000, 60000),
                                            ("HMAC handshakes", "hold", 15000, 0, 0)):
        with Bench() as b:
            b.redis()
            server = b.bridge()
            options = ("--concurrency", 128) if mode == "hold" else ("--frames", int(frames * o.scale), "--rate", rate)
            data = b.dir / "perf.data"

            def record():
                p = b.start("perf", ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-o", data, "-p", server.pid])
                time.sleep(0.5)
                return p
            if mode == "hold":
                perf = record()
                load = b.load("bridge", mode, int(conns * o.scale), *options)
                load.event("ready", 90)
            else:
                load = b.load("bridge", mode, conns, *options)
                load.event("ready", 60)
                perf = record()
                load.say("go")
                load.event("done", 60)
            time.sleep(0.3)
            perf.stop(2)
            load.quit()
            for name, percent in shares(data):
                if percent >= 0.5:
                    yield {"load": what, "part": name, "percent": round(percent, 1)}
