"""Chapter 04: bridges side by side, killed, frozen, cut off; Redis lost, full, read-only, forgetful."""
import hashlib
import json
import os
import socket
import subprocess
import threading
import time

import lua
import pytest
import viwtest
from bridges import SECRET, Bridge, elsewhen, leftovers, metric, result, results, wait_result
from viwtest import wait_for
from writers import start_writer


def leads(bridge):
    return len(bridge.proc.find_logs("router_leads")) > len(bridge.proc.find_logs("router_follows"))


@pytest.fixture
def two(redis, start, connect):
    """b1 is the router, b2 follows."""
    b1 = Bridge(start, redis, connect, "b1", LOG_LEVEL="debug")
    b1.proc.wait_log("router_leads")
    return b1, Bridge(start, redis, connect, "b2", LOG_LEVEL="debug")


def no_frame(agent, type="COMMAND", timeout=0.7):
    with pytest.raises(AssertionError, match=f"no {type}"):
        agent.expect(type, timeout=timeout)


def finish(agent, cid, **fields):
    agent.send(result(cid, agent.agent_id, **fields))
    assert agent.expect("RESULT_ACK")["correlation_id"] == cid


# ---------------------------------------------------------------- side by side


def test_commands_reach_the_agent_wherever_it_is_connected(two, redis):
    agents = [bridge.agent(f"a{i}") for i, bridge in enumerate(two)]
    for agent in agents:
        began = time.monotonic()
        cid = redis.xadd_command(agent.agent_id, "ECHO")
        assert agent.expect("COMMAND")["correlation_id"] == cid
        assert time.monotonic() - began < 1.5  # by a hint, not by the periodic look
        finish(agent, cid)
    assert [r["bridge_id"] for r in results(redis)] == ["b1", "b2"] and leftovers(redis) == []


def test_a_lost_hint_is_made_up_for(two, redis):
    agent = two[1].agent("a1")
    redis.client.delete("viw.bridge.b2")  # no lease: no hint is sent
    cid = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=8)["correlation_id"] == cid


def test_lost_hints_of_many_agents_are_made_up_for(two, redis):
    """They are asked about in parts, so that nobody waits for all."""
    agents = [two[1].agent(f"a{i}") for i in range(300)]
    redis.client.delete("viw.bridge.b2")
    cids = [redis.xadd_command(a.agent_id, "ECHO") for a in agents]
    end = time.monotonic() + 8
    assert [a.expect("COMMAND", timeout=max(0.1, end - time.monotonic()))["correlation_id"] for a in agents] == cids


def test_hints_come_again_after_redis_refused_them_once(two, redis):
    """An error of BLMPOP, as MISCONF, BUSY or a lack of replicas gives: not one look every few seconds for ever after."""
    agent = two[1].agent("a1")
    for client in redis.client.client_list():
        if client["cmd"] == "blmpop":
            redis.client.execute_command("CLIENT", "UNBLOCK", client["id"], "ERROR")
    wait_for(lambda: two[1].proc.find_logs("redis_refused", detail="wake"), 5)
    wait_for(lambda: sum(c["cmd"] == "blmpop" and "b" in c["flags"] for c in redis.client.client_list()) == 2, 3, "both bridges wait for hints")
    for _ in range(3):
        began = time.monotonic()
        cid = redis.xadd_command("a1", "ECHO")
        assert agent.expect("COMMAND")["correlation_id"] == cid
        assert time.monotonic() - began < 1.5
        finish(agent, cid)


