#!/usr/bin/python3
"""bench/bench_agent.py [--seconds 300]: what an idle, connected agent costs, beside a Node and a Python
agent that do the same (mTLS, TELEMETRY every 30 s, HEARTBEAT every 20 s), all at once on one bridge.

Writes bench/results/agent.json; --readme puts the tables into bench/README.md.
"""
import argparse
import json
import os
import re
import ssl
import subprocess
import sys
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
    ids = {"gateway-agent": "gw-ours", "gateway-agent with helper": "gw-helper", "Node ws": "gw-node", "Python websockets": "gw-python"}

    def seen():
        return {f["agent_id"] for c in list(bridge.conns) for f in c.of("TELEMETRY")}
    viwtest.wait_for(lambda: len(seen() & set(ids.values())) == len(made), 20, "all sent TELEMETRY")
    time.sleep(5)  # the trim a second after connecting
    began, cpu, log = time.monotonic(), {n: cpu_ns(p.pid) for n, p, _ in made}, {n: len(p.text) for n, p, _ in made}
    peak = {n: 0 for n, _, _ in made}
    while time.monotonic() - began < seconds:
        time.sleep(1)
        for n, p, _ in made:
            peak[n] = max(peak[n], memory(p.pid)["VmRSS"])
    took = time.monotonic() - began
    missed = []
    for n, p, size in made:
        m = memory(p.pid)
        rate = (len(p.text) - log[n]) / took
        rows.append({"agent": n, "rss_kib": m["VmRSS"], "rss_peak_idle_kib": peak[n], "rss_start_kib": m["VmHWM"],
                     "anon_kib": m["RssAnon"], "pss_kib": m["Pss"], "fds": fds(p.pid),
                     "cpu_pct": round((cpu_ns(p.pid) - cpu[n]) / took / 1e7, 4),
                     "binary_bytes": size, "log_72h_bytes": round(log[n] + rate * 72 * 3600)})
        print(rows[-1])
        mine = [c for c in bridge.conns if any(f["agent_id"] == ids[n] for f in c.of("HELLO"))]
        frames = [f for c in mine for f in c.of("TELEMETRY")]
        if len(mine) != 1 or mine[0].closed or len(frames) < took // 30:
            missed.append(f"{n}: {len(mine)} connections, {len(frames)} TELEMETRY in {took:.0f} s")
        if size and (peak[n] > 6144 or rows[-1]["cpu_pct"] > 0.1):
            missed.append(f"{n}: {peak[n]} KiB, {rows[-1]['cpu_pct']} % of a core")
    faults = missed + start.close()
    bridge.close()
    if root:
        import shutil
        shutil.rmtree(root)
    return {"seconds": round(took), "rows": rows, "faults": faults}


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
    return "\n".join(out)


def put_between(path, mark, block):
    """Replaces what stands between the marks of this name."""
    text = path.read_text()
    new = re.sub(rf"(<!-- {mark}:begin -->\n).*(<!-- {mark}:end -->)", lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
    if f"<!-- {mark}:begin -->" not in text:
        raise SystemExit(f"{path}: no mark {mark}:begin")
    path.write_text(new)


def main():
    o = argparse.ArgumentParser()
    o.add_argument("--seconds", type=int, default=300)
    o.add_argument("--readme", action="store_true")
    o.add_argument("--table", action="store_true")
    a = o.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if a.readme or a.table:
        print(tables())
        if a.readme:
            put_between(ROOT / "bench" / "README.md", "agent", tables())
        return 0
    result = footprint(a.seconds)
    (RESULTS / "agent.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(result["faults"]))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
