"""Plain agents: WebSocket clients without a journal, as a test or a small device would be. One keeps
the RESULT of a command until RESULT_ACK and sends it again after each reconnect."""
import asyncio
import json
import random
import time

import viwtest
import wslib


class PlainAgent:
    def __init__(self, loop, agent_id, urls, secret, ledger, rng):
        self.loop, self.agent_id, self.urls, self.secret = loop, agent_id, urls, secret
        self.ledger, self.rng = ledger, random.Random(rng.random())
        self.forget_after_ack = False   # a client that trusts the bridge's dedupe alone
        self.results = {}               # correlation_id -> RESULT, until forgotten
        self.unacked = set()
        self.stopped = False
        self.current, self.moved_at, self.paused = None, 0.0, False
        self.stale = []                 # COMMANDs on a connection that was superseded for a while
        self.connections = self.received = 0
        self.hellos_refused = {}
        self.task = asyncio.run_coroutine_threadsafe(self._run(), loop.loop)

    async def _run(self):
        while not self.stopped:
            while self.paused:
                await asyncio.sleep(0.05)
            try:
                await self._session(self.rng.choice(self.urls))
            except (OSError, wslib.WebSocketException, asyncio.TimeoutError, EOFError) as e:
                name = type(e).__name__
                self.hellos_refused[name] = self.hellos_refused.get(name, 0) + 1
            if not self.stopped:
                await asyncio.sleep(0.1 + self.rng.random() * 0.9)

    async def _session(self, url):
        headers = viwtest.handshake_headers(self.agent_id, self.secret)
        async with wslib.connect(url, extra_headers=headers, subprotocols=["viworks-agent-v1"],
                                      ping_interval=15, ping_timeout=15, open_timeout=8, close_timeout=1,
                                      compression=None, max_size=2**22) as ws:
            ack = json.loads(await asyncio.wait_for(ws.recv(), 10))
            assert ack["type"] == "HELLO_ACK", ack
            await self._send(ws, {"type": "HELLO", "version": "1.0", "capabilities": []})
            self.connections += 1
            welcome = json.loads(await asyncio.wait_for(ws.recv(), 10))
            assert welcome["type"] == "WELCOME", welcome
            self.current, self.moved_at = ws, time.monotonic()
            for cid in sorted(self.unacked):
                await self._send(ws, self.results[cid])
            jobs = set()
            try:
                async for text in ws:
                    frame = json.loads(text)
                    job = asyncio.ensure_future(self._on_frame(ws, frame))
                    jobs.add(job)
                    job.add_done_callback(jobs.discard)
                    if self.stopped:
                        return
            finally:
                await asyncio.gather(*jobs, return_exceptions=True)

    async def _send(self, ws, frame):
        await ws.send(json.dumps({"agent_id": self.agent_id, **frame}))

    async def _try_send(self, ws, frame):
        """What is not sent now is sent after the next reconnect."""
        try:
            await self._send(ws, frame)
        except (OSError, wslib.WebSocketException):
            pass

    async def _on_frame(self, ws, frame):
        kind, cid = frame["type"], frame.get("correlation_id")
        if kind == "COMMAND":
            self.received += 1
            if ws is not self.current and time.monotonic() - self.moved_at > 1.0:
                self.stale.append(cid)
            await self._on_command(ws, frame)
        elif kind == "CANCEL":
            if cid not in self.results:
                status = "expired" if frame.get("reason") == "expired" else "cancelled"
                self._keep(cid, {"type": "RESULT", "correlation_id": cid, "status": status})
            elif self.results[cid] is None:
                return  # runs; its RESULT will follow
            await self._try_send(ws, self.results[cid])
        elif kind == "RESULT_ACK":
            self.unacked.discard(cid)
            if self.forget_after_ack:
                self.results.pop(cid, None)

    def _keep(self, cid, result):
        self.results[cid] = result
        self.unacked.add(cid)

    async def _on_command(self, ws, frame):
        cid, args = frame["correlation_id"], frame["args"]
        if cid not in self.results:
            self.results[cid] = None
            self.ledger.write(cid, "start", 0)
            await self._try_send(ws, {"type": "COMMAND_ACK", "correlation_id": cid})
            await asyncio.sleep(args.get("ms", 0) / 1000)
            rc = args.get("rc", 0)
            self.ledger.write(cid, "end", rc)
            self._keep(cid, {"type": "RESULT", "correlation_id": cid, "status": "success", "rc": rc,
                             "stdout": "plain", "command": frame["verb"]})
        if self.results[cid] is not None:
            await self._try_send(ws, self.results[cid])

    async def _second_face(self, url, seconds):
        self.paused, old = True, self.current
        try:
            face = asyncio.ensure_future(asyncio.wait_for(self._session(url), seconds))
            await asyncio.sleep(seconds * 0.8)
            if old is not None and old.open and self.current is not old and time.monotonic() - self.moved_at > 2:
                self.stale.append("(none yet, but it was not closed)")
            await face
        except (OSError, wslib.WebSocketException, asyncio.TimeoutError, EOFError):
            pass
        self.paused = False

    def second_face(self, url, seconds):
        """Opens a connection to another bridge and goes on reading the one it has."""
        asyncio.run_coroutine_threadsafe(self._second_face(url, seconds), self.loop.loop)

    def stop(self):
        self.stopped = True
        self.task.cancel()