def test_what_another_consumer_has_read_and_left_is_routed(two, redis):
    """A consumer of the group whose name nobody uses any more holds entries; traffic need not pause for them."""
    agent = two[1].agent("a1")
    two[0].proc.freeze()
    left = [redis.xadd_command("a2", "ECHO", ttl_s="600") for _ in range(3)]
    redis.client.xreadgroup("agent-bridge", "vanished", {"viw.commands": ">"})
    two[0].proc.thaw()
    deadline = time.monotonic() + 12
    while redis.client.xlen("viw.mbox.a2") < 3 and time.monotonic() < deadline:
        cid = redis.xadd_command("a1", "ECHO")
        assert agent.expect("COMMAND")["correlation_id"] == cid
        finish(agent, cid)
    assert [f["cid"] for _, f in redis.client.xrange("viw.mbox.a2")] == left
    wait_for(lambda: redis.client.xpending("viw.commands", "agent-bridge")["pending"] == 0, 5)


def test_an_agent_that_moves_is_fenced_out_of_the_old_bridge(two, redis):
    old = two[0].agent("a1", journal_id="J")
    first = redis.xadd_command("a1", "ECHO")
    old.expect("COMMAND")
    new = two[1].agent("a1", journal_id="J")
    assert old.wait_closed(3) == 4000
    assert new.expect("COMMAND")["correlation_id"] == first  # unanswered: offered again, here
    second = redis.xadd_command("a1", "ECHO")
    assert new.expect("COMMAND")["correlation_id"] == second
    assert int(new.ack["epoch"]) > int(old.ack["epoch"])
    finish(new, first)
    finish(new, second)
    assert len(results(redis)) == 2 and leftovers(redis) == []


def test_the_newer_of_two_connections_on_one_bridge_wins(two, redis):
    old = two[0].agent("a1")
    new = two[0].agent("a1")
    assert old.wait_closed(3) == 4000
    cid = redis.xadd_command("a1", "ECHO")
    assert new.expect("COMMAND")["correlation_id"] == cid


def test_a_nonce_used_at_another_bridge_is_4001(two):
    headers = viwtest.handshake_headers("a1", SECRET)
    first = two[0].connect(two[0].url, headers=headers)
    first.expect("HELLO_ACK")
    again = two[1].connect(two[1].url, headers=headers)
    assert again.wait_closed(3) == 4001


def test_a_nonce_is_known_for_its_whole_window_whatever_the_clock_of_redis(redis, start, connect):
    """Both bridges are 400 s behind it, which is more than the window."""
    b1, b2 = (Bridge(elsewhen(start, "-400s"), redis, connect, name) for name in ("b1", "b2"))
    headers = viwtest.handshake_headers("a1", SECRET, timestamp=viwtest.rfc3339(-400))
    connect(b1.url, headers=headers).expect("HELLO_ACK")
    assert connect(b2.url, headers=headers).wait_closed(3) == 4001


def test_decommissioned_while_connected(two, redis):
    agent = two[1].agent("a1")
    redis.client.sadd("viw.decommissioned", "a1")
    assert agent.wait_closed(12) == 4003
    cid = redis.xadd_command("a1", "ECHO")
    assert wait_result(redis, cid)["error_code"] == "decommissioned"


def test_stopping_the_router_hands_over_at_once(two, redis):
    agent = two[1].agent("a1")
    two[0].proc.stop()
    began = time.monotonic()
    cid = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND")["correlation_id"] == cid
    assert time.monotonic() - began < 2.5


def test_a_killed_router_is_replaced_within_five_seconds(two, redis):
    agent = two[1].agent("a1")
    two[0].proc.kill()
    began = time.monotonic()
    cids = [redis.xadd_command("a1", "ECHO") for _ in range(3)]
    got = [agent.expect("COMMAND", timeout=8)["correlation_id"] for _ in cids]
    assert got == cids and time.monotonic() - began < 5.5
    for cid in cids:
        finish(agent, cid)
    assert len(results(redis)) == 3 and leftovers(redis) == []


def test_entries_read_and_not_routed_are_taken_over(two, redis):
    """The router dies between reading and routing: what it read is pending, and comes first."""
    agent = two[1].agent("a1")
    two[0].proc.freeze()
    cids = [redis.xadd_command("a1", "ECHO") for _ in range(3)]
    redis.client.xreadgroup("agent-bridge", "router", {"viw.commands": ">"}, count=2)
    two[0].proc.kill()
    assert [agent.expect("COMMAND", timeout=8)["correlation_id"] for _ in cids] == cids


