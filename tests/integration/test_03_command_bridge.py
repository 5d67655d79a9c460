"""Chapter 03: a command's way through one bridge, with agents that are plain WebSocket clients."""
import json
import re
import signal
import time

import pytest
import viwtest
from bridges import SECRET, Bridge, leftovers, metric, result, results, wait_result
from viwtest import wait_for


@pytest.fixture
def bridge(redis, start, connect):
    return Bridge(start, redis, connect)


def test_command_reaches_agent_and_result_is_stored_once(bridge, redis):
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "ECHO", params={"message": "hi"}, issued_by_admin_id="admin-7")
    command = agent.expect("COMMAND")
    assert command["correlation_id"] == cid and command["verb"] == "ECHO"
    assert command["args"] == {"message": "hi"} and command["agent_id"] == "a1"
    assert 0 < command["ttl_remaining_ms"] <= 60000 and command["issued_by"] == "admin-7"
    agent.send({"type": "COMMAND_ACK", "agent_id": "a1", "correlation_id": cid})
    agent.send(result(cid, "a1", rc=0, stdout="hi"))
    assert agent.expect("RESULT_ACK")["correlation_id"] == cid
    row = wait_result(redis, cid)
    assert row["source"] == "agent" and row["command"] == "ECHO" and row["agent_id"] == "a1"
    assert row["issued_by_admin_id"] == "admin-7" and row["bridge_id"] == "b1"
    assert row["frame"]["stdout"] == "hi" and row["frame"]["status"] == "success"
    assert row["expires_at"] == command["expires_at"]
    agent.send(result(cid, "a1", rc=0, stdout="hi"))  # retransmitted: acknowledged, not stored
    assert agent.expect("RESULT_ACK")["correlation_id"] == cid
    assert len(results(redis)) == 1
    events = [f["event"] for _, f in redis.client.xrange("viw.command_events")]
    assert events == ["offered", "accepted"]
    assert leftovers(redis) == []


def test_offline_commands_wait_and_drain_in_order_within_the_window(bridge, redis):
    cids = [redis.xadd_command("a1", "ECHO", params={"n": i}) for i in range(10)]
    wait_for(lambda: redis.client.xlen("viw.mbox.a1") == 10, 5)
    agent = bridge.agent("a1")
    got = [agent.expect("COMMAND") for _ in range(4)]
    assert [c["correlation_id"] for c in got] == cids[:4] and [c["args"]["n"] for c in got] == [0, 1, 2, 3]
    with pytest.raises(AssertionError, match="no COMMAND"):
        agent.expect("COMMAND", timeout=0.5)  # four are unanswered
    for i, cid in enumerate(cids):
        agent.send(result(cid, "a1"))
        agent.expect("RESULT_ACK")
        if i + 4 < 10:
            assert agent.expect("COMMAND")["correlation_id"] == cids[i + 4]
    assert [r["correlation_id"] for r in results(redis)] == cids and leftovers(redis) == []


def test_unanswered_ones_are_offered_again_after_a_reconnect(bridge, redis):
    agent = bridge.agent("a1", journal_id="J1")
    cids = [redis.xadd_command("a1", "ECHO") for _ in range(3)]
    assert [agent.expect("COMMAND")["correlation_id"] for _ in cids] == cids
    agent.send(result(cids[1], "a1"))
    agent.expect("RESULT_ACK")
    agent.close()
    agent = bridge.agent("a1", journal_id="J1")
    assert [agent.expect("COMMAND")["correlation_id"] for _ in range(2)] == [cids[0], cids[2]]


def test_another_journal_ends_unknown_and_the_late_answer_is_kept(bridge, redis):
    agent = bridge.agent("a1", journal_id="J1")
    cid = redis.xadd_command("a1", "create_panel_user")
    agent.expect("COMMAND")
    agent.close()
    clone = bridge.agent("a1", journal_id="J2")
    row = wait_result(redis, cid)
    assert row["state"] == "unknown" and row["error_code"] == "journal_changed" and row["source"] == "bridge"
    with pytest.raises(AssertionError, match="no COMMAND"):
        clone.expect("COMMAND", timeout=0.5)
    clone.send(result(cid, "a1", rc=0))
    clone.expect("RESULT_ACK")
    assert [r["source"] for r in results(redis, cid)] == ["bridge", "agent"]


