#!/usr/bin/python3
"""bench/bench_agent_faults.py [--seconds 600]: an agent for each way a backend can be dead. What it says and
does, its memory and descriptors while that lasts, and how long it takes to be back once the backend is healed.

Ends with 1 when memory or descriptors grew or an agent did not come back. Writes
bench/results/agent_faults.json; --readme puts the table into docs/agent.md.
"""
import argparse
import json
import os
import re
import select
import socket
import ssl
import sys
import threading
import time
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_agent import RESULTS, ROOT, fds, memory, put_between, server_context, table  # noqa: E402

import viwtest  # noqa: E402
from peers import PeerBridge, agent_env  # noqa: E402

GROWTH_KIB = 128  # between the warm-up and any later second
BACK_S = 150      # the longest a kind may take: silence 60 s, then a wait of up to 60 s, then 15 s of patience

# kind -> what the agent does about it (redial.c and uplink.c say it; the figures show it)
KINDS = {
    "connection refused": "backs off, 0.5 s to 60 s",
    "SYN dropped": "gives up after 15 s, backs off",
    "accepts, says nothing": "gives up after 15 s, backs off",
    "accepts, says nothing, TLS": "gives up after 15 s, backs off",
    "answers nonsense": "backs off",
    "TLS alert": "backs off",
    "client certificate refused": "backs off",
    "other CA": "no HTTP byte is sent; backs off",
    "other name": "no HTTP byte is sent; backs off",
    "expired": "no HTTP byte is sent; backs off",
    "key not pinned": "no HTTP byte is sent; tries each minute",
    "HTTP 401": "backs off",
    "HTTP 403": "tries each minute",
    "HTTP 503, Retry-After 5": "waits at least that long, backs off",
    "no HELLO_ACK": "gives up after 15 s, backs off",
    "half-open": "gives up after 60 s of silence, backs off",
    "close 1001 (draining)": "comes back within 5 s; after ten times in a row backs off",
    "close 4000 (superseded)": "tries each minute",
    "close 4013 (no Redis)": "backs off",
    "proxy says 407": "backs off",
}
TLS_KINDS = ("accepts, says nothing, TLS", "TLS alert", "client certificate refused", "other CA", "other name", "expired",
             "key not pinned", "proxy says 407")


class Listener:
    """Accepts, and gives each connection to a thread."""

    def __init__(self, port, handler):
        self.handler, self.held = handler, []
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", port))
        self.sock.listen(64)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            self.held = self.held[-8:] + [conn]
            threading.Thread(target=self._one, args=(conn,), daemon=True).start()

    def _one(self, conn):
        try:
            self.handler(conn)
        except OSError:
            pass

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for c in self.held:
            c.close()


def dropped_syns(port):
    """A listener whose queue is full: the kernel drops every further SYN. What is to be closed."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port))
    s.listen(0)
    full = []
    for _ in range(4):
        c = socket.socket()
        c.setblocking(False)
        c.connect_ex(("127.0.0.1", port))
        full.append(c)
    return [*full, s]


def relay(conn, port, alive_s):
    """Forwards; after alive_s (None: never) reads and forwards nothing any more, and closes nothing."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as up:
        while True:
            for s in select.select([conn, up], [], [], 0.2)[0]:
                data = s.recv(65536)
                if not data:
                    conn.close()
                    return
                (up if s is conn else conn).sendall(data)
            if alive_s is not None and time.monotonic() - began > alive_s:
                while conn.fileno() >= 0:  # until the listener forgets it
                    time.sleep(1)
                return


