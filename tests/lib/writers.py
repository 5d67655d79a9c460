"""What the tests of the writers share: stream entries as the bridge makes them, and the two programs."""
import json
import os

import viwtest

PREFIX = "viw"


def frame(agent, ts=None, seq=None, **metrics):
    f = {"type": "TELEMETRY", "agent_id": agent, "ts": ts or viwtest.rfc3339(), "metrics": metrics}
    if seq is not None:
        f["seq"] = seq
    return f


def origin(agent, conn="c1", epoch=1, bridge="b1", received_at=None):
    return {"agent_id": agent, "bridge_id": bridge, "conn_id": conn, "epoch": epoch, "ip": "192.0.2.7",
            "received_at": received_at or viwtest.rfc3339()}


def add_telemetry(client, agent, ts=None, seq=None, conn="c1", epoch=1, bridge="b1", received_at=None,
                  **metrics):
    fields = origin(agent, conn, epoch, bridge, received_at)
    fields["frame"] = json.dumps(frame(agent, ts, seq, **metrics))
    return client.xadd(f"{PREFIX}.telemetry", fields)


def add_hello(client, agent, conn="c1", epoch=1, bridge="b1", **extra):
    hello = {"type": "HELLO", "agent_id": agent, "version": "1.0", "capabilities": ["exec"], **extra}
    return client.xadd(f"{PREFIX}.agent_hello", {**origin(agent, conn, epoch, bridge),
                                                 "frame": json.dumps(hello)})


def add_event(client, agent, event, reason=None, conn="c1", epoch=1, bridge="b1", record=None):
    fields = {**origin(agent, conn, epoch, bridge), "event": event}
    if reason:
        fields["reason"] = reason
    if record is not None:
        fields["frame"] = json.dumps({"type": "AUDIT", "agent_id": agent, "record": record})
    return client.xadd(f"{PREFIX}.agent_events", fields)


def add_command(client, cid, agent="gw-1", command="ECHO", params=None, **extra):
    return client.xadd(f"{PREFIX}.commands", {"correlation_id": cid, "agent_id": agent, "command": command,
                                              "params": json.dumps(params or {}), **extra})


def add_command_event(client, cid, event, agent="gw-1"):
    return client.xadd(f"{PREFIX}.command_events", {
        "correlation_id": cid, "agent_id": agent, "event": event, "bridge_id": "b1", "conn_id": "c1",
        "epoch": 1, "received_at": viwtest.rfc3339()})


def result(cid, agent="gw-1", status="success", **extra):
    return {"type": "RESULT", "agent_id": agent, "correlation_id": cid, "status": status, **extra}


def add_result(client, cid, agent="gw-1", source="agent", state=None, status="success", command="ECHO",
               **extra):
    fields = {"correlation_id": cid, "agent_id": agent, "source": source, "command": command,
              "issued_by_admin_id": "admin-1", "bridge_id": "b1", "epoch": 1,
              "received_at": viwtest.rfc3339(), "frame": json.dumps(result(cid, agent, status, **extra))}
    if state:
        fields["state"] = state
    return client.xadd(f"{PREFIX}.command_results", fields)


class Writer:
    """One running writer and where its endpoints answer."""

    def __init__(self, proc, port):
        self.proc, self.port = proc, port

    def get(self, path):
        import urllib.error
        import urllib.request
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metric(self, name, **labels):
        """The sample's value, or None."""
        want = name + ("{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}" if labels else "")
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(want + " "):
                return float(line.split()[-1])
        return None


def start_writer(start, kind, redis, database_url, env=None, **settings):
    prefix = f"{kind.upper()}_WRITER"
    port = viwtest.free_port()
    full = {f"{prefix}_REDIS_URL": redis.unix_url, f"{prefix}_DATABASE_URL": database_url,
           f"{prefix}_INTERNAL_BIND": f"127.0.0.1:{port}", f"{prefix}_LOG_LEVEL": "debug"}
    full.update({f"{prefix}_{k}": str(v) for k, v in settings.items()})
    proc = start(f"{kind}-writer", env={**full, **(env or {})})
    proc.wait_log("started")
    return Writer(proc, port)


def raw_client(client):
    """The same server without decoding: entries may hold any bytes."""
    import redis
    return redis.Redis(unix_socket_path=client.connection_pool.connection_kwargs["path"])


def drained(client, stream, group):
    """True when the group has read and acknowledged all there is."""
    import redis
    key = f"{PREFIX}.{stream}"
    try:
        for g in client.xinfo_groups(key):
            if g["name"] == group:
                last = raw_client(client).xrevrange(key, count=1)
                return g["pending"] == 0 and (not last or last[0][0].decode() == g["last-delivered-id"])
    except redis.exceptions.ResponseError:  # no stream yet
        pass
    return False


def wait_drained(client, kind, timeout=15.0):
    streams = {"telemetry": ("agent_hello", "telemetry", "agent_events"),
               "results": ("commands", "command_events", "command_results", "dead_letters")}[kind]
    viwtest.wait_for(lambda: all(drained(client, s, f"{kind}-writer") for s in streams), timeout,
                     f"{kind}-writer stored all entries")


def rss_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