def test_expired_before_an_offer(bridge, redis):
    cid = redis.xadd_command("nobody", "ECHO", ttl_s="1")
    late = redis.xadd_command("nobody", "ECHO", expires_at=viwtest.rfc3339(-5))
    assert wait_result(redis, late, 3)["state"] == "expired"
    row = wait_result(redis, cid, 4)
    assert row["state"] == "expired" and row["source"] == "bridge" and row["frame"]["status"] == "expired"
    assert leftovers(redis) == []


def test_a_mailbox_full_of_expired_ones_is_emptied_at_once(bridge, redis):
    """In many small steps: what waits behind them is offered without a look of its own."""
    pipe = redis.client.pipeline(transaction=True)
    for i in range(1000):
        pipe.xadd("viw.commands", {"correlation_id": f"old-{i}", "agent_id": "a1", "command": "ECHO", "ttl_s": "2"})
    pipe.execute()
    over_s = redis.client.time()[0] + 4
    redis.xadd_command("a1", "ECHO", "live")
    wait_for(lambda: redis.client.hget("viw.cid.live", "state") == "queued")
    redis.client.set("viw.lease.router", "elsewhere|1", px=600000)  # nobody ends them meanwhile
    wait_for(lambda: metric(bridge, "viw_router_leads") == 0)
    wait_for(lambda: redis.client.time()[0] >= over_s)
    began = time.monotonic()
    agent = bridge.agent("a1")
    assert agent.expect("COMMAND")["correlation_id"] == "live"
    assert time.monotonic() - began < 4  # sooner than the periodic check
    assert len(results(redis)) == 1000 and redis.client.xlen("viw.mbox.a1") == 1


def test_expired_after_the_offer_only_the_agent_can_say(bridge, redis):
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "ECHO", ttl_s="1")
    agent.expect("COMMAND")
    cancel = agent.expect("CANCEL")
    assert cancel["correlation_id"] == cid and cancel["reason"] == "expired"
    assert results(redis) == []
    agent.send(result(cid, "a1", "expired"))
    agent.expect("RESULT_ACK")
    row = wait_result(redis, cid)
    assert row["source"] == "agent" and row["frame"]["status"] == "expired" and leftovers(redis) == []


def test_expired_while_away_is_a_cancel_at_the_reconnect(bridge, redis):
    agent = bridge.agent("a1", journal_id="J")
    cid = redis.xadd_command("a1", "ECHO", ttl_s="1")
    agent.expect("COMMAND")
    agent.close()
    wait_for(lambda: (redis.client.zscore("viw.deadlines", cid) or 0) > time.time() * 1000 + 5000, 5)
    agent = bridge.agent("a1", journal_id="J")
    assert agent.expect("CANCEL", reason="expired")["correlation_id"] == cid


def test_cancel(bridge, redis):
    cancel = lambda cid, agent="a1": redis.client.xadd(
        "viw.commands", {"correlation_id": cid, "agent_id": agent, "op": "cancel"})
    offline = redis.xadd_command("away", "ECHO")
    cancel(offline, "away")
    assert wait_result(redis, offline)["state"] == "cancelled"
    cancel("early")
    redis.xadd_command("a1", "ECHO", "early")
    assert wait_result(redis, "early")["state"] == "cancelled"
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "ECHO")
    agent.expect("COMMAND", correlation_id=cid)
    cancel(cid)
    assert agent.expect("CANCEL", correlation_id=cid)["reason"] == "cancelled"
    agent.send(result(cid, "a1", "cancelled"))
    agent.expect("RESULT_ACK")
    assert wait_result(redis, cid)["frame"]["status"] == "cancelled" and leftovers(redis) == []


def test_duplicates_are_one_command(bridge, redis):
    agent = bridge.agent("a1")
    for _ in range(5):
        redis.xadd_command("a1", "ECHO", "same", params={"n": 1})
    redis.xadd_command("a1", "ECHO", "same", params={"n": 2})
    assert agent.expect("COMMAND")["args"] == {"n": 1}
    agent.send(result("same", "a1"))
    agent.expect("RESULT_ACK")
    redis.xadd_command("a1", "ECHO", "same", params={"n": 1})
    last = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND")["correlation_id"] == last
    assert len(results(redis, "same")) == 1
    assert metric(bridge, 'viw_commands_routed_total{result="duplicate"}') == 6


