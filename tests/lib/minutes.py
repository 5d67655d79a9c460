"""What takes a bridge whole minutes: begun when the test session begins, looked at by its last
integration tests (test_07_bridge_time.py), so that the minutes pass beside other tests."""
import json
import shutil
import signal
import socket
import threading
import time

import bridgetest
import viwtest

_begun = None


def get():
    global _begun
    if _begun is None:
        _begun = Minutes()
    return _begun


def end():
    if _begun is not None:
        _begun.close()


class Minutes:
    def __init__(self):
        self.tmp, self.redis, self.bridges = viwtest.make_tmp(), [], []
        self.starter, self.loop, self.stop = viwtest.Starter(self.tmp), viwtest.WsLoop(), threading.Event()
        self.closed = {}  # agent -> close code seen by python websockets or below
        self.began = time.monotonic()
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _bridge(self, **settings):
        (self.tmp / f"r{len(self.redis)}").mkdir()
        redis = viwtest.RedisServer(self.tmp / f"r{len(self.redis)}").start()
        self.redis.append(redis)
        b = bridgetest.Bridge(self.starter, redis, lambda *a, **k: viwtest.WsClient(self.loop, *a, **k),
                              send_queue_msgs=1000000, send_queue_bytes=1 << 29, **settings)
        self.bridges.append(b)
        return b

    def _begin(self):
        from test_02_bridge_frames import Raw
        a, b, c = self._bridge(id="minutes-a"), self._bridge(id="minutes-b"), self._bridge(id="minutes-c")
        self.a, self.b, self.c = a, b, c
        self.patient = c.connect("patient")
        self.woken = threading.Event()
        self._thread(self._stop_for_a_while, c)
        self.calm = a.connect("calm")
        silent, trickle, stuck = Raw(a, "silent"), Raw(a, "trickle"), Raw(a, "stuck", rcvbuf=2048)
        self.raws = [silent, trickle, stuck]
        for raw in (silent, trickle):
            self._thread(self._note_close, raw, raw is silent and "silent" or "trickle")
        self._thread(self._trickle, trickle)
        self._thread(self._never_read, stuck)
        self.behind = b.connect("behind")
        b.redis.freeze()
        self._thread(self._flood, self.behind)

    def _thread(self, fn, *args):
        threading.Thread(target=fn, args=args, daemon=True).start()

    def _stop_for_a_while(self, bridge):
        """As a machine that is moved, or short of memory, does to its programs."""
        bridge.proc.signal(signal.SIGSTOP)
        self.stop.wait(44)
        bridge.proc.signal(signal.SIGCONT)
        self.woken.set()

    def _note_close(self, raw, name):
        self.closed[name] = raw.recv_close(timeout=300)

    def _trickle(self, raw):
        """Half a frame, byte by byte: heard all the time, and never done."""
        try:
            raw.s.sendall(raw.frame(b"", announce=10000))
            while not self.stop.wait(2):
                raw.s.sendall(b"x")
        except OSError:
            pass

    def _never_read(self, raw):
        """Asks for more answers than its window takes, then only says that it lives."""
        ping = raw.frame(json.dumps({"type": "PING", "ts": "t" * 60}).encode())
        try:
            for _ in range(2500):
                raw.s.sendall(ping * 20)
            while not self.stop.wait(5):
                raw.s.sendall(ping)
        except (OSError, socket.timeout):
            pass

    def _flood(self, client):
        frame = json.dumps(bridgetest.telemetry("behind", pad="x" * 100000))
        while not self.stop.is_set():
            try:
                client.send(frame)
            except Exception:  # paused: the send blocks until its own time limit
                if client.ws.closed:
                    self.closed["behind"] = client.ws.close_code
                    self.disconnected(self.b, "behind", 30)
                    self.b.proc.kill()  # what it kept for its Redis is given back to this machine
                    return

    def disconnected(self, bridge, agent_id, timeout):
        """The log line of its end."""
        return bridge.proc.wait_log("disconnected", agent_id=agent_id, timeout=timeout)

    def close(self):
        self.stop.set()
        for redis in self.redis:
            redis.close()
        self.starter.close()
        self.loop.close()
        shutil.rmtree(self.tmp, ignore_errors=True)