def test_a_frozen_router_does_nothing_stale(two, redis):
    agent = two[1].agent("a1")
    two[0].proc.freeze()
    cids = [redis.xadd_command("a1", "ECHO") for _ in range(3)]
    assert [agent.expect("COMMAND", timeout=8)["correlation_id"] for _ in cids] == cids
    two[0].proc.thaw()
    two[0].proc.wait_log("router_follows", timeout=10)
    assert leads(two[1]) and not leads(two[0])
    more = [redis.xadd_command("a1", "ECHO") for _ in range(4)]
    assert agent.expect("COMMAND")["correlation_id"] == more[0]  # the window of four
    no_frame(agent)
    for cid in cids + more:
        agent.send(result(cid, "a1"))
    assert sorted(wait_for(lambda: len(results(redis)) == 7 and [r["correlation_id"] for r in results(redis)])) == sorted(cids + more)
    assert redis.client.xpending("viw.commands", "agent-bridge")["pending"] == 0


def test_a_bridge_frozen_while_its_agent_moves_delivers_nothing_stale(two, redis):
    old = two[0].agent("a1", journal_id="J")
    two[0].proc.freeze()
    cid = redis.xadd_command("a1", "ECHO", ttl_s="60")
    new = two[1].agent("a1", journal_id="J")
    assert new.expect("COMMAND", timeout=8)["correlation_id"] == cid
    finish(new, cid)
    two[0].proc.thaw()
    seen = []
    try:
        while True:
            seen.append(old.recv(6)["type"])
    except Exception:  # closed, as it must be
        pass
    assert "COMMAND" not in seen and old.wait_closed(1) == 4000
    assert len(results(redis)) == 1


@pytest.fixture
def cut(redis, start, connect):
    """b1, whose way to Redis can be cut while it lives, and b2 with a way of its own."""
    port = viwtest.free_port()
    relay = Relay(port, [redis.port])
    b1 = Bridge(start, redis, connect, "b1", REDIS_URL=f"redis://127.0.0.1:{port}/0")
    b1.proc.wait_log("router_leads")
    yield relay, b1, Bridge(start, redis, connect, "b2")
    relay.close()


def frames_until_closed(agent, timeout=15):
    seen = []
    try:
        while True:
            seen.append(agent.recv(timeout)["type"])
    except Exception:  # closed, as it must be
        pass
    return seen, agent.wait_closed(1)


def test_a_bridge_cut_off_from_redis_alone_delivers_nothing_stale(cut, redis):
    """The process lives, its agent stays connected to it and moves all the same; only the link to Redis is cut."""
    relay, b1, b2 = cut
    old = b1.agent("a1", journal_id="J")
    waiting = [redis.xadd_command("a1", "ECHO") for _ in range(6)]
    assert [old.expect("COMMAND")["correlation_id"] for _ in range(4)] == waiting[:4]  # two wait behind the window
    relay.hold()
    b2.proc.wait_log("router_leads", timeout=10)
    new = b2.agent("a1", journal_id="J")
    for some in (waiting[:4], waiting[4:]):
        assert [new.expect("COMMAND", timeout=8)["correlation_id"] for _ in some] == some
        for cid in some:
            new.send(result(cid, "a1"))
    wait_for(lambda: len(results(redis)) == 6)
    old.send(result(waiting[0], "a1", stdout="late"))  # answered twice: the second is not stored
    b1.proc.wait_log("redis_down", timeout=15)
    relay.cut()
    relay.release()
    seen, code = frames_until_closed(old)
    assert "COMMAND" not in seen and "CANCEL" not in seen and code == 4000
    b1.proc.wait_log("router_follows", timeout=10)
    more = redis.xadd_command("a1", "ECHO")
    assert new.expect("COMMAND")["correlation_id"] == more
    finish(new, more)
    assert sorted(r["correlation_id"] for r in results(redis)) == sorted([*waiting, more]) and leftovers(redis) == []


