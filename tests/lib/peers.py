"""The agent's peers for tests of the agent alone: a bridge made of python websockets (a program we
did not write checks our framing), and a helper that can misbehave on purpose. Tests of the whole
use the real ones.
"""
import asyncio
import hashlib
import hmac
import json
import time
import uuid

import viwtest


class Conn:
    """One agent connection seen by the bridge."""

    def __init__(self, ws, headers, path):
        self.ws, self.headers, self.path = ws, headers, path
        self.frames = []
        self.closed = False

    def of(self, type):
        return [f for f in list(self.frames) if f.get("type") == type]


class PeerBridge:
    """A WebSocket server that speaks the contract's section 1.

    refuse: (status, headers) for the next handshakes, or None. silent: accept, then say nothing.
    ack: RESULT_ACK results. epoch: the highest given out, by all of them as by bridges that share a
    Redis. Everything else is up to the test.
    """
    epoch = 0

    def __init__(self, ws_loop, host="127.0.0.1", port=None, ssl=None, secret=None, path="/agent/ws"):
        self.loop, self.host, self.port, self.ssl = ws_loop, host, port or viwtest.free_port(), ssl
        self.secret, self.path = secret, path
        self.conns, self.handshakes = [], []
        self.refuse, self.silent, self.ack, self.welcome, self.answer_heartbeat = None, False, True, True, True
        self.hello_ack = {}
        self.server = None

    def start(self):
        self.loop.run(self._start())
        return self

    async def _start(self):
        import wslib
        self.server = await wslib.serve(
            self._handle, self.host, self.port, ssl=self.ssl, process_request=self._request,
            subprotocols=["viworks-agent-v1"], ping_interval=None, max_size=2 ** 20)

    def close(self):
        async def stop():
            self.server.close()
            await self.server.wait_closed()
        if self.server:
            self.loop.run(stop())
            self.server = None

    async def _request(self, path, headers):
        self.handshakes.append((time.monotonic(), path, dict(headers)))
        if self.refuse:
            status, extra = self.refuse
            body = b'{"error":{"code":"test","msg":"refused by the test"}}'
            import http
            return http.HTTPStatus(status), [("Content-Type", "application/json"), *extra], body
        if self.secret:
            text = "|".join(["GET", path, headers["X-Timestamp"], headers["X-Nonce"], headers["X-Agent-Id"]])
            want = hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
            if not hmac.compare_digest(want, headers.get("X-Agent-Auth", "").lower()):
                import http
                return http.HTTPStatus(401), [], b"{}"
        return None

    async def _handle(self, ws, path=None):
        import wslib
        conn = Conn(ws, dict(ws.request_headers), ws.path)
        self.conns.append(conn)
        agent = conn.headers.get("x-agent-id") or ws.request_headers["X-Agent-Id"]
        conn.epoch = PeerBridge.epoch = max(PeerBridge.epoch + 1, int(time.time() * 1000))
        try:
            if not self.silent:
                ack = {"type": "HELLO_ACK", "agent_id": agent, "conn_id": str(uuid.uuid4()),
                       "epoch": conn.epoch, "server_time": viwtest.rfc3339(), "supported": ["HELLO"],
                       "heartbeat_s": 20, "max_frame_bytes": 262144}
                ack.update(self.hello_ack)
                await ws.send(json.dumps(ack))
            async for text in ws:
                frame = json.loads(text)
                conn.frames.append(frame)
                await self._answer(ws, conn, frame)
        except wslib.ConnectionClosed:
            pass
        finally:
            conn.closed = True
            conn.close_code = ws.close_code

    async def _answer(self, ws, conn, frame):
        kind = frame["type"]
        if kind == "HELLO" and self.welcome:
            await ws.send(json.dumps({"type": "WELCOME", "session_id": "s", "heartbeat_s": 20,
                                      "cmd_timeout_s": 30, "max_in_flight": 4,
                                      "now": viwtest.rfc3339(), "server_nonce": str(uuid.uuid4())}))
        elif kind == "RESULT" and self.ack:
            await ws.send(json.dumps({"type": "RESULT_ACK", "correlation_id": frame["correlation_id"]}))
        elif kind == "HEARTBEAT" and self.answer_heartbeat:
            await ws.send(json.dumps({"type": "HEARTBEAT", "ts": viwtest.rfc3339(), "echo": frame.get("ts")}))

    # ---- what tests ask

    def wait_conn(self, n=1, timeout=10.0):
        return viwtest.wait_for(lambda: len(self.conns) >= n and self.conns[n - 1], timeout, f"connection {n}")

    def wait_frame(self, type, n=1, timeout=10.0, conn=None, **fields):
        """The n-th frame of this type over all connections (or of one), with these fields."""
        def found():
            conns = [conn] if conn else list(self.conns)
            hits = [f for c in conns for f in c.of(type) if all(f.get(k) == v for k, v in fields.items())]
            return hits[n - 1] if len(hits) >= n else None
        return viwtest.wait_for(found, timeout, f"{n} {type} {fields}")

    def send(self, frame, conn=None):
        conn = conn or self.conns[-1]
        self.loop.run(conn.ws.send(frame if isinstance(frame, (str, bytes)) else json.dumps(frame)))

    def command(self, agent_id, verb, args=None, cid=None, ttl_ms=30000, conn=None, **fields):
        cid = cid or str(uuid.uuid4())
        frame = {"type": "COMMAND", "correlation_id": cid, "agent_id": agent_id, "verb": verb,
                 "args": args or {}, "issued_at": viwtest.rfc3339(),
                 "expires_at": viwtest.rfc3339(ttl_ms / 1000), "ttl_remaining_ms": ttl_ms,
                 "nonce": str(uuid.uuid4())}
        frame.update(fields)
        self.send(frame, conn)
        return cid

    def cancel(self, cid, reason="cancelled"):
        self.send({"type": "CANCEL", "correlation_id": cid, "reason": reason})

    def result(self, cid, timeout=10.0, n=1):
        return self.wait_frame("RESULT", n=n, timeout=timeout, correlation_id=cid)

    def hang_up(self, code=1000, reason="", conn=None):
        self.loop.run((conn or self.conns[-1]).ws.close(code, reason))

    def drop(self, conn=None):
        """Ends the TCP connection without a close frame."""
        def now():
            (conn or self.conns[-1]).ws.transport.abort()
        self.loop.loop.call_soon_threadsafe(now)


def agent_env(tmp, bridge_url, agent_id="gw-1", **more):
    """The least settings of an agent for tests."""
    state = tmp / f"state-{agent_id}"
    state.mkdir(exist_ok=True)
    env = {"VIW_AGENT_BACKEND_URL": bridge_url, "VIW_AGENT_ID": agent_id,
           "VIW_AGENT_STATE_DIR": state, "VIW_AGENT_TELEMETRY_INTERVAL_S": 1}
    env.update(more)
    return {k: v for k, v in env.items() if v is not None}
