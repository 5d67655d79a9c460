"""Commands that Redis lost, or that nobody will answer (the bridge's marks are set by hand here)."""
import json

import pytest

import viwtest
import writers
from viwtest import wait_for
from writers import add_command, add_command_event, add_result, start_writer, wait_drained


def entries(c, cid):
    return [f for _, f in c.xrange("viw.commands") if f.get("correlation_id") == cid]


def set_marker(c, cid, state="queued", agent="gw-1", entry=None):
    c.hset(f"viw.cid.{cid}", mapping={"agent": agent, "state": state, **({"entry": entry} if entry else {})})


@pytest.mark.timeout(90)
def test_what_redis_lost_is_queued_again_or_cancelled(redis, pg, start):
    c = redis.client
    w = start_writer(start, "results", redis, pg.uri)
    expires = viwtest.rfc3339(3000)
    add_command(c, "c-plain", command="ECHO", params={"message": "x"}, expires_at=expires,
                issued_by_admin_id="admin-1")
    add_command(c, "c-accepted", params={"n": 1}, expires_at=expires)
    add_command_event(c, "c-accepted", "accepted")
    add_command(c, "c-secret", command="create_panel_user", params={"userpass": "canary"}, expires_at=expires)
    add_command(c, "c-signed", signature="sig", expires_at=expires)
    add_command(c, "c-done", expires_at=expires)
    add_result(c, "c-done", rc=0)
    add_command(c, "c-kept", expires_at=expires)
    add_command(c, "c-tomb", expires_at=expires)
    add_command_event(c, "c-onlyevent", "offered")
    # Broken ones a bridge had not rejected yet: what is queued again must be rejected, never run.
    broken = {"m-params": dict(params_raw="[]"), "m-json": dict(params_raw="[1"), "m-ttl": dict(ttl_s=0),
              "m-far": dict(expires_at=viwtest.rfc3339(3 * 86400)), "m-verb": dict(command=""),
              "m-agent": dict(agent="not an id"), "m-op": dict(op="jump"), "m-time": dict(issued_at="yesterday")}
    for cid, extra in broken.items():
        raw = extra.pop("params_raw", None)
        c.xadd("viw.commands", {"correlation_id": cid, "agent_id": extra.pop("agent", "gw-1"),
                                "command": extra.pop("command", "ECHO"),
                                **({"params": raw} if raw else {}), **extra})
    wait_drained(c, "results")
    c.flushall()
    set_marker(c, "c-kept")
    set_marker(c, "c-tomb", state="tombstone")  # of a cancel that came after the loss: it knows nothing
    add_command(c, "c-fresh")  # in the stream, not routed yet: not lost
    wait_for(lambda: entries(c, "c-plain"), 30, "requeued within 30 s")
    wait_for(lambda: entries(c, "c-secret") and entries(c, "c-signed") and entries(c, "c-accepted") and
             entries(c, "c-onlyevent") and all(entries(c, cid) for cid in broken), 5)
    plain = entries(c, "c-plain")[0]
    assert json.loads(plain["params"]) == {"message": "x"} and plain["requeued"] == "queued"
    assert plain["expires_at"] == expires and plain["issued_by_admin_id"] == "admin-1"
    assert plain["command"] == "ECHO" and plain["agent_id"] == "gw-1" and "op" not in plain
    assert entries(c, "c-accepted")[0]["requeued"] == "accepted"
    for cid in ("c-secret", "c-signed", "c-onlyevent"):
        e = entries(c, cid)[0]
        assert (e["op"], e["reason"], e["agent_id"]) == ("cancel", "redis_lost", "gw-1") and "params" not in e
    for cid, n in {"c-plain": 1, "c-secret": 1, "c-done": 0, "c-kept": 0, "c-tomb": 1, "c-fresh": 1}.items():
        assert len(entries(c, cid)) == n, cid
    for cid in broken:
        e = entries(c, cid)[0]
        assert e["ttl_s"] == "0" and "params" not in e and "op" not in e, (cid, e)
    wait_for(lambda: w.metric("viw_commands_requeued_total") == 3 + len(broken))  # counted after it is queued
    assert w.metric("viw_commands_redis_lost_total") == 3
    # The row is the same one, and goes on.
    wait_drained(c, "results")
    row = pg.query("SELECT * FROM agent_commands WHERE correlation_id = 'c-plain'")[0]
    assert row["status"] == "queued" and row["requeued_at"] and row["params"] == {"message": "x"}
    assert "canary" not in w.proc.text


