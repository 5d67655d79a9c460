"""Sentences of contract 1 and 2 that no other file is about."""
import bridgetest
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
