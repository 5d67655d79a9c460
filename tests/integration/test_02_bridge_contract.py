"""Sentences of contract 1, 2 and 4 that no other file is about."""
import json
import re

import bridgetest
import pytest
import viwtest
from bridgetest import result, telemetry


def test_one_prefix_renames_every_key(start, redis, connect):
    b = bridgetest.Bridge(lambda name, env: start(name, env={**env, "VIW_STREAM_PREFIX": "acme"}), redis, connect)
    ws = b.connect("gw-1")
    ws.send(telemetry("gw-1"))
    cid = redis.xadd_command("gw-1", "ECHO", prefix="acme")
    ws.expect("COMMAND", correlation_id=cid)
    ws.send({"type": "COMMAND_ACK", "agent_id": "gw-1", "correlation_id": cid})
    ws.send(result("gw-1", cid, rc=0))
    ws.expect("RESULT_ACK", correlation_id=cid)
    assert b.post("gw-1")[0] == 202
    keys = set(redis.client.keys("*"))
    assert {f"acme.{s}" for s in ("commands", "agent_hello", "telemetry", "agent_events", "command_events",
                                  "command_results")} <= keys
    assert not [k for k in keys if not k.startswith("acme.")]


def test_a_redis_that_may_lose_commands_is_named_at_the_start(tmp, start, connect):
    redis = viwtest.RedisServer(tmp).start("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    try:
        b = bridgetest.Bridge(start, redis, connect)
        assert b.proc.wait_log("redis_config", setting="maxmemory-policy")["level"] == "warn"
        assert b.proc.wait_log("redis_config", setting="appendonly")["level"] == "warn"
        b.proc.stop()
    finally:
        redis.close()


def test_what_the_backend_gives_reaches_the_agent_and_nothing_is_null(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    b.redis.xadd_command("gw-1", "ECHO", correlation_id="c-1", params={"message": "m"}, issued_by_admin_id="7",
                         signature="sig", ttl_s="90", issued_at=viwtest.rfc3339())
    full = ws.expect("COMMAND")
    assert full["signature"] == "sig" and full["issued_by"] == "7" and full["args"] == {"message": "m"}
    assert 80_000 < full["ttl_remaining_ms"] <= 90_000 and full["nonce"] and full["expires_at"] > full["issued_at"]
    b.redis.xadd_command("gw-1", "ECHO", correlation_id="c-2")
    bare = ws.expect("COMMAND")
    assert bare["args"] == {} and 50_000 < bare["ttl_remaining_ms"] <= 60_000
    assert not {"signature", "issued_by"} & set(bare) and None not in bare.values()


def test_x_forwarded_for_counts_from_trusted_proxies_only(bridge):
    b = bridge()
    ws = b.connect("gw-1", headers={**b.headers("gw-1"), "X-Forwarded-For": "198.51.100.7"})
    assert ws.welcome
    assert b.entries("agent_events", event="connected")[0]["ip"] == "127.0.0.1"
    b.refused({**b.headers("gw-2", secret="wrong"), "X-Forwarded-For": "198.51.100.7"})
    assert b.proc.wait_log("handshake_refused", error="bad_auth")["ip"] == "127.0.0.1"


def test_entries_of_each_stream_carry_the_fields_they_are_promised_with(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    ws.send(telemetry("gw-1"))
    ws.send({"type": "AUDIT", "agent_id": "gw-1", "record": {}})
    cid = b.redis.xadd_command("gw-1", "ECHO", issued_by_admin_id="7", issued_at=viwtest.rfc3339())
    ws.expect("COMMAND", correlation_id=cid)
    ws.send({"type": "COMMAND_ACK", "agent_id": "gw-1", "correlation_id": cid})
    ws.send(result("gw-1", cid, rc=0))
    ws.expect("RESULT_ACK", correlation_id=cid)
    ws.close()
    where = {"bridge_id": "bridge-t", "conn_id": ws.hello_ack["conn_id"], "epoch": str(ws.hello_ack["epoch"])}

    def one(stream, *names, **fields):
        [entry] = b.entries(stream, agent_id="gw-1", **fields)
        entry.pop("id")
        assert set(entry) == {"agent_id", "bridge_id", "epoch", "received_at", *fields, *names}, entry
        assert entry == {**entry, **{k: v for k, v in where.items() if k in entry}}
        assert len(entry["received_at"]) == 24 and entry["received_at"].endswith("Z")
        return entry
    one("agent_hello", "frame", "conn_id", "ip")
    one("telemetry", "frame", "conn_id", "ip")
    one("agent_events", "conn_id", "ip", event="connected")
    one("agent_events", "frame", "conn_id", "ip", event="audit")
    one("agent_events", "reason", "conn_id", "ip", event="disconnected")
    one("command_events", "conn_id", event="offered", correlation_id=cid)
    one("command_events", "conn_id", event="accepted", correlation_id=cid)
    stored = one("command_results", "frame", "command", "issued_at", "expires_at", correlation_id=cid, source="agent",
                 issued_by_admin_id="7")
    assert stored["command"] == "ECHO" and stored["expires_at"] > stored["issued_at"]


def test_a_stream_that_redis_refuses_for_good_is_told(bridge):
    """As it does with a key of another kind, or for a user without the right."""
    b = bridge()
    ws = b.connect()
    for stream in ("telemetry", "commands"):
        b.redis.client.delete(f"viw.{stream}")
        b.redis.client.set(f"viw.{stream}", "no stream")
    for seq in range(5):
        ws.send(telemetry("gw-1", seq))
    for stream in ("telemetry", "commands"):
        assert b.proc.wait_log("redis_refused", stream=stream)["error"].startswith("WRONGTYPE")
    ws.send({"type": "PING"})
    ws.expect("PONG")
    assert len(b.proc.find_logs("redis_refused", stream="telemetry")) == 1
    b.redis.client.delete("viw.telemetry", "viw.commands")
    ws.send(telemetry("gw-1", 6))
    b.entries("telemetry", count=1)
    b.redis.xadd_command("gw-1", "ECHO", correlation_id="c-1")
    assert ws.expect("COMMAND", timeout=15)["correlation_id"] == "c-1"


def test_offers_that_redis_refuses_for_good_are_told_not_over_and_over(bridge):
    b = bridge()
    agents = [f"gw-{i}" for i in range(5)]
    for agent in agents:
        b.redis.client.set(f"viw.mbox.{agent}", "no stream")
    sockets = [b.connect(agent) for agent in agents]
    refused = lambda: int(re.search(r"\d+", str(b.redis.client.info("errorstats").get("errorstat_WRONGTYPE", 0)))[0])
    viwtest.wait_for(lambda: refused() >= 30, 15, "offers again")
    lines = b.proc.find_logs("redis_refused", detail="offer")
    assert 1 <= len(lines) <= 6 and all(line["error"].startswith("WRONGTYPE") and line["agent_id"] in agents for line in lines)
    b.redis.client.delete(*(f"viw.mbox.{agent}" for agent in agents))
    b.redis.xadd_command("gw-3", "ECHO", correlation_id="c-3")
    assert sockets[3].expect("COMMAND", timeout=15)["correlation_id"] == "c-3"


def test_claims_that_redis_refuses_for_good_are_told(bridge):
    """Ready, and yet every agent is closed with 4013: the log says why, not once for each of them."""
    b = bridge()
    b.redis.client.set("viw.epoch", "no hash")
    for i in range(4):
        assert b.connect(f"gw-{i}", hello=False).wait_closed() == 4013
    told = b.proc.find_logs("redis_refused", detail="claim")
    assert [line["agent_id"] for line in told] == ["gw-0", "gw-1"] and told[0]["error"].startswith("WRONGTYPE")
    b.redis.client.delete("viw.epoch")
    b.connect()


def test_a_router_that_redis_refuses_for_good_is_told(bridge):
    """Its lease, what is past its time, and what nobody needs any more."""
    b = bridge()
    db, ws = b.redis.client, b.connect("gw-1")
    b.proc.wait_log("router_leads")
    for key in ("deadlines", "dead_letters"):
        db.set(f"viw.{key}", "of another kind")
    db.delete("viw.lease.router")
    db.hset("viw.lease.router", "no", "string")
    assert b.proc.wait_log("redis_refused", detail="lease")["error"].startswith("WRONGTYPE")
    db.delete("viw.lease.router")
    assert b.proc.wait_log("redis_refused", detail="expire")["error"].startswith("WRONGTYPE")
    assert b.proc.wait_log("trim_refused", stream="dead_letters")["error"].startswith("WRONGTYPE")
    db.delete("viw.deadlines", "viw.dead_letters")
    b.redis.xadd_command("gw-1", "ECHO", correlation_id="c-1")
    assert ws.expect("COMMAND", timeout=15)["correlation_id"] == "c-1"
    assert len(b.proc.find_logs("redis_refused", detail="lease")) <= 2


def test_a_check_of_the_agents_that_redis_refuses_is_told(bridge):
    """Nobody connects and nothing is sent: who was taken over elsewhere would stay, and the log says why."""
    b = bridge()
    ws = b.connect("gw-1")
    rights = lambda word: b.redis.client.execute_command("ACL", "SETUSER", "default", word)
    rights("-smismember")
    told = b.proc.wait_log("redis_refused", detail="check")
    assert told["level"] == "error" and "can't run this command" in told["error"]
    b.redis.client.hset("viw.owner", "gw-1", "another|1|conn")
    rights("+smismember")
    assert ws.wait_closed(10) == 4000
    assert len(b.proc.find_logs("redis_refused")) == 1


@pytest.mark.parametrize("detail, key", [("bridge", "viw.bridge.b1"), ("wake", "viw.wake.b1")])
def test_a_key_between_bridges_of_another_kind_is_told(bridge, detail, key):
    b = bridge(id="b1")
    b.connect("gw-1")
    b.redis.client.delete(key)
    b.redis.client.hset(key, "a", "b")  # as a slip of the hand would leave it
    told = b.proc.wait_log("redis_refused", detail=detail, timeout=25)
    assert told["level"] == "error" and "WRONGTYPE" in told["error"]
    b.redis.client.delete(key)


def test_a_post_that_redis_refuses_for_good_is_told(bridge):
    b = bridge()
    b.connect("gw-1")
    b.redis.client.execute_command("ACL", "SETUSER", "default", "-xadd")
    assert [b.post("gw-1")[0] for _ in range(2)] == [503, 503]
    told = b.proc.wait_log("redis_refused", detail="post")
    assert told["level"] == "error" and "can't run this command" in told["error"]
    assert len(b.proc.find_logs("redis_refused", detail="post")) == 1
    b.redis.client.execute_command("ACL", "SETUSER", "default", "+xadd")
    assert b.post("gw-1")[0] == 202


def test_the_telemetry_stream_is_kept_to_its_bound(bridge):
    b = bridge(telemetry_maxlen=1000)
    ws = b.connect("gw-1")
    for seq in range(2500):
        ws.send(telemetry("gw-1", seq=seq))
    newest = lambda: [json.loads(f["frame"])["seq"] for _, f in b.redis.client.xrevrange("viw.telemetry", count=1)]
    viwtest.wait_for(lambda: newest() == [2499])
    assert 1000 <= b.redis.client.xlen("viw.telemetry") <= 1300  # a hundred between looks, and whole nodes of Redis


def test_large_telemetry_is_kept_to_a_bound_in_bytes(bridge):
    """Frames as large as they may be, over two bridges; what came last stays, none of it with a gap."""
    bound, large, each = 16 << 20, 200000, 150
    bridges = [bridge(id=f"b{i}", telemetry_max_bytes=bound) for i in (1, 2)]
    db = bridges[0].redis.client
    agents = [b.connect(f"gw-{b.proc.pid}") for b in bridges]
    for seq in range(each):
        for b, ws in zip(bridges, agents):
            ws.send(telemetry(f"gw-{b.proc.pid}", seq=seq, pad="x" * large))
    kept = {}

    def all_came():
        kept.clear()
        for _, fields in db.xrange("viw.telemetry"):
            kept.setdefault(fields["agent_id"], []).append(json.loads(fields["frame"])["seq"])
        return all(kept.get(f"gw-{b.proc.pid}", [0])[-1] == each - 1 for b in bridges)
    viwtest.wait_for(all_came, 30)
    # A third is what TELEMETRY_MAX_BYTES asks for; the last marks come after the last frames.
    viwtest.wait_for(lambda: db.memory_usage("viw.telemetry", samples=0) < bound * 1.34, what="the bound is kept")
    assert all_came() and all(seqs == list(range(seqs[0], each)) for seqs in kept.values())
    assert sum(map(len, kept.values())) * large > bound * 0.5
    assert db.llen("viw.telemetry_marks") <= 256 + 2


def test_commands_are_not_filtered_by_supported_verbs(bridge):
    """The agent answers verb_not_allowed: what a new agent can do needs no new bridge."""
    b = bridge()
    ws = b.connect("gw-1", hello=False)
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1", "capabilities": [], "supported_verbs": ["ECHO"]})
    ws.expect("WELCOME")
    cid = b.redis.xadd_command("gw-1", "a_verb_of_tomorrow")
    assert ws.expect("COMMAND", correlation_id=cid)["verb"] == "a_verb_of_tomorrow"


def test_no_cancel_before_welcome_either(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    cid = b.redis.xadd_command("gw-1", "ECHO")
    ws.expect("COMMAND", correlation_id=cid)
    ws.close()
    ws = b.connect("gw-1", hello=False)
    ws.expect("HELLO_ACK")
    b.redis.xadd_command("gw-1", "ECHO", correlation_id=cid, op="cancel")
    viwtest.wait_for(lambda: b.redis.client.hget(f"viw.cid.{cid}", "cancel"), what="the cancel is routed")
    with pytest.raises(AssertionError):
        ws.recv(0.5)
    ws.send({"type": "HELLO", "agent_id": "gw-1", "version": "1", "capabilities": []})
    assert ws.recv()["type"] == "WELCOME"
    assert ws.expect("CANCEL")["correlation_id"] == cid


def test_each_bridge_lists_its_own_agents_and_takes_commands_for_all(bridge):
    b1, b2 = bridge(id="b1"), bridge(id="b2")
    b1.connect("gw-1")
    ws = b2.connect("gw-2")
    for b, mine, other in ((b1, "gw-1", "gw-2"), (b2, "gw-2", "gw-1")):
        assert [a["agent_id"] for a in b.get("/internal/agent/agents")["agents"]] == [mine]
        assert b.http("GET", f"/internal/agent/agents/{other}")[0] == 404
    # 404 only where it is connected to no bridge at all
    status, body, _ = b1.post("gw-2", correlation_id="c-1")
    assert (status, body) == (202, {"queued": True, "correlation_id": "c-1"})
    assert ws.expect("COMMAND")["correlation_id"] == "c-1"
    ws.close()
    viwtest.wait_for(lambda: b1.post("gw-2")[0] == 404)


def test_what_is_kept_and_waits_is_shown(bridge):
    b = bridge()
    ws = b.connect("gw-1")
    for seq in range(60):
        ws.send(telemetry("gw-1", seq=seq))
    cids = [b.redis.xadd_command("gw-1", "ECHO") for _ in range(6)]
    b.entries("telemetry", count=60)
    frames = b.get("/internal/agent/agents/gw-1/telemetry")["frames"]
    assert [f["seq"] for f in frames] == list(range(10, 60))  # the last 50, oldest first

    def counts():
        row = b.get("/internal/agent/agents/gw-1")
        return row["in_flight"], row["waiting"]
    viwtest.wait_for(lambda: counts() == (4, 2))
    assert (b.metric("viw_commands_in_flight"), b.metric("viw_commands_waiting")) == (4, 6)
    acked = []
    while len(acked) < 6:
        frame = ws.recv()
        if frame["type"] == "COMMAND":
            ws.send(result("gw-1", frame["correlation_id"], rc=0))
        elif frame["type"] == "RESULT_ACK":
            acked.append(frame["correlation_id"])
    assert acked == cids
    viwtest.wait_for(lambda: counts() == (0, 0))
    assert b.get("/internal/agent/agents/gw-1/last-result")["correlation_id"] == cids[-1]
