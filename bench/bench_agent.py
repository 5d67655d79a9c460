#!/usr/bin/python3
"""bench/bench_agent.py [--seconds 300]: what an idle, connected agent costs, beside a Node and a Python
agent that do the same (mTLS, TELEMETRY every 30 s, HEARTBEAT every 20 s), all at once on one bridge.

Writes bench/results/agent.json; --readme puts the tables into bench/README.md.
--faults [--seconds N] instead: agents against backends that are dead in every way; memory, descriptors,
tries and time to recover of each (bench/results/agent_faults.json).
"""
import argparse
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
os.environ.setdefault("VIW_BIN", str(ROOT / "build" / "release" / "bin"))
sys.path.insert(0, str(ROOT / "tests" / "lib"))

import viwtest  # noqa: E402
from peers import PeerBridge, agent_env  # noqa: E402

HELPER_KEY = "0123456789abcdef0123456789abcdef"


def server_context(pki):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.load_cert_chain(*pki.server)
    ctx.load_verify_locations(pki.path("client_ca.pem"))
    ctx.verify_mode = ssl.CERT_REQUIRED
    return ctx


def cpu_ns(pid):
    """CPU time of all threads, from the scheduler (proc(5): schedstat), in ns."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError):
            pass
    return total


def memory(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    kib = {k: int(re.search(rf"{k}:\s+(\d+)", text)[1]) for k in ("VmRSS", "RssAnon", "VmHWM")}
    kib["Pss"] = int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
    return kib


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def stripped_size(path, tmp):
    out = tmp / "stripped"
    subprocess.run(["strip", "-o", out, path], check=True)
    return out.stat().st_size


def start_helper(start, root):
    run = root / "run"
    for d in (run, root / "verbs.d"):
        d.mkdir(mode=0o755)
    secret = viwtest.write_secret(root / "secret", HELPER_KEY)
    h = start("host-helper", env={
        "HOST_HELPER_SOCKET": run / "h.sock", "HOST_HELPER_SOCKET_GROUP": "0", "HOST_HELPER_SECRET_FILE": secret,
        "HOST_HELPER_VERBS_DIR": root / "verbs.d", "HOST_HELPER_STATE_DIR": root / "state",
        "HOST_HELPER_ALLOWED_UIDS": "0", "HOST_HELPER_ENGINE_SOCKET": root / "none.sock"})
    h.wait_log("ready")
    return {"VIW_AGENT_HELPER_SOCKET": run / "h.sock", "VIW_AGENT_HELPER_SECRET": HELPER_KEY}


def footprint(seconds):
    tmp, loop, rows = viwtest.make_tmp(), viwtest.WsLoop(), []
    start, pki = viwtest.Starter(tmp), viwtest.Pki(tmp)
    root = viwtest.make_root_dir() if os.geteuid() == 0 else None
    bridge = PeerBridge(loop, ssl=server_context(pki)).start()
    url = f"wss://localhost:{bridge.port}/agent/ws"

    def agent(name, **more):
        cert, key = pki.agent(name)
        env = agent_env(tmp, url, agent_id=name, VIW_AGENT_CERT_PATH=cert, VIW_AGENT_KEY_PATH=key,
                        VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem"), VIW_AGENT_TELEMETRY_INTERVAL_S=30,
                        VIW_AGENT_BACKEND_SPKI_PIN=pki.spki_pin(pki.server[0]), **more)
        return start("gateway-agent", env=env)
    ours = viwtest.BIN / "gateway-agent"
    made = [("gateway-agent", agent("gw-ours"), stripped_size(ours, tmp))]
    if root and (viwtest.BIN / "host-helper").exists():
        made.append(("gateway-agent with helper", agent("gw-helper", **start_helper(start, root)), stripped_size(ours, tmp)))
    peers = ROOT / "bench" / "peers"
    if not (peers / "node_modules").exists():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=peers, check=True, capture_output=True)
    for name, argv in (("Node ws", ["/usr/bin/env", "node", peers / "node_agent.js"]),
                       ("Python websockets", ["/usr/bin/python3", peers / "python_agent.py"])):
        cert, key = pki.agent(f"gw-{argv[-1].stem.split('_')[0]}")
        p = viwtest.Proc([*argv, url, Path(cert).stem.replace("agent-", "").replace("-uri", ""), pki.path("ca.pem"), cert, key],
                         name=argv[-1].stem, dir=tmp)
        start.procs.append(p)
        made.append((name, p, None))
    ids = {"gw-ours", "gw-helper", "gw-node", "gw-python"}

    def seen():
        return {f["agent_id"] for c in list(bridge.conns) for f in c.of("TELEMETRY")}
    viwtest.wait_for(lambda: len(seen() & ids) == len(made), 20, "all sent TELEMETRY")
    time.sleep(10)  # the trim after connecting
    began, cpu, log = time.monotonic(), {n: cpu_ns(p.pid) for n, p, _ in made}, {n: len(p.text) for n, p, _ in made}
    peak = {n: 0 for n, _, _ in made}
    while time.monotonic() - began < seconds:
        time.sleep(1)
        for n, p, _ in made:
            peak[n] = max(peak[n], memory(p.pid)["VmRSS"])
    took = time.monotonic() - began
    for n, p, size in made:
        m = memory(p.pid)
        rate = (len(p.text) - log[n]) / took
        rows.append({"agent": n, "rss_kib": m["VmRSS"], "rss_peak_idle_kib": peak[n], "rss_start_kib": m["VmHWM"],
                     "anon_kib": m["RssAnon"], "pss_kib": m["Pss"], "fds": fds(p.pid),
                     "cpu_pct": round((cpu_ns(p.pid) - cpu[n]) / took / 1e7, 4),
                     "binary_bytes": size, "log_72h_bytes": round(log[n] + rate * 72 * 3600)})
        print(rows[-1])
    faults = start.close()
    bridge.close()
    if root:
        import shutil
        shutil.rmtree(root)
    return {"seconds": round(took), "rows": rows, "faults": faults}


# ---------------------------------------------------------------- dead backends


class Dead:
    """A backend that is wrong in one way until it is healed."""

    def __init__(self, kind, loop, pki):
        self.kind, self.loop, self.pki = kind, loop, pki
        self.tls = kind in ("TLS refused", "wrong pin", "wrong name")
        self.port = viwtest.free_port()
        self.bridge = self.sock = None
        self.healed = False
        if kind in ("black hole", "TLS refused", "garbage"):
            self.sock = socket.socket()
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind(("127.0.0.1", self.port))
            self.sock.listen(64)
            self.held = []
            threading.Thread(target=self._serve, daemon=True).start()
        elif kind != "refused":
            self._bridge()

    def _bridge(self):
        ctx = server_context(self.pki) if self.tls else None
        self.bridge = PeerBridge(self.loop, port=self.port, ssl=ctx, secret="right").start()
        if not self.healed:
            if self.kind == "auth refused":
                self.bridge.refuse = (401, [])
            if self.kind == "503 with Retry-After 5":
                self.bridge.refuse = (503, [("Retry-After", "5")])
            if self.kind == "no HELLO_ACK":
                self.bridge.silent = True
            if self.kind == "half-open":
                self.bridge.answer_heartbeat = False

    def _serve(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            if self.kind == "black hole":
                self.held = [c for c in self.held[-4:]] + [conn]
            else:
                try:
                    conn.recv(2048)
                    conn.sendall(b"\x15\x03\x03\x00\x02\x02\x28" if self.kind == "TLS refused" else b"nonsense\r\n\r\n")
                except OSError:
                    pass
                conn.close()

    def heal(self):
        self.healed = True
        if self.sock:
            self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
            for c in getattr(self, "held", []):
                c.close()
        if self.bridge:
            self.bridge.refuse, self.bridge.silent, self.bridge.answer_heartbeat = None, False, True
        else:
            self._bridge()


KINDS = ["refused", "black hole", "TLS refused", "garbage", "auth refused", "503 with Retry-After 5", "no HELLO_ACK", "half-open"]


def faults(seconds):
    tmp, loop, rows = viwtest.make_tmp(), viwtest.WsLoop(), []
    start, pki = viwtest.Starter(tmp), viwtest.Pki(tmp)
    made = []
    for i, kind in enumerate(KINDS):
        d = Dead(kind, loop, pki)
        cert, key = pki.agent(f"gw-{i}")
        env = agent_env(tmp, f"{'wss' if d.tls else 'ws'}://localhost:{d.port}/agent/ws", agent_id=f"gw-{i}",
                        VIW_AGENT_CERT_PATH=cert, VIW_AGENT_KEY_PATH=key, VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem"),
                        VIW_AGENT_SHARED_SECRET="right", VIW_AGENT_TELEMETRY_INTERVAL_S=5,
                        VIW_AGENT_RING_FRAMES=10, VIW_AGENT_FEATURE_INBOUND_HTTP="true",
                        VIW_AGENT_BIND_ADDRESS=f"127.0.0.1:{viwtest.free_port()}")
        made.append((kind, d, start("gateway-agent", env=env), env["VIW_AGENT_BIND_ADDRESS"]))

    def metric(where, name):
        import urllib.request
        text = urllib.request.urlopen(f"http://{where}/metrics", timeout=5).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))
    warm = min(90, seconds / 2)
    time.sleep(warm)
    first = {k: (memory(p.pid)["RssAnon"], fds(p.pid), metric(w, "viw_agent_dials_total")) for k, _, p, w in made}
    time.sleep(seconds - warm)
    for kind, d, p, where in made:
        anon, n = memory(p.pid)["RssAnon"], fds(p.pid)
        tries = metric(where, "viw_agent_dials_total")
        causes = sorted({(line["error"], line["msg"].split(";")[0]) for line in p.find_logs("disconnected")})
        rows.append({"backend": kind, "cause": causes[0][0] if causes else "", "said": causes[0][1] if causes else "",
                     "tries": tries, "anon_first_kib": first[kind][0], "anon_last_kib": anon, "fds_first": first[kind][1],
                     "fds_last": n, "log_bytes": len(p.text)})
    for row, (kind, d, p, where) in zip(rows, made):
        before = len(p.find_logs("connected"))
        t = time.monotonic()
        d.heal()
        if kind == "half-open" and metric(where, "viw_agent_connected"):
            row["recovered_s"] = 0.0
        else:
            viwtest.wait_for(lambda: len(p.find_logs("connected")) > before, 90, f"{kind} recovers")
            row["recovered_s"] = round(time.monotonic() - t, 1)
        print(row)
    bad = start.close()
    for _, d, _, _ in made:
        if d.bridge:
            d.bridge.close()
    return {"seconds": seconds, "rows": rows, "faults": bad}


# ---------------------------------------------------------------- tables


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] +
                     ["| " + " | ".join(str(c) for c in r) + " |" for r in rows])


def tables():
    out = []
    f = RESULTS / "agent.json"
    if f.exists():
        d = json.loads(f.read_text())
        out.append(f"Idle and connected with mTLS, {d['seconds']} s, all in one run "
                   "(`bench/bench_agent.py`; VmRSS at the end, its highest second, and the highest ever, which is the TLS start):\n")
        out.append(table(["agent", "VmRSS", "highest idle", "highest ever", "anonymous", "PSS", "% of a core", "program", "log in 72 h"],
                         [[r["agent"], f"{r['rss_kib'] / 1024:.1f} MiB", f"{r['rss_peak_idle_kib'] / 1024:.1f} MiB",
                           f"{r['rss_start_kib'] / 1024:.1f} MiB", f"{r['anon_kib'] / 1024:.1f} MiB", f"{r['pss_kib'] / 1024:.1f} MiB",
                           f"{r['cpu_pct']:.3f}", f"{r['binary_bytes'] // 1024} KiB" if r["binary_bytes"] else "",
                           f"{r['log_72h_bytes'] / 1024:.1f} KiB"] for r in d["rows"]]))
    f = RESULTS / "agent_faults.json"
    if f.exists():
        d = json.loads(f.read_text())
        out.append(f"\nEight agents, each against a backend that is dead in its own way for {d['seconds']} s, then healed "
                   "(`bench/bench_agent.py --faults`; memory and descriptors after the warm-up and at the end):\n")
        out.append(table(["backend", "the agent says", "tries", "anonymous memory", "descriptors", "back after healing", "log"],
                         [[r["backend"], f"{r['cause']}: {r['said']}", int(r["tries"]),
                           f"{r['anon_first_kib']} → {r['anon_last_kib']} KiB", f"{r['fds_first']} → {r['fds_last']}",
                           f"{r['recovered_s']} s", f"{r['log_bytes'] / 1024:.1f} KiB"] for r in d["rows"]]))
    return "\n".join(out)


def put_readme():
    path = ROOT / "bench" / "README.md"
    text = path.read_text()
    block = f"<!-- agent:begin -->\n{tables()}\n<!-- agent:end -->"
    if "<!-- agent:begin -->" in text:
        text = re.sub(r"<!-- agent:begin -->.*<!-- agent:end -->", lambda _: block, text, flags=re.S)
    else:
        text = text.rstrip() + f"\n\n## The agent\n\n{block}\n"
    path.write_text(text)


def main():
    o = argparse.ArgumentParser()
    o.add_argument("--seconds", type=int, default=300)
    o.add_argument("--faults", action="store_true")
    o.add_argument("--readme", action="store_true")
    o.add_argument("--table", action="store_true")
    a = o.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if a.readme or a.table:
        print(tables())
        if a.readme:
            put_readme()
        return 0
    name = "agent_faults" if a.faults else "agent"
    result = faults(a.seconds) if a.faults else footprint(a.seconds)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