REJECTED = [
    ("bad_command", {"command": ""}), ("bad_command", {"command": "two words"}), ("bad_command", {"command": "x" * 129}),
    ("bad_params", {"params": "[1]"}), ("bad_params", {"params": "{"}), ("bad_params", {"params": '{"a":1,"a":2}'}),
    ("bad_params", {"params": json.dumps({"x": "y" * 70000})}),
    ("bad_ttl", {"ttl_s": "0"}), ("bad_ttl", {"ttl_s": "86401"}), ("bad_ttl", {"ttl_s": "soon"}),
    ("bad_expires_at", {"expires_at": "tomorrow"}), ("bad_issued_at", {"issued_at": "1"}),
    ("expiry_too_far", {"expires_at": "2199-01-01T00:00:00Z"}),
    ("bad_op", {"op": "walk"}), ("bad_agent_id", {"agent_id": "-x y"}), ("bad_agent_id", {"agent_id": ""}),
    ("bad_issued_by", {"issued_by_admin_id": "x" * 200}), ("decommissioned", {"agent_id": "gone"}),
]


def test_malformed_ones_are_rejected_with_a_result_and_never_sent(bridge, redis):
    redis.client.sadd("viw.decommissioned", "gone")
    agent = bridge.agent("a1")
    for i, (_, fields) in enumerate(REJECTED):
        entry = {"correlation_id": f"r{i}", "agent_id": "a1", "command": "ECHO"}
        entry.update(fields)
        redis.client.xadd("viw.commands", entry)
    last = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND")["correlation_id"] == last
    for i, (code, fields) in enumerate(REJECTED):
        row = wait_result(redis, f"r{i}")
        assert (row["state"], row["error_code"]) == ("rejected", code), fields
        assert row["frame"]["status"] == "error" and row["frame"]["error"]["code"] == code
    assert len(results(redis)) == len(REJECTED)


def test_large_entries_hold_up_nobody(bridge, redis):
    """Whoever may XADD: 54 MB of commands are rejected, and what comes behind them goes on."""
    agent = bridge.agent("a1")
    pipe = redis.client.pipeline(transaction=True)
    for i in range(6):
        for fields in ({"params": "x" * 3_000_000}, {"signature": "x" * 3_000_000, "params": "{}"},
                       {"op": "cancel", "requeued": "1", "params": "x" * 3_000_000}):
            pipe.xadd("viw.commands", {"correlation_id": f"{next(iter(fields))}-{i}", "agent_id": "a1", "command": "ECHO", **fields})
    pipe.execute()
    last = redis.xadd_command("a1", "ECHO")
    for i in range(6):  # these may have run: the agent is asked, without what they brought
        assert agent.expect("CANCEL", timeout=15)["correlation_id"].startswith("op-")
        agent.send(result(f"op-{i}", "a1", "cancelled"))
    assert agent.expect("COMMAND", timeout=15)["correlation_id"] == last
    agent.send(result(last, "a1"))
    agent.expect("RESULT_ACK", correlation_id=last)
    states = {r["correlation_id"]: r.get("error_code") for r in results(redis) if r["source"] == "bridge"}
    assert states == {f"{what}-{i}": f"bad_{what}" for i in range(6) for what in ("params", "signature")}
    assert leftovers(redis) == []


def test_without_an_id_it_is_a_dead_letter_without_its_parameters(bridge, redis):
    redis.client.xadd("viw.commands", {"agent_id": "a1", "command": "ECHO", "params": '{"userpass":"hush"}'})
    entry = redis.client.xadd("viw.commands", {"correlation_id": "-bad", "agent_id": "a1", "command": "ECHO"})
    letters = wait_for(lambda: redis.client.xrange("viw.dead_letters") if redis.client.xlen("viw.dead_letters") == 2 else None)
    assert {f["reason"] for _, f in letters} == {"bad_correlation_id"} and letters[1][1]["entry_id"] == entry
    assert "hush" not in str(letters) and '"command":"ECHO"' in letters[0][1]["payload"]