def test_an_offer_whose_answer_comes_late_is_not_sent(cut, redis):
    """OFFER was done in Redis, its answer is under way for longer than an answer is fresh; by then the command ran."""
    relay, b1, b2 = cut
    old = b1.agent("a1", ready=False)
    cid = redis.xadd_command("a1", "ECHO")
    wait_for(lambda: redis.client.hget(f"viw.cid.{cid}", "state") == "queued")
    relay.hold(replies_only=True)
    old.send({"type": "HELLO", "agent_id": "a1", "version": "1", "capabilities": [], "journal_id": "J"})
    wait_for(lambda: redis.client.hget(f"viw.cid.{cid}", "state") == "offered")
    began = time.monotonic()
    new = b2.agent("a1", journal_id="J")
    assert new.expect("COMMAND")["correlation_id"] == cid
    finish(new, cid)
    wait_for(lambda: time.monotonic() - began > 2.3)
    relay.release()
    seen, code = frames_until_closed(old)
    assert "COMMAND" not in seen and code == 4000
    assert len(results(redis)) == 1 and leftovers(redis) == []


def test_an_offer_that_was_overtaken_during_a_freeze_is_not_sent(redis, start, connect):
    """The answer of OFFER lies unread in the frozen bridge's socket; meanwhile the command is done."""
    b1, b2 = (Bridge(start, redis, connect, b) for b in ("b1", "b2"))
    old = b1.agent("a1", journal_id="J")
    redis.freeze()
    redis.client.connection_pool.disconnect()
    redis.thaw()
    b1.proc.freeze()
    b2.proc.wait_log("router_leads", timeout=10)
    cid = redis.xadd_command("a1", "ECHO")
    new = b2.agent("a1", journal_id="J")
    new.expect("COMMAND", timeout=8)
    finish(new, cid)
    b1.proc.thaw()
    assert old.wait_closed(8) == 4000
    assert len(results(redis)) == 1


def test_a_bridge_cut_off_from_redis_is_not_ready_and_delivers_nothing(two, redis):
    agent = two[1].agent("a1")
    redis.freeze()
    two[1].proc.wait_log("redis_down", timeout=15)
    no_frame(agent, timeout=0.3)
    redis.thaw()
    cid = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=10)["correlation_id"] == cid


# ---------------------------------------------------------------- Redis away and back


def test_redis_killed_and_back_keeps_sockets_and_commands(two, redis):
    agent = two[1].agent("a1")
    cid = redis.xadd_command("a1", "ECHO")
    agent.expect("COMMAND")
    redis.kill(remembers=True)
    two[1].proc.wait_log("redis_down")
    agent.send(result(cid, "a1", stdout="kept"))
    no_frame(agent, "RESULT_ACK")  # stored before it is acknowledged
    redis.start()
    began = time.monotonic()
    assert agent.expect("RESULT_ACK", timeout=8)["correlation_id"] == cid
    assert time.monotonic() - began < 3
    assert wait_result(redis, cid)["frame"]["stdout"] == "kept"
    more = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=10)["correlation_id"] == more


