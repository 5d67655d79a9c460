"""Proxies between the programs, and what they can do to a link. They live in one asyncio loop in a
thread of its own; the methods may be called from any thread."""
import asyncio
import os
import random
import threading

MODES = ("delay", "split", "truncate", "drop_replies", "stall", "refuse")


class Loop:
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coro, timeout=20):
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result(timeout)

    def call(self, fn, *args):
        self.loop.call_soon_threadsafe(fn, *args)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)


class Link:
    """One proxy: listens on a loopback port or a unix socket, forwards to `target` (port or path)."""

    def __init__(self, loop, name, target, rng, listen=None):
        self.loop, self.name, self.target = loop, name, target
        self.rng = random.Random(rng.random())
        self.mode, self.connections, self.bytes = "pass", set(), 0
        self.listen = listen
        self.server = loop.run(self._start())

    async def _start(self):
        if self.listen is None:
            server = await asyncio.start_server(self._on_client, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
        else:
            server = await asyncio.start_unix_server(self._on_client, str(self.listen))
            os.chmod(self.listen, 0o777)
        return server

    async def _open(self):
        if isinstance(self.target, int):
            return await asyncio.open_connection("127.0.0.1", self.target)
        return await asyncio.open_unix_connection(str(self.target))

    async def _on_client(self, reader, writer):
        if self.mode == "refuse":
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await self._open()
        except OSError:
            writer.transport.abort()
            return
        conn = Connection(self, reader, writer, up_reader, up_writer)
        self.connections.add(conn)
        await conn.run()
        self.connections.discard(conn)

    def set_mode(self, mode):
        """"pass" heals: connections that lost bytes are cut, for no real link resumes after a gap."""
        def apply():
            self.mode = mode
            for c in list(self.connections):
                if mode == "refuse" or (mode == "pass" and c.lost):
                    c.abort()
        self.loop.call(apply)

    def retarget(self, target):
        self.target = target


class Connection:
    def __init__(self, link, reader, writer, up_reader, up_writer):
        self.link, self.lost = link, False
        self.writers = (writer, up_writer)
        self.pumps = ((reader, up_writer, False), (up_reader, writer, True))
        self.allowance = link.rng.randrange(1, 4096)  # bytes of replies before "truncate" cuts

    def abort(self):
        for w in self.writers:
            w.transport.abort()

    async def run(self):
        tasks = [asyncio.ensure_future(self._pump(*p)) for p in self.pumps]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            for t in tasks:
                t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, reader, writer, is_reply):
        try:
            while True:
                data = await reader.read(65536)
                if not data:
                    return
                self.link.bytes += len(data)
                if not await self._forward(data, writer, is_reply):
                    return
        except (OSError, asyncio.IncompleteReadError):
            return

    async def _forward(self, data, writer, is_reply):
        mode, rng = self.link.mode, self.link.rng
        if mode == "stall" or (mode == "drop_replies" and is_reply):
            self.lost = True
            return True
        if mode == "truncate" and is_reply:
            self.allowance -= len(data)
            if self.allowance < 0:
                writer.write(data[:max(0, len(data) + self.allowance)])
                await writer.drain()
                return False
        if mode == "delay":
            await asyncio.sleep(rng.random() * 0.4)
        if mode == "split":
            return await self._split(data, writer)
        writer.write(data)
        await writer.drain()
        return True

    async def _split(self, data, writer):
        at = 0
        while at < len(data):
            n = self.link.rng.choice((1, 2, 3, 7, 64, 1500))
            writer.write(data[at:at + n])
            await writer.drain()
            at += n
            if self.link.rng.random() < 0.2:
                await asyncio.sleep(0.001)
        return True