class Dead:
    """A backend that is dead in one way until heal()."""

    def __init__(self, kind, loop, pki):
        self.kind, self.loop, self.pki, self.healed = kind, loop, pki, False
        self.tls = kind in TLS_KINDS
        self.port = viwtest.free_port()
        self.proxy_port = viwtest.free_port() if kind == "proxy says 407" else None
        self.bridge, self.listener, self.closers = None, None, []
        self._break()

    def _listen(self, handler, port=None):
        self.listener = Listener(port or self.port, handler)

    def _serve(self, port=None, cert=None):
        ctx = None
        if self.tls:
            ctx = server_context(self.pki)
            if cert:
                ctx.load_cert_chain(*cert)
        self.bridge = PeerBridge(self.loop, port=port or self.port, ssl=ctx, secret="right").start()
        return self.bridge

    def _server_cert(self, name, ca="ca", san="DNS:localhost", **kw):
        return self.pki.issue(name, ca, "/CN=localhost", [san], usage="serverAuth", **kw)

    def _break(self):
        k = self.kind

        def once(answer):
            def handler(conn):
                conn.recv(2048)
                conn.sendall(answer)
                conn.close()
            return handler
        if k == "connection refused":
            return
        if k == "SYN dropped":
            self.closers = dropped_syns(self.port)
        elif k.startswith("accepts"):
            self._listen(lambda conn: None)
        elif k == "answers nonsense":
            self._listen(once(b"nonsense\r\n\r\n"))
        elif k == "TLS alert":
            self._listen(once(b"\x15\x03\x03\x00\x02\x02\x28"))
        elif k == "client certificate refused":
            ctx = server_context(self.pki)
            ctx.load_verify_locations(self._rogue_ca())
            ctx = self._only(ctx)
            self.bridge = PeerBridge(self.loop, port=self.port, ssl=ctx, secret="right").start()
        elif k == "other CA":
            self._rogue_ca()
            self._serve(cert=self._server_cert("rogue-server", "rogue_ca"))
        elif k == "other name":
            self._serve(cert=self._server_cert("other-name", san="DNS:bridge.example"))
        elif k == "expired":
            self._serve(cert=self._server_cert("expired-server", days=-1))
        elif k == "key not pinned":
            self._serve(cert=self._server_cert("new-key"))
        elif k == "half-open":
            self.inner = viwtest.free_port()
            self._serve(self.inner)
            self._listen(lambda conn: relay(conn, self.inner, None if self.healed else 2))
        elif k == "proxy says 407":
            self._serve()
            self._listen(once(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"), self.proxy_port)
        else:
            b = self._serve()
            if k.startswith("HTTP"):
                b.refuse = (int(k[5:8]), [("Retry-After", "5")] if "Retry" in k else [])
            elif k == "no HELLO_ACK":
                b.silent = True
            else:
                threading.Thread(target=self._close_all, args=(int(k.split()[1]),), daemon=True).start()

    def _rogue_ca(self):
        self.pki.rogue("gw-x")
        return self.pki.path("rogue_ca.pem")

    def _only(self, ctx):
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.load_cert_chain(*self.pki.server)
        fresh.load_verify_locations(self.pki.path("rogue_ca.pem"))
        fresh.verify_mode = ssl.CERT_REQUIRED
        return fresh

    def _close_all(self, code):
        done = 0
        while not self.healed:
            for c in self.bridge.conns[done:]:
                if c.closed or c.of("TELEMETRY"):
                    done += 1
                    if not c.closed:
                        self.loop.run(c.ws.close(code, "dead"))
                else:
                    break
            time.sleep(0.1)

    def heal(self):
        self.healed = True
        for c in self.closers:
            c.close()
        if self.kind == "half-open":
            return
        if self.kind == "proxy says 407":
            self.listener.close()

            def tunnel(conn):
                while b"\r\n\r\n" not in conn.recv(4096):
                    pass
                conn.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(conn, self.port, None)
            self._listen(tunnel, self.proxy_port)
            return
        if self.kind.startswith("close"):
            for c in self.bridge.conns:
                if not c.closed:
                    self.loop.run(c.ws.close(int(self.kind.split()[1]), "dead"))
            return
        if self.listener:
            self.listener.close()
        if self.kind in ("client certificate refused", "other CA", "other name", "expired", "key not pinned"):
            self.bridge.close()
            self.bridge = None
        if self.bridge:
            self.bridge.refuse, self.bridge.silent = None, False
        else:
            self._serve()

    def close(self):
        """After its agent has ended."""
        if self.bridge:
            self.bridge.server.close()
        if self.listener and self.kind in ("half-open", "proxy says 407"):
            self.listener.close()


class Watched:
    def __init__(self, i, kind, dead, start, pki):
        self.kind, self.dead = kind, dead
        cert, key = pki.agent(f"gw-{i}")
        self.http = f"127.0.0.1:{viwtest.free_port()}"
        more = {"https_proxy": f"http://127.0.0.1:{dead.proxy_port}"} if dead.proxy_port else {}
        if kind == "key not pinned":
            more["VIW_AGENT_BACKEND_SPKI_PIN"] = pki.spki_pin(pki.server[0])
        self.proc = start("gateway-agent", env=agent_env(
            start.dir, f"{'wss' if dead.tls else 'ws'}://localhost:{dead.port}/agent/ws", agent_id=f"gw-{i}",
            VIW_AGENT_CERT_PATH=cert, VIW_AGENT_KEY_PATH=key, VIW_AGENT_TRUST_BUNDLE=pki.path("ca.pem"),
            VIW_AGENT_SHARED_SECRET="right", VIW_AGENT_TELEMETRY_INTERVAL_S=5, VIW_AGENT_RING_FRAMES=10,
            VIW_AGENT_FEATURE_INBOUND_HTTP="true", VIW_AGENT_BIND_ADDRESS=self.http, **more))
        self.first = None
        self.anon = self.fds = 0

    def sample(self, warm):
        anon, n = memory(self.proc.pid)["RssAnon"], fds(self.proc.pid)
        if not warm:
            return
        self.first = self.first or (anon, n)
        self.anon, self.fds = max(self.anon, anon), max(self.fds, n)

    def ended(self):
        return self.proc.find_logs("disconnected") + self.proc.find_logs("pin_mismatch")

    def row(self):
        text = urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5).read().decode()
        tries = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("viw_agent_dials_total"))
        said = [(line["error"], line["msg"].split("; next try")[0]) for line in self.ended()]
        common = max(set(said), key=said.count) if said else ("", "")
        return {"backend": self.kind, "cause": common[0], "said": common[1], "tries": int(tries),
                "anon_first_kib": self.first[0], "anon_most_kib": self.anon, "fds_first": self.first[1], "fds_most": self.fds,
                "log_bytes": len(self.proc.text), "back_s": None}