def test_flushall_sessions_are_claimed_again_and_work_goes_on(two, redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    agents = [b.agent(f"a{i}") for i, b in enumerate(two)]
    epochs = [a.ack["epoch"] for a in agents]
    redis.client.flushall()
    wait_for(lambda: redis.client.hlen("viw.owner") == 2, 12, "both agents owned again")
    assert {v.split("|")[1] for v in redis.client.hvals("viw.owner")} == {str(e) for e in epochs}
    for agent in agents:
        cid = redis.xadd_command(agent.agent_id, "ECHO")
        assert agent.expect("COMMAND", timeout=12)["correlation_id"] == cid
        finish(agent, cid)


def test_a_result_of_a_command_redis_lost_is_acknowledged_and_a_requeue_asks_again(two, redis, pg, start):
    start_writer(start, "results", redis, pg.uri)
    agent = two[0].agent("a1")
    cid = redis.xadd_command("a1", "ECHO", params={"n": 1})
    command = agent.expect("COMMAND")
    redis.client.flushall()
    agent.send(result(cid, "a1", stdout="secret?"))
    agent.expect("RESULT_ACK")
    assert results(redis) == []
    redis.xadd_command("a1", "ECHO", cid, params={"n": 1}, expires_at=command["expires_at"], requeued="offered")
    assert agent.expect("COMMAND", timeout=12)["correlation_id"] == cid
    finish(agent, cid, stdout="again")
    # of the stream the row is left: it may be trimmed as soon as the writer has read it
    row = pg.wait_row("SELECT status, stdout_redacted FROM agent_command_results WHERE correlation_id = %s", cid)
    assert row == {"status": "done", "stdout_redacted": "again"}


def test_group_destroyed_is_made_anew_and_known_ids_stay_done(two, redis):
    agent = two[0].agent("a1")
    cid = redis.xadd_command("a1", "ECHO")
    agent.expect("COMMAND")
    finish(agent, cid)
    redis.client.xgroup_destroy("viw.commands", "agent-bridge")
    more = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=10)["correlation_id"] == more
    two[0].proc.wait_log("group_missing")
    no_frame(agent)
    assert len(results(redis, cid)) == 1


def test_script_cache_lost(two, redis):
    agent = two[1].agent("a1")
    redis.client.script_flush()
    cid = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND")["correlation_id"] == cid
    redis.client.script_flush()
    finish(agent, cid)


def oom(redis):
    redis.client.config_set("maxmemory", 1)
    return lambda: redis.client.config_set("maxmemory", 0)


def readonly(redis):
    redis.client.replicaof("127.0.0.1", "1")
    return lambda: redis.client.replicaof("NO", "ONE")


def misconf(redis):
    """RDB saving is on and its last attempt failed: Redis refuses writes."""
    db = redis.client
    db.config_set("save", "3600 1")
    dir = db.config_get("dir")["dir"]
    rdb = os.path.join(dir, "dump.rdb")
    os.mkdir(rdb)  # rename over a directory fails
    db.bgsave()
    wait_for(lambda: db.info("persistence")["rdb_last_bgsave_status"] == "err", 5)

    def undo():
        os.rmdir(rdb)
        db.config_set("save", "")
        db.config_set("stop-writes-on-bgsave-error", "no")
    return undo


@pytest.mark.parametrize("fault,word", [(oom, "OOM"), (readonly, "READONLY"), (misconf, "MISCONF")])
def test_redis_refuses_writes_for_a_while(redis, start, connect, fault, word):
    """Not acknowledged, not lost, not ready with the reason; recovers alone."""
    bridge = Bridge(start, redis, connect)
    agent = bridge.agent("a1")
    cid = redis.xadd_command("a1", "ECHO")
    agent.expect("COMMAND")
    undo = fault(redis)
    agent.send(result(cid, "a1", stdout="kept"))
    no_frame(agent, "RESULT_ACK")
    ready = subprocess.run(["curl", "-s", f"http://127.0.0.1:{bridge.port}/internal/agent/_readyz"],
                           capture_output=True, text=True, timeout=5).stdout
    assert word in ready, ready
    for seq in range(20):
        agent.send({"type": "TELEMETRY", "agent_id": "a1", "ts": viwtest.rfc3339(), "seq": seq, "metrics": {"cpu_pct": 1}})
    undo()
    assert agent.expect("RESULT_ACK", timeout=5)["correlation_id"] == cid
    assert wait_result(redis, cid)["frame"]["stdout"] == "kept"
    more = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=5)["correlation_id"] == more
    wait_for(lambda: redis.client.xlen("viw.telemetry") >= 20, 5)  # they waited in the ring
    seqs = [json.loads(f["frame"])["seq"] for _, f in redis.client.xrange("viw.telemetry")]
    assert seqs == list(range(20))