def test_only_allowed_agents(redis, start, connect):
    bridge = Bridge(start, redis, connect, ALLOWED_AGENT_IDS="a1,a3")
    agent = bridge.agent("a3")
    cid = redis.xadd_command("a2", "ECHO")
    assert wait_result(redis, cid)["error_code"] == "not_allowed"
    ok = redis.xadd_command("a3", "ECHO")
    assert agent.expect("COMMAND")["correlation_id"] == ok


def test_results_of_others_and_of_nobody(bridge, redis):
    a1, a2 = bridge.agent("a1"), bridge.agent("a2")
    cid = redis.xadd_command("a1", "ECHO", params={"token": "s3cret"})
    a1.expect("COMMAND")
    a2.send(result(cid, "a2", stdout="s3cret"))
    assert a2.expect("ERROR")["code"] == "not_yours"
    a2.send(result("never-heard-of", "a2", stdout="s3cret"))
    assert a2.expect("RESULT_ACK")["correlation_id"] == "never-heard-of"
    letters = wait_for(lambda: [f for _, f in redis.client.xrange("viw.dead_letters")])
    wait_for(lambda: redis.client.xlen("viw.dead_letters") == 2)
    letters = [f for _, f in redis.client.xrange("viw.dead_letters")]
    assert [f["reason"] for f in letters] == ["not_yours", "unknown_command"] and "s3cret" not in str(letters)
    assert results(redis) == []
    a1.send(result(cid, "a1"))
    a1.expect("RESULT_ACK")
    assert len(results(redis, cid)) == 1


def test_the_smallest_send_queue_takes_the_largest_commands(redis, start, connect):
    """A COMMAND that no queue of this agent can hold would close its every connection until it expires."""
    refused = start("agent-bridge", env={"AGENT_BRIDGE_SEND_QUEUE_BYTES": "1", "AGENT_BRIDGE_SHARED_SECRET": "x"}, args=["--check-config"])
    assert refused.wait_exit() == 78
    least = re.search(r"SEND_QUEUE_BYTES.* from (\d+)", refused.text + refused.stdout)[1]
    bridge = Bridge(start, redis, connect, SEND_QUEUE_BYTES=least, MAX_IN_FLIGHT=8)
    agent = bridge.agent("a1")
    params = json.dumps({"m": "x" * (65536 - 10)})
    sent = [redis.client.xadd("viw.commands", {"correlation_id": f"c-{i}", "agent_id": "a1", "command": "ECHO", "params": params,
                                               "issued_by_admin_id": '"' * 128, "signature": '"' * 4096}) for i in range(8)]
    assert [agent.expect("COMMAND")["correlation_id"] for _ in sent] == [f"c-{i}" for i in range(8)]


def test_a_result_as_large_as_a_frame_may_be_is_stored(redis, start, connect):
    bridge = Bridge(start, redis, connect, MAX_FRAME_BYTES=16 << 20)
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "ECHO")
    agent.expect("COMMAND")
    agent.send(result(cid, "a1", rc=0, stdout="x" * (12 << 20)))
    agent.expect("RESULT_ACK", timeout=20)
    assert len(wait_result(redis, cid)["frame"]["stdout"]) == 12 << 20


def test_secrets_are_masked_before_the_result_enters_redis(bridge, redis):
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "create_panel_user", params={"username": "bob", "userpass": "hunter2x"})
    assert agent.expect("COMMAND")["args"]["userpass"] == "hunter2x"
    agent.send(result(cid, "a1", rc=0, stdout="bob has hunter2x\npassword=topsecret", stderr="hunter2x!",
                      error={"code": "x", "msg": "it was hunter2x"}))
    agent.expect("RESULT_ACK")
    frame = wait_result(redis, cid)["frame"]
    assert "hunter2x" not in json.dumps(frame) and "topsecret" not in json.dumps(frame)
    assert frame["stdout"].startswith("bob has ***") and frame["stderr"] == "***!" and frame["rc"] == 0
    assert not redis.client.exists("viw.mbox.a1")