def run(seconds, kinds):
    tmp, loop = viwtest.make_tmp(), viwtest.WsLoop()
    start, pki = viwtest.Starter(tmp), viwtest.Pki(tmp)
    start.dir = tmp
    made = [Watched(i, k, Dead(k, loop, pki), start, pki) for i, k in enumerate(kinds)]
    began, warm = time.monotonic(), min(90, seconds / 2)
    while time.monotonic() - began < seconds:
        time.sleep(1)
        for w in made:
            w.sample(time.monotonic() - began > warm)
    rows = [w.row() for w in made]
    before = [len(w.proc.find_logs("connected")) for w in made]
    healed = time.monotonic()
    for w in made:
        w.dead.heal()
        w.healed = time.monotonic()
    while time.monotonic() - healed < BACK_S and any(r["back_s"] is None for r in rows):
        time.sleep(0.1)
        for r, w, n in zip(rows, made, before):
            if r["back_s"] is None and len(w.proc.find_logs("connected")) > n:
                r["back_s"] = round(time.monotonic() - w.healed, 1)
    faults = [f"{r['backend']}: not back after {BACK_S} s" for r in rows if r["back_s"] is None]
    for r in rows:
        if r["anon_most_kib"] > r["anon_first_kib"] + GROWTH_KIB or r["fds_most"] > r["fds_first"] + 2:
            faults.append(f"{r['backend']}: grew: {r}")
        print(r)
    faults += start.close()
    for w in made:
        w.dead.close()
    return {"seconds": seconds, "rows": rows, "faults": faults}


def tables():
    d = json.loads((RESULTS / "agent_faults.json").read_text())
    return (f"{len(d['rows'])} agents, each against a backend that was dead in its own way for {d['seconds']} s and then healed, all in one "
            f"run (`bench/bench_agent_faults.py --seconds {d['seconds']}`; release build). Memory is anonymous memory and descriptors are "
            "open files, each after 90 s and at the most in any later second.\n\n" +
            table(["backend", "the agent says", "and does", "tries", "memory KiB", "descriptors", "back after"],
                  [[r["backend"], f"`{r['cause']}` {clean(r['said'])}", KINDS[r["backend"]], r["tries"],
                    f"{r['anon_first_kib']} → {r['anon_most_kib']}", f"{r['fds_first']} → {r['fds_most']}", f"{r['back_s']} s"]
                   for r in d["rows"]]))


def clean(said):
    return re.sub(r"pin [A-Za-z0-9+/]{43}=", "pin …", re.sub(r"port \d+", "port 8082", said))


def main():
    o = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    o.add_argument("--seconds", type=int, default=600)
    o.add_argument("--only", type=lambda s: s.split(","), help="kinds, by commas")
    o.add_argument("--no-results", action="store_true")
    o.add_argument("--readme", action="store_true")
    a = o.parse_args()
    if a.readme:
        put_between(ROOT / "docs" / "agent.md", "faults", tables())
        return 0
    result = run(a.seconds, a.only or list(KINDS))
    if not a.no_results:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "agent_faults.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(result["faults"]))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