def test_two_bridges_with_one_name_say_so(redis, start, connect):
    Bridge(start, redis, connect, "same")
    second = Bridge(start, redis, connect, "same")
    second.proc.wait_log("bridge_id_shared")


# ---------------------------------------------------------------- backpressure


def rss_mib(proc):
    with open(f"/proc/{proc.pid}/status") as f:
        return int(next(line for line in f if line.startswith("VmRSS")).split()[1]) / 1024


def test_frozen_redis_pauses_reading_and_loses_no_result(redis, start, connect, ws_loop):
    """Agents that push 60 MB at a bridge whose Redis stands still: memory stays bounded, sockets are
    paused, and what must not be lost is not."""
    import asyncio
    bridge = Bridge(start, redis, connect)
    agents = [bridge.agent(f"a{i}") for i in range(4)]
    cids = [redis.xadd_command(a.agent_id, "ECHO") for a in agents]
    for agent in agents:
        agent.expect("COMMAND")
    before = rss_mib(bridge.proc)
    redis.freeze()
    for agent, cid in zip(agents, cids):
        agent.send(result(cid, agent.agent_id, stdout="kept"))
    frame = lambda a, seq: json.dumps({"type": "TELEMETRY", "agent_id": a.agent_id, "ts": viwtest.rfc3339(), "seq": seq,
                                       "metrics": {"pad": "x" * 150000}})

    async def flood(a):
        for seq in range(100):
            await a.ws.send(frame(a, seq))
    floods = [asyncio.run_coroutine_threadsafe(flood(a), ws_loop.loop) for a in agents]
    wait_for(lambda: metric(bridge, "viw_paused_sockets") == 4, 20, "all four sockets are paused")
    assert rss_mib(bridge.proc) < before + 400  # under AddressSanitizer, whose quarantine counts too
    redis.thaw()
    for f in floods:
        f.result(30)
    for agent, cid in zip(agents, cids):
        assert agent.expect("RESULT_ACK", timeout=15)["correlation_id"] == cid
    wait_for(lambda: metric(bridge, "viw_paused_sockets") == 0, 10)
    assert sorted(r["correlation_id"] for r in results(redis)) == sorted(cids)
    stored = redis.client.xlen("viw.telemetry")
    wait_for(lambda: redis.client.xlen("viw.telemetry") + metric(bridge, "viw_frames_dropped_total") >= 400, 15,
             "every frame is stored or counted as dropped")
    assert stored <= 400


def test_failover_behind_one_name(redis, start, connect, tmp):
    """The server behind the address becomes a replica and another one takes the address over: the
    bridge does not stay with the old one for ever."""
    port = viwtest.free_port()
    target = [redis.port]
    relay = Relay(port, target)
    bridge = Bridge(start, redis, connect, REDIS_URL=f"redis://127.0.0.1:{port}/0")
    agent = bridge.agent("a1")
    (tmp / "second").mkdir()
    second = viwtest.RedisServer(tmp / "second").start("--replicaof", "127.0.0.1", str(redis.port))
    try:
        wait_for(lambda: second.client.info("replication")["master_link_status"] == "up", 10)
        cid = redis.xadd_command("a1", "ECHO")
        agent.expect("COMMAND")
        wait_for(lambda: second.client.hget(f"viw.cid.{cid}", "state") == "offered", 5)
        second.client.replicaof("NO", "ONE")
        target[0] = second.port
        redis.client.replicaof("127.0.0.1", str(second.port))
        agent.send(result(cid, "a1", stdout="kept"))
        assert agent.expect("RESULT_ACK", timeout=10)["correlation_id"] == cid
        more = second.xadd_command("a1", "ECHO")
        assert agent.expect("COMMAND", timeout=10)["correlation_id"] == more
        assert len([1 for _, f in second.client.xrange("viw.command_results") if f["correlation_id"] == cid]) == 1
    finally:
        bridge.proc.stop()
        second.close()
        relay.close()