def test_manifests_are_read_again_on_sighup_and_broken_ones_change_nothing(redis, start, connect, tmp):
    verbs = tmp / "verbs.d"
    verbs.mkdir()
    bridge = Bridge(start, redis, connect, VERBS_DIR=verbs)
    agent = bridge.agent("a1")

    def stored():
        cid = redis.xadd_command("a1", "odd_verb", params={"pin": "pin-canary"})
        agent.expect("COMMAND")
        agent.send(result(cid, "a1", rc=0, stdout="it was pin-canary"))
        agent.expect("RESULT_ACK")
        return wait_result(redis, cid)["frame"]["stdout"]

    def hup(event, n=1):
        bridge.proc.signal(signal.SIGHUP)
        wait_for(lambda: len(bridge.proc.find_logs(event)) == n, 10, f"{n} × {event}")
    assert stored() == "it was pin-canary"  # nothing says that it is secret
    viwtest.write_verb(verbs, "odd_verb", "/bin/true", params={"pin": {"type": "secret", "via": "stdin"}})
    hup("reloaded")
    assert stored() == "it was ***"
    (verbs / "another.json").write_text("{")
    hup("bad_manifest")
    assert stored() == "it was ***"
    (verbs / "another.json").unlink()
    hup("reloaded", 2)
    assert stored() == "it was ***"


def test_output_is_withheld_when_the_parameters_are_gone(bridge, redis):
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "create_panel_user", params={"userpass": "hunter2x"})
    agent.expect("COMMAND")
    redis.client.delete("viw.mbox.a1")
    agent.send(result(cid, "a1", rc=3, stdout="all of it", stderr="too"))
    agent.expect("RESULT_ACK")
    frame = wait_result(redis, cid)["frame"]
    assert (frame["stdout"], frame["stderr"], frame["rc"]) == ("***", "***", 3)


def test_streams_are_trimmed_behind_the_slowest_group(bridge, redis):
    db = redis.client
    bridge.proc.wait_log("trim_refused", stream="commands")
    agent = bridge.agent("a1")
    cids = [redis.xadd_command("a1", "ECHO", params={"password": "hush"}) for _ in range(3)]
    assert [agent.expect("COMMAND")["correlation_id"] for _ in cids] == cids
    for cid in cids:
        agent.send(result(cid, "a1"))
        agent.expect("RESULT_ACK")
    assert db.xlen("viw.commands") == 3  # results-writer has no group: nothing is dropped
    for stream in ("commands", "command_results"):
        db.xgroup_create(f"viw.{stream}", "results-writer", "0")
        db.xreadgroup("results-writer", "w", {f"viw.{stream}": ">"})
    ids = [e for e, _ in db.xrange("viw.commands")]
    db.xack("viw.commands", "results-writer", ids[0], ids[2])
    wait_for(lambda: [e for e, _ in db.xrange("viw.commands")] == ids[1:], 15, "trimmed up to the pending one")
    assert db.xlen("viw.command_results") == 3
    db.xack("viw.commands", "results-writer", ids[1])
    wait_for(lambda: db.xlen("viw.commands") == 0, 15, "all trimmed")


def test_what_ended_elsewhere_does_not_fill_the_window(bridge, redis):
    """Commands that were declared lost while the agent holds them: the rest goes on at once."""
    agent = bridge.agent("a1")
    cids = [redis.xadd_command("a1", "ECHO") for _ in range(5)]
    assert [agent.expect("COMMAND")["correlation_id"] for _ in range(4)] == cids[:4]
    for cid in cids[:3]:  # as workers/redis/close.lua does
        entry = redis.client.hget(f"viw.cid.{cid}", "entry")
        redis.client.xdel("viw.mbox.a1", entry)
        redis.client.hdel("viw.offered.a1", cid)
        redis.client.zrem("viw.deadlines", cid)
        redis.client.hset(f"viw.cid.{cid}", "state", "lost")
    began = time.monotonic()
    agent.send(result(cids[3], "a1"))
    assert agent.expect("COMMAND", timeout=8)["correlation_id"] == cids[4]
    assert time.monotonic() - began < 3  # not at the periodic look
