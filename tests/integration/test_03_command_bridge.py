"""Chapter 03: a command's way through one bridge, with agents that are plain WebSocket clients."""
import json
import time

import pytest
import viwtest
from bridges import SECRET, Bridge, leftovers, result, results, wait_result
from viwtest import wait_for


@pytest.fixture
def bridge(start, redis, connect):
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