def test_an_answer_asked_for_before_redis_was_back_has_told_it_nothing(redis, start, connect):
    """A replica becomes writable between a write that shows it and the router's question for its lease, which does not
    say yet that Redis may have forgotten: it is said all the same, by another one."""
    port = viwtest.free_port()
    relay = Relay(port, [redis.port])
    bridge = Bridge(start, redis, connect, REDIS_URL=f"redis://127.0.0.1:{port}/0")
    bridge.proc.wait_log("router_leads")
    lease = hashlib.sha1(lua.text("router_lease").encode()).hexdigest().encode()

    def asked(since):
        return b"".join(relay.asked[since:])

    def came_back_between():
        redis.client.replicaof("127.0.0.1", "1")
        since = len(relay.asked)
        wait_for(lambda: b"viw.probe" in asked(since) and lease in asked(since), 10, "the bridge tries a write")
        relay.hold(replies_only=True)
        redis.client.replicaof("NO", "ONE")
        since = len(relay.asked)
        deadline = time.monotonic() + 1.5  # then it connects anew
        while lease not in asked(since) and time.monotonic() < deadline:
            time.sleep(0.01)
        return 0 <= asked(since).find(b"viw.probe") < asked(since).find(lease)
    try:
        between = False
        while not between:  # mostly the first time
            between = came_back_between()
            assert not redis.client.exists("viw.verify")
            relay.release()
            wait_for(lambda: redis.client.exists("viw.verify"), 8, "Redis is told that it may have forgotten")
            redis.client.delete("viw.verify")
    finally:
        bridge.proc.stop()
        relay.close()


class Relay:
    """A port that leads to whichever port target[0] says when a connection is made. It can hold what it is given,
    so that a link is cut while both ends live, and give it out later or cut for good."""

    def __init__(self, port, target):
        self.target, self.listener = target, socket.create_server(("127.0.0.1", port))
        self.requests, self.replies = threading.Event(), threading.Event()  # set: they pass
        self.sockets, self.asked = [], []  # asked: what passed on the way there
        self.release()
        threading.Thread(target=self.accept, daemon=True).start()

    def hold(self, replies_only=False):
        self.replies.clear()
        if not replies_only:
            self.requests.clear()

    def release(self):
        self.requests.set()
        self.replies.set()

    def cut(self):
        for s in self.sockets:
            self.shut(s)

    def accept(self):
        while True:
            try:
                a = self.listener.accept()[0]
            except OSError:
                return
            b = socket.create_connection(("127.0.0.1", self.target[0]))
            self.sockets += [a, b]
            for x, y, passes in ((a, b, self.requests), (b, a, self.replies)):
                threading.Thread(target=self.pump, args=(x, y, passes), daemon=True).start()

    @staticmethod
    def shut(s):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def pump(self, x, y, passes):
        try:
            while data := x.recv(65536):
                passes.wait()
                if passes is self.requests:
                    self.asked.append(data)
                y.sendall(data)
        except OSError:
            pass
        self.shut(x)
        self.shut(y)

    def close(self):
        self.listener.close()
        self.release()
        self.cut()


def test_group_lost_while_redis_is_full_comes_back_when_it_is_not(two, redis):
    """Reading and XGROUP CREATE are refused without memory, so the router waits and goes on by itself."""
    agent = two[1].agent("a1")
    undo = oom(redis)
    redis.client.xgroup_destroy("viw.commands", "agent-bridge")
    two[0].proc.wait_log("redis_down", timeout=12)
    undo()
    two[0].proc.wait_log("group_missing", timeout=8)
    cid = redis.xadd_command("a1", "ECHO")
    assert agent.expect("COMMAND", timeout=8)["correlation_id"] == cid
    finish(agent, cid)