def test_an_answer_that_waits_to_be_stored_is_no_lost_command(redis, pg, start):
    """After an outage longer than LOST_AFTER_S: the command is overdue, its answer is in a dead worker's hands."""
    c = redis.client
    for s in ("commands", "command_results"):
        c.xgroup_create(f"viw.{s}", "results-writer", "0", mkstream=True)
    hour_ago = int((viwtest.time.time() - 3600) * 1000)
    c.xadd("viw.commands", {"correlation_id": "c-1", "agent_id": "gw-1", "command": "ECHO", "ttl_s": 60},
           id=f"{hour_ago}-0")
    c.xadd("viw.command_results", {"correlation_id": "c-1", "agent_id": "gw-1", "source": "agent", "command": "ECHO",
                                   "frame": json.dumps(writers.result("c-1", rc=0))}, id=f"{hour_ago + 900}-0")
    c.xreadgroup("results-writer", "dead", {"viw.command_results": ">"})
    set_marker(c, "c-1", "done")
    w = start_writer(start, "results", redis, pg.uri, LOST_AFTER_S=60)
    pg.wait_row("SELECT 1 FROM agent_commands WHERE status = 'done'")
    wait_drained(c, "results")
    assert pg.query("SELECT count(*) AS n FROM agent_command_late_results") == [{"n": 0}]
    assert c.xlen("viw.command_results") == 1 and not w.metric("viw_commands_declared_lost_total")


@pytest.mark.timeout(90)
def test_declared_lost_and_long_overdue_commands_end_unknown(redis, pg, start):
    c = redis.client
    add_command(c, "c-overdue", expires_at=viwtest.rfc3339(-120), issued_at=viwtest.rfc3339(-200))
    add_command(c, "c-stuck", expires_at=viwtest.rfc3339(-120), issued_at=viwtest.rfc3339(-200))
    add_command(c, "c-lost", agent="gw-2", ttl_s=3600)
    add_command(c, "c-other", agent="gw-3", ttl_s=3600)
    entry = c.xadd("viw.mbox.gw-2", {"cid": "c-lost"})
    set_marker(c, "c-lost", "offered", "gw-2", entry)
    c.zadd("viw.deadlines", {"c-lost": 1})
    c.hset("viw.offered.gw-2", "c-lost", "j1")
    c.sadd("viw.waiting", "gw-2")
    set_marker(c, "c-overdue", "offered", "gw-1", c.xadd("viw.mbox.gw-1", {"cid": "c-overdue"}))
    c.xadd("viw.mbox.gw-1", {"cid": "another"})
    c.sadd("viw.waiting", "gw-1")
    set_marker(c, "c-stuck", "done")  # finished in Redis, but its result never reached a row
    set_marker(c, "c-other", "queued", "gw-3")
    w = start_writer(start, "results", redis, pg.uri, LOST_AFTER_S=60)
    wait_drained(c, "results")
    assert pg.query("SELECT viw_declare_lost('gw-2') AS n") == [{"n": 1}]
    add_command(c, "c-later", agent="gw-2", ttl_s=3600)  # issued after the declaration: not touched
    set_marker(c, "c-later", "queued", "gw-2")
    for cid in ("c-overdue", "c-stuck", "c-lost"):
        pg.wait_row("SELECT 1 FROM agent_commands WHERE correlation_id = %s AND status = 'unknown'", cid, timeout=45)
        r = pg.query("SELECT * FROM agent_command_results WHERE correlation_id = %s", cid)
        assert [(x["status"], x["error_code"], x["command"]) for x in r] == [("unknown", "lost", "ECHO")]
    # Closed in Redis before it was written.
    assert c.hget("viw.cid.c-lost", "state") == "lost" and c.ttl("viw.cid.c-lost") > 7 * 86400
    assert c.xlen("viw.mbox.gw-2") == 0 and not c.sismember("viw.waiting", "gw-2")
    assert c.zscore("viw.deadlines", "c-lost") is None and not c.hexists("viw.offered.gw-2", "c-lost")
    assert c.xlen("viw.mbox.gw-1") == 1 and c.sismember("viw.waiting", "gw-1")
    assert pg.query("SELECT status FROM agent_commands WHERE correlation_id IN ('c-other', 'c-later')") == [
        {"status": "queued"}] * 2
    # The agent comes back after all: evidence, not a change.
    add_result(c, "c-lost", agent="gw-2", rc=0, stdout="I did it")
    pg.wait_row("SELECT 1 FROM agent_command_late_results WHERE stdout_redacted = 'I did it'")
    assert pg.query("SELECT status FROM agent_commands WHERE correlation_id = 'c-lost'") == [{"status": "unknown"}]
    assert w.metric("viw_commands_declared_lost_total") == 3
