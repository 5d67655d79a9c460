"""What gateway-agent costs when it is written with Python and websockets: mTLS, HELLO, TELEMETRY from
/proc every 30 s, HEARTBEAT every 20 s. Measured by bench/bench_agent.py only."""
import asyncio
import datetime
import json
import os
import ssl
import sys
import uuid

import websockets

url, agent_id, ca, cert, key = sys.argv[1:6]


def stamp():
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cpu():
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    return sum(v), sum(v) - v[3] - v[4]


last = cpu()


def metrics():
    global last
    now = cpu()
    with open("/proc/meminfo") as f:
        mem = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f}
    s, load = os.statvfs("/"), os.getloadavg()
    used = s.f_blocks - s.f_bfree
    with open("/proc/uptime") as f:
        up = int(float(f.read().split()[0]))
    pct = 100 * (now[1] - last[1]) / max(1, now[0] - last[0])
    last = now
    return {"cpu_pct": pct, "mem_pct": 100 * (1 - mem["MemAvailable"] / mem["MemTotal"]), "mem_total_bytes": mem["MemTotal"],
            "mem_available_bytes": mem["MemAvailable"], "disk_pct": 100 * used / (used + s.f_bavail),
            "disk_total_bytes": s.f_blocks * s.f_frsize, "disk_free_bytes": s.f_bavail * s.f_frsize, "load1": load[0],
            "load5": load[1], "load15": load[2], "uptime_s": up, "services": {}, "helper": "down"}


async def main():
    ctx = ssl.create_default_context(cafile=ca)
    ctx.load_cert_chain(cert, key)
    headers = {"X-Agent-Id": agent_id, "X-Timestamp": stamp(), "X-Nonce": str(uuid.uuid4())}
    async with websockets.connect(url, ssl=ctx, subprotocols=["viworks-agent-v1"], extra_headers=headers,
                                  compression=None, ping_interval=None) as ws:
        seq, boot = 0, str(uuid.uuid4())

        async def send(frame):
            await ws.send(json.dumps(frame))

        async def telemetry():
            nonlocal seq
            while True:
                seq += 1
                await send({"type": "TELEMETRY", "agent_id": agent_id, "ts": stamp(), "metrics": metrics(),
                            "boot_id": boot, "seq": seq})
                await asyncio.sleep(30)

        async def heartbeat():
            while True:
                await asyncio.sleep(20)
                await send({"type": "HEARTBEAT", "agent_id": agent_id, "ts": stamp()})

        tasks = []
        async for text in ws:
            kind = json.loads(text)["type"]
            if kind == "HELLO_ACK":
                await send({"type": "HELLO", "agent_id": agent_id, "version": "1", "capabilities": [], "boot_id": boot})
            if kind == "WELCOME":
                tasks += [asyncio.create_task(telemetry()), asyncio.create_task(heartbeat())]

asyncio.run(main())
