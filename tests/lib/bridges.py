"""Bridges and the agents that talk to them, for the command chapters."""
import json
import urllib.request
from pathlib import Path

import pytest
import viwtest
from viwtest import wait_for

SECRET = "a-test-secret-of-the-handshake"


LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def elsewhen(start, ahead):
    """start for programs whose wall clock is ahead, as "+120s"."""
    plain = viwtest.plain_build()
    if plain is None or not LIBFAKETIME.exists():
        pytest.skip("needs libfaketime, and a build without AddressSanitizer, which waits for it for ever: ./viw build release")

    def go(name, env):
        return start(str(plain / name), env=dict(env, LD_PRELOAD=str(LIBFAKETIME), FAKETIME=ahead, FAKETIME_DONT_FAKE_MONOTONIC="1"))
    return go


class Bridge:
    """One agent-bridge program on a Redis, its name, and plain agents without a journal or with one."""

    def __init__(self, start, redis, connect, bridge_id="b1", **env):
        self.redis, self.connect, self.id = redis, connect, bridge_id
        self.port = viwtest.free_port()
        full = {"AGENT_BRIDGE_ID": bridge_id, "AGENT_BRIDGE_BIND": f"127.0.0.1:{self.port}",
                "AGENT_BRIDGE_REDIS_URL": redis.unix_url, "AGENT_BRIDGE_SHARED_SECRET": SECRET,
                "AGENT_BRIDGE_DRAIN_S": "0", "AGENT_BRIDGE_RATE_PER_AGENT": "100000",
                "AGENT_BRIDGE_RATE_PER_IP": "1000000", "AGENT_BRIDGE_MAX_CONN": "20000"}
        full.update({f"AGENT_BRIDGE_{k}": str(v) for k, v in env.items()})
        self.proc = start("agent-bridge", env=full)
        self.proc.wait_log("listening")
        self.proc.wait_log("redis_up")

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/agent/ws"

    def agent(self, agent_id, ready=True, **hello):
        a = self.connect(self.url, headers=viwtest.handshake_headers(agent_id, SECRET))
        a.agent_id = agent_id
        if ready:
            a.ack, a.welcome = a.hello(agent_id, **hello)
        else:
            a.ack = a.expect("HELLO_ACK")
        return a


def metric(bridge, name):
    """A series with its labels, or the sum over all of them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{bridge.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if name in (line.split(" ")[0], line.split(" ")[0].split("{")[0]))


def result(cid, agent_id, status="success", **fields):
    return {"type": "RESULT", "agent_id": agent_id, "correlation_id": cid, "status": status, **fields}


def results(redis, cid=None):
    """Rows of viw.command_results as dicts, `frame` decoded."""
    rows = [dict(fields, id=entry) for entry, fields in redis.client.xrange("viw.command_results")]
    for row in rows:
        row["frame"] = json.loads(row["frame"])
    return [row for row in rows if cid is None or row["correlation_id"] == cid]


def wait_result(redis, cid, timeout=10.0):
    return wait_for(lambda: results(redis, cid), timeout, f"a result of {cid}")[0]


def leftovers(redis):
    """Keys that must be gone when no command is open."""
    keep = ("viw.mbox.", "viw.offered.", "viw.deadlines", "viw.waiting")
    return sorted(k for k in redis.client.scan_iter("viw.*") if k.startswith(keep))
